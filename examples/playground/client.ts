/** The client: one request to one instance over a connection of its own, which may break on the way back. */
import { request as open, type IncomingMessage } from 'node:http'
import { once } from 'node:events'
import type { Answer, Order } from './events.ts'

/** The lines that a reader wants to see, out of those that are sent. */
export function headOf ({ key }: Order): string {
  return [
    'POST /payments', 'Content-Type: application/json', ...(key === undefined ? [] : [`Idempotency-Key: ${key}`])
  ].join('\n')
}

/** `undefined` when no answer came. */
export async function send (
  port: number, number: number, { key, body, fault, ask, step }: Order
): Promise<Answer | undefined> {
  const request = open({
    port,
    host: '127.0.0.1',
    method: 'POST',
    path: '/payments',
    agent: false,
    headers: {
      'content-type': 'application/json',
      ...(key === undefined ? {} : { 'idempotency-key': key }),
      // For the stage only; what counts for the key is method, URL and body.
      'x-request': number,
      ...(fault === undefined ? {} : { 'x-fault': fault }),
      ...(ask === true ? { 'x-ask': 'yes' } : {}),
      ...(step === true ? { 'x-step': 'yes' } : {})
    }
  })
  try {
    request.end(body)
    const [response] = await once(request, 'response') as [IncomingMessage]
    if (fault === 'lose') {
      response.destroy()
      return undefined
    }
    return await answerOf(response)
  } catch {
    return undefined
  }
}

async function answerOf (response: IncomingMessage): Promise<Answer> {
  let body = ''
  for await (const chunk of response.setEncoding('utf8')) body += chunk as string
  const { statusCode: status = 0, statusMessage, headers } = response
  const shown = ['content-type', 'idempotent-replayed', 'retry-after'].filter(name => headers[name] !== undefined)
  return {
    status,
    replayed: headers['idempotent-replayed'] === 'true',
    retryAfter: Number(headers['retry-after'] ?? 0),
    head: [`${status} ${statusMessage}`, ...shown.map(name => `${name}: ${String(headers[name])}`)].join('\n'),
    body
  }
}
