import { Agent, RetryAgent, request, type Dispatcher, type RetryHandler } from 'undici'

/**
 * RetryAgent leaves POST alone until `methods` names it, and never sees a body: what tells
 * `idempotency_in_progress` from the other 409s is that it alone carries Retry-After.
 */
const STATUSES = [429, 500, 502, 503, 504]

const retry: RetryHandler.RetryCallback = (error, { state: { counter }, opts: { method, retryOptions } }, done) => {
  const { statusCode, headers } = error as Error & { statusCode?: number, headers?: Record<string, string> }
  const after = Number(headers?.['retry-after'] ?? 0) * 1_000
  const again = statusCode === undefined || STATUSES.includes(statusCode) || (statusCode === 409 && after > 0)
  if (!again || counter > 5 || retryOptions?.methods?.includes(method) !== true) return done(error)
  setTimeout(() => done(null), after + Math.random() * 200 * 2 ** counter)
}

const agent = new RetryAgent(new Agent({ headersTimeout: 10_000, bodyTimeout: 10_000 }), {
  methods: ['POST', 'PATCH'],
  // So that an answer that is not retried comes as it is, with its body.
  throwOnError: false,
  retry
})

/** `key`: one for each operation, made before the first attempt and stored with it. */
export async function pay (url: string, order: unknown, key: string): Promise<{
  status: number, headers: Dispatcher.ResponseData['headers'], text: string
}> {
  const headers = { 'content-type': 'application/json', 'idempotency-key': key }
  const body = JSON.stringify(order)
  // RetryAgent cannot start anew once the response's head has been passed on: it asks for the
  // rest by Range, which a POST does not have, and fails. Its caller sends the operation again.
  for (let left = 2; ; left--) {
    const response = await request(url, { method: 'POST', headers, body, dispatcher: agent })
    try {
      return { status: response.statusCode, headers: response.headers, text: await response.body.text() }
    } catch (error) {
      if (left === 0) throw error
    }
  }
}
