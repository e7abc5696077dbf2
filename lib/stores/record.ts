import type { Outcome } from '../store.ts'

/**
 * The binary form of an `Outcome`, for stores that keep bytes:
 *
 *     version u8 | flags u8 | status u16 | fingerprint length u16 | headers length u32 |
 *     fingerprint | header lines | body to the end
 *
 * The header is what HTTP/1.1 sends: `name: value`, each line ended by CR LF, in latin1
 * (RFC 9112, section 5; Node.js refuses a value with other characters).
 */
const VERSION = 1
const HEAD = 10
const REPLAYABLE = 1
const TEXT = 2
/** A short text is handed out as a string, a long one as bytes, since that is how they are sent best. */
const SMALL = 4_096

/** Encodes a kept outcome into what `allocate` gives; `decodeOutcome` is its inverse. */
export function encodeOutcome (outcome: Outcome, allocate: (length: number) => Buffer = Buffer.allocUnsafe): Buffer {
  const { fingerprint, body } = outcome
  const head = fingerprint + linesOf(outcome.headers)
  const bytes = allocate(HEAD + head.length + Buffer.byteLength(body))
  bytes[0] = VERSION
  bytes[1] = (outcome.replayable ? REPLAYABLE : 0) | (outcome.text ? TEXT : 0)
  bytes.writeUInt16BE(outcome.status, 2)
  bytes.writeUInt16BE(fingerprint.length, 4)
  bytes.writeUInt32BE(head.length - fingerprint.length, 6)
  bytes.write(head, HEAD, 'latin1')
  if (typeof body === 'string') bytes.write(body, HEAD + head.length)
  else body.copy(bytes, HEAD + head.length)
  return bytes
}

/**
 * Decodes what stands from `start` to `end`. A body of bytes is a part of `bytes`, not a copy.
 * @throws {Error} when the record was written by an unknown version, or is not one at all.
 */
export function decodeOutcome (bytes: Buffer, start = 0, end = bytes.length): Outcome {
  if (end - start < HEAD || bytes[start] !== VERSION) {
    throw new Error(`The kept response has the unknown record version ${end > start ? bytes[start] : 'none'}; this release reads version ${VERSION}. Remove the key, or let it expire, before mixing releases.`)
  }
  const flags = bytes[start + 1] as number
  const text = (flags & TEXT) !== 0
  const fingerprintAt = start + HEAD
  const headersAt = fingerprintAt + bytes.readUInt16BE(start + 4)
  const bodyAt = headersAt + bytes.readUInt32BE(start + 6)
  return {
    fingerprint: bytes.toString('latin1', fingerprintAt, headersAt),
    status: bytes.readUInt16BE(start + 2),
    replayable: (flags & REPLAYABLE) !== 0,
    headers: headersOf(bytes.toString('latin1', headersAt, bodyAt)),
    body: text && end - bodyAt < SMALL ? bytes.toString('utf8', bodyAt, end) : bytes.subarray(bodyAt, end),
    text
  }
}

/** A header with several values has several lines. */
function linesOf (headers: Outcome['headers']): string {
  let lines = ''
  for (const [name, value] of headers) {
    if (typeof value === 'string') lines += `${name}: ${value}\r\n`
    else for (const one of value) lines += `${name}: ${one}\r\n`
  }
  return lines
}

function headersOf (lines: string): Outcome['headers'] {
  const headers: Outcome['headers'] = []
  for (let start = 0, end; start < lines.length; start = end + 2) {
    const colon = lines.indexOf(':', start)
    end = lines.indexOf('\r\n', colon)
    const name = lines.slice(start, colon)
    const value = lines.slice(colon + 2, end)
    const last = headers.at(-1)
    if (last === undefined || last[0] !== name) headers.push([name, value])
    else if (typeof last[1] === 'string') last[1] = [last[1], value]
    else last[1].push(value)
  }
  return headers
}
