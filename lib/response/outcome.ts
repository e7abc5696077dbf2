import { validateHeaderName, validateHeaderValue, type OutgoingHttpHeaders } from 'node:http'
import type { FastifyReply } from 'fastify'
import { newHeaders, type StoreOutcome } from '../stores/contract.ts'

/**
 * Never kept: fields of the connection (RFC 9110, section 7.6.1), and those that are
 * computed for each response.
 */
const NEVER_KEPT = new Set(
  ['connection', 'keep-alive', 'transfer-encoding', 'te', 'trailer', 'upgrade', 'date', 'content-length']
)

/** Statuses whose responses have no content (RFC 9110, sections 15.3.5, 15.3.6 and 15.4.5). */
export const WITHOUT_CONTENT: ReadonlySet<number> = new Set([204, 205, 304])

/** Whether a reply ends with its header: whatever payload Fastify has for it, Node.js sends none. */
export function endsAtOnce ({ raw, statusCode }: FastifyReply): boolean {
  return statusCode === 204 || statusCode === 304 || (statusCode === 205 && raw.req.httpVersionMajor === 2)
}

/**
 * The reply as it stands, with the headers `given`, without its body.
 * @throws {TypeError} when a header has a name that cannot be sent, or a value that HTTP/1.1 cannot send, as Node.js
 * does; over HTTP/2, Node.js leaves such a value out.
 */
export function capture (
  reply: FastifyReply, given: Readonly<Record<string, unknown>>, fingerprint: string,
  replayHeaders: (name: string) => boolean
): StoreOutcome {
  const headers = newHeaders()
  let lines = 0
  const isHttp2 = reply.raw.req.httpVersionMajor === 2
  for (const name in given) {
    const value = given[name]
    if (value === undefined || NEVER_KEPT.has(name) || name.startsWith('proxy-') || !replayHeaders(name)) continue
    validateHeaderName(name)
    const sent = isHttp2 ? sentOverHttp2(name, value) : sentOverHttp1(name, value)
    if (sent !== undefined) headers[lines++] = [name, sent]
  }
  headers.length = lines
  return { fingerprint, status: Math.trunc(reply.statusCode), replayable: true, headers, body: '', text: false }
}

function sentOverHttp1 (name: string, value: unknown): string | string[] {
  if (!Array.isArray(value)) {
    const line = String(value)
    validateHeaderValue(name, line)
    return line
  }
  const lines = value.map(String)
  for (const line of lines) validateHeaderValue(name, line)
  return lines
}

/** Node.js sends one byte for each character, and leaves out lines that are not valid then. */
function sentOverHttp2 (name: string, value: unknown): string | string[] | undefined {
  const lines = [value].flat().map(line => Buffer.from(String(line), 'latin1').toString('latin1')).filter(
    line => isValid(name, line)
  )
  return lines.length > 1 ? lines : lines[0]
}

function isValid (name: string, value: string): boolean {
  try {
    validateHeaderName(name)
    validateHeaderValue(name, value)
    return true
  } catch {
    return false
  }
}

/**
 * Puts a kept outcome on the reply: its headers win over what hooks have set, and a body
 * without a type gets none.
 */
export function restore (reply: FastifyReply, outcome: StoreOutcome, replayedHeaderName: string): void {
  reply.code(outcome.status)
  let typed = false
  for (const [name, value] of outcome.headers) {
    if (name === 'content-type') typed = true
    // header() would append to cookies that are there already.
    else if (name === 'set-cookie') reply.removeHeader(name)
    reply.header(name, value)
  }
  // Only what is there: removing costs Fastify and Node.js more than all the rest here.
  if (!typed && reply.hasHeader('content-type')) reply.removeHeader('content-type')
  if (reply.hasHeader('content-length')) reply.removeHeader('content-length')
  reply.header(replayedHeaderName, 'true')
}

/** Takes a replay off a reply again: Fastify answers with an error, whose status it chooses where it finds 200. */
export function withdraw (reply: FastifyReply, { headers }: StoreOutcome, replayedHeaderName: string): void {
  for (const [name] of headers) reply.removeHeader(name)
  reply.removeHeader(replayedHeaderName).code(200)
}

/** What hooks say of bytes that they have made of the payload: it is not true of the kept ones. */
const OF_THE_BYTES = [
  'content-encoding', 'content-range', 'content-md5', 'content-digest', 'transfer-encoding', 'trailer'
]

/** Takes off what hooks have said of bytes of their own. */
export function withdrawEncoding (reply: FastifyReply): void {
  for (const name of OF_THE_BYTES) reply.removeHeader(name)
}

/** The headers of a replay without those that hooks have set and Node.js refuses to send. What was kept stays whole. */
export function sendable (reply: FastifyReply, { headers: kept }: StoreOutcome): OutgoingHttpHeaders {
  const headers: OutgoingHttpHeaders = {}
  const isKept = new Set(kept.map(([name]) => name))
  for (const [name, value] of Object.entries(reply.getHeaders())) {
    if (isKept.has(name) || [value].flat().every(line => isValid(name, String(line)))) headers[name] = value
  }
  return headers
}

/** The payload as the handler's hooks saw it, `null` for none. */
export function payloadOf ({ body, text }: StoreOutcome): string | Buffer | null {
  if (text) return String(body)
  return body.length === 0 ? null : body
}

/**
 * Whether Node.js sends the same header with a string's bytes as with the string: it
 * encodes the header by the type of what follows it, as UTF-8 or as latin1.
 */
export function isAscii (headerValues: unknown[]): boolean {
  return !NOT_ASCII.test(headerValues.join(''))
}

// eslint-disable-next-line no-control-regex -- all of ASCII
const NOT_ASCII = /[^\x00-\x7f]/

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

export function isResponse (payload: unknown): payload is Response {
  return typeof payload === 'object' && Object.prototype.toString.call(payload) === '[object Response]'
}
