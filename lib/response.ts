import type { FastifyReply } from 'fastify'
import type { Outcome } from './store.ts'

/**
 * Never kept: fields of the connection (RFC 9110, section 7.6.1), and those that are
 * computed anew for each response.
 */
const NEVER_KEPT = new Set(['connection', 'keep-alive', 'transfer-encoding', 'te', 'trailer', 'upgrade', 'date', 'content-length'])

/** The reply as it stands, without its body. */
export function capture (reply: FastifyReply, fingerprint: string, replayHeaders: (name: string) => boolean): Outcome {
  const headers: Outcome['headers'] = []
  for (const [name, value] of Object.entries(reply.getHeaders())) {
    if (value === undefined || NEVER_KEPT.has(name) || name.startsWith('proxy-') || !replayHeaders(name)) continue
    headers.push([name, Array.isArray(value) ? value.map(String) : String(value)])
  }
  return { fingerprint, status: reply.statusCode, replayable: true, headers, body: '' }
}

/** The fact alone that the request was answered, where the response cannot be kept. */
export function unreplayable (status: number, fingerprint: string): Outcome {
  return { fingerprint, status, replayable: false, headers: [], body: '' }
}

/**
 * Puts a kept outcome on the reply: its headers win over what hooks have set, and a body
 * without a type gets none. Returns the payload, `null` for an empty one.
 */
export function restore (reply: FastifyReply, outcome: Outcome, replayedHeaderName: string): string | Buffer | null {
  reply.code(outcome.status)
  reply.removeHeader('content-type')
  reply.removeHeader('content-length')
  for (const [name, value] of outcome.headers) {
    // header() would append to cookies that are there already.
    if (name === 'set-cookie') reply.removeHeader(name)
    reply.header(name, value)
  }
  reply.header(replayedHeaderName, 'true')
  return outcome.body.length === 0 ? null : outcome.body
}

/** Makes the reply's headers what they were before. */
export function resetHeaders (reply: FastifyReply, before: Record<string, unknown>): void {
  for (const name of Object.keys(reply.getHeaders())) {
    if (Object.hasOwn(before, name) && name !== 'content-type' && name !== 'content-length') continue
    reply.removeHeader(name)
    reply.raw.removeHeader(name)
  }
  for (const [name, value] of Object.entries(before)) {
    reply.removeHeader(name)
    reply.header(name, value)
  }
}

/** Does early what Fastify does after onSend, so that status and headers can be seen. */
export function unwrapResponse (reply: FastifyReply, response: Response): unknown {
  if (response.bodyUsed) return response
  reply.code(response.status)
  for (const [name, value] of response.headers) reply.header(name, value)
  return response.body
}
