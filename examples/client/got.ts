import got, { type Response } from 'got'

/**
 * got makes no key and does not retry POST by itself; both are asked for here. It reads the
 * whole response before it resolves: one that is cut off within its body is retried too.
 *
 * Make the key outside: a `beforeRequest` hook runs for each attempt, and would make one for each.
 */
const client = got.extend({
  timeout: { request: 10_000 },
  throwHttpErrors: true,
  retry: {
    limit: 5,
    methods: ['POST', 'PATCH'],
    maxRetryAfter: 60_000,
    calculateDelay ({ attemptCount, retryOptions, error, retryAfter, computedValue }) {
      if (attemptCount > (retryOptions.limit ?? 0)) return 0
      // A 409 is retried for its code alone: a mismatch stays one.
      const again = error.response?.statusCode === 409 &&
        String(error.response.body).includes('"idempotency_in_progress"')
      return again ? (retryAfter ?? 1_000) + Math.random() * 200 : computedValue
    }
  }
})

/** `key`: one for each operation, made before the first attempt and stored with it. */
export async function pay (url: string, order: unknown, key: string): Promise<Response<string>> {
  return await client.post(url, {
    headers: { 'content-type': 'application/json', 'idempotency-key': key },
    body: JSON.stringify(order)
  })
}
