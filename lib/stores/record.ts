import type { Outcome } from '../store.ts'

/**
 * The binary form of an `Outcome`, for stores that keep bytes:
 *
 *     version u8 | flags u8 | status u16 | fingerprint length u16 | headers length u32 |
 *     fingerprint | headers as JSON | body to the end
 */
const VERSION = 1
const HEAD = 10
const REPLAYABLE = 1
/** The body was a string: Node.js encodes header values by the type of the body that follows them. */
const TEXT = 2

/** Encodes a kept outcome; `decodeOutcome` is its inverse. */
export function encodeOutcome (outcome: Outcome): Buffer {
  const headers = JSON.stringify(outcome.headers)
  const headersLength = Buffer.byteLength(headers)
  const bodyLength = typeof outcome.body === 'string' ? Buffer.byteLength(outcome.body) : outcome.body.length
  const bytes = Buffer.allocUnsafe(HEAD + outcome.fingerprint.length + headersLength + bodyLength)
  bytes.writeUInt8(VERSION, 0)
  bytes.writeUInt8((outcome.replayable ? REPLAYABLE : 0) | (typeof outcome.body === 'string' ? TEXT : 0), 1)
  bytes.writeUInt16BE(outcome.status, 2)
  bytes.writeUInt16BE(outcome.fingerprint.length, 4)
  bytes.writeUInt32BE(headersLength, 6)
  let offset = HEAD
  offset += bytes.write(outcome.fingerprint, offset, 'latin1')
  offset += bytes.write(headers, offset)
  if (typeof outcome.body === 'string') bytes.write(outcome.body, offset)
  else outcome.body.copy(bytes, offset)
  return bytes
}

/** @throws {Error} when the record was written by an unknown version, or is not one at all. */
export function decodeOutcome (bytes: Buffer): Outcome {
  if (bytes.length < HEAD || bytes[0] !== VERSION) {
    throw new Error(`The kept response has the unknown record version ${bytes[0] ?? 'none'}; this release reads version ${VERSION}. Remove the key, or let it expire, before mixing releases.`)
  }
  const flags = bytes.readUInt8(1)
  const headersAt = HEAD + bytes.readUInt16BE(4)
  const bodyAt = headersAt + bytes.readUInt32BE(6)
  return {
    fingerprint: bytes.toString('latin1', HEAD, headersAt),
    status: bytes.readUInt16BE(2),
    replayable: (flags & REPLAYABLE) !== 0,
    headers: JSON.parse(bytes.toString('utf8', headersAt, bodyAt)) as Outcome['headers'],
    body: (flags & TEXT) !== 0 ? bytes.toString('utf8', bodyAt) : bytes.subarray(bodyAt)
  }
}
