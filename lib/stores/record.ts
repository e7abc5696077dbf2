import type { Outcome } from '../store.ts'

/**
 * The form of an `Outcome` for stores that keep bytes: much as HTTP/1.1 sends a response
 * (RFC 9112, section 2.1), in UTF-8.
 *
 *     version flags status SP fingerprint CR LF
 *     name: value CR LF …
 *     CR LF
 *     body to the end
 *
 * Version and flags are one character each, the status has three. A text under 4 KiB is one string
 * from the first byte to the last, which costs a fraction of what its pieces would.
 */
const VERSION = '1'
const REPLAYABLE = 1
const TEXT = 2
const END_OF_HEAD = '\r\n\r\n'
/** A short text comes back as a string, a long one as bytes, since that is how they are sent best. */
const SMALL = 4_096

/** Encodes a kept outcome; `decodeOutcome` is its inverse. */
export function encodeOutcome (outcome: Outcome): Buffer {
  const record = recordOf(outcome)
  return typeof record === 'string' ? Buffer.from(record) : record
}

/** A kept outcome's record; where it can be, as a string that stands for its UTF-8 bytes: a client sends it at half their price. */
export function recordOf (outcome: Outcome): string | Buffer {
  const { body } = outcome
  return typeof body === 'string' ? headOf(outcome) + body : Buffer.concat([Buffer.from(headOf(outcome)), body])
}

/** All of a record that stands before the body. */
export function headOf ({ fingerprint, status, replayable, headers, text }: Outcome): string {
  let head = `${VERSION}${(replayable ? REPLAYABLE : 0) | (text ? TEXT : 0)}${status} ${fingerprint}\r\n`
  for (const [name, value] of headers) {
    // A header with several values has several lines.
    if (typeof value === 'string') head += `${name}: ${value}\r\n`
    else for (const one of value) head += `${name}: ${one}\r\n`
  }
  return head + '\r\n'
}

/**
 * Decodes what stands from `start` to `end`. A body of bytes is a part of `bytes`, not a copy.
 * @throws {Error} when the record was written by an unknown version, or is not one at all.
 */
export function decodeOutcome (bytes: Buffer, start = 0, end = bytes.length): Outcome {
  const version = String.fromCharCode(bytes[start] as number)
  if (end <= start || version !== VERSION) {
    throw new Error(`The kept response has the unknown record version ${end > start ? JSON.stringify(version) : 'none'}; this release reads version ${VERSION}. Remove the key, or let it expire, before mixing releases.`)
  }
  const flags = bytes[start + 1] as number
  const text = (flags & TEXT) !== 0
  const small = text && end - start < SMALL
  const bodyAt = small ? end : bytes.indexOf(END_OF_HEAD, start) + END_OF_HEAD.length
  const head = bytes.toString('utf8', start, bodyAt)
  const headEnd = head.indexOf(END_OF_HEAD) + END_OF_HEAD.length
  const status = Number(head.slice(2, 5))
  if (headEnd < END_OF_HEAD.length || !(status >= 100)) throw damaged()
  const lineEnd = head.indexOf('\r\n')
  return {
    fingerprint: head.slice(6, lineEnd),
    status,
    replayable: (flags & REPLAYABLE) !== 0,
    headers: headersOf(head, lineEnd + 2, headEnd - 2),
    body: small ? head.slice(headEnd) : bytes.subarray(bodyAt, end),
    text
  }
}

/** The header lines of `head` from `start` to `end`. */
function headersOf (head: string, start: number, end: number): Outcome['headers'] {
  const headers: Outcome['headers'] = []
  for (let lineEnd; start < end; start = lineEnd + 2) {
    const colon = head.indexOf(':', start)
    lineEnd = head.indexOf('\r\n', start)
    if (colon === -1 || colon > lineEnd) throw damaged()
    const name = head.slice(start, colon)
    const value = head.slice(colon + 2, lineEnd)
    const last = headers.at(-1)
    if (last === undefined || last[0] !== name) headers.push([name, value])
    else if (typeof last[1] === 'string') last[1] = [last[1], value]
    else last[1].push(value)
  }
  return headers
}

function damaged (): Error {
  return new Error('The kept response is damaged. Remove the key, or let it expire.')
}
