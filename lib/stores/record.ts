import { newHeaders, type StoreOutcome } from './contract.ts'

/**
 * The form of a `StoreOutcome` for stores that keep bytes. It is one text, in UTF-8, but for a body of bytes:
 *
 *     version | flags | status (3) | length of the fields (6, hexadecimal) | fields | body
 *
 * Version and flags are one character each. The fields are the fingerprint, and then the name and the value of
 * each header line, each with its length before it, so that nothing in a value can be taken for something else:
 * `12:content-type` as it is, `4=w6k=` in base64 where it is not ASCII. So the fields have as many bytes as
 * characters. A text under 4 KiB is one string from the first byte to the last, which costs a fraction of what
 * its pieces would.
 */
const VERSION = '1'
const VERSION_BYTE = VERSION.charCodeAt(0)
const REPLAYABLE = 1
const TEXT = 2
/** Bit 4 is reserved for sealed records; a reader that does not know it must refuse the record. */
const KNOWN_FLAGS = REPLAYABLE | TEXT
const FIELDS_AT = 11
const MAX_FIELDS = 0xffffff
/** A short text comes back as a string, a long one as bytes, since that is how they are sent best. */
const SMALL = 4_096

/**
 * A record that this release cannot read: of another version, or damaged. The request that meets it is refused,
 * whatever `onStoreError` says, and nothing runs.
 */
export class UnreadableRecordError extends Error {
  override readonly name = 'UnreadableRecordError'
}

/**
 * Encodes a kept outcome; `decodeOutcome` is its inverse. @throws {RangeError} when its headers take 16 MiB or more.
 */
export function encodeOutcome (outcome: StoreOutcome): Buffer {
  const record = recordOf(outcome)
  return typeof record === 'string' ? Buffer.from(record) : record
}

/**
 * A kept outcome's record; if possible, as a string that stands for its UTF-8 bytes: a client sends it at half
 * their price.
 */
export function recordOf (outcome: StoreOutcome): string | Buffer {
  const { body } = outcome
  return typeof body === 'string' ? headOf(outcome) + body : Buffer.concat([Buffer.from(headOf(outcome)), body])
}

/** The usual lengths as they stand before a field: made once, not with each. */
const LENGTHS = Array.from({ length: 128 }, (_, length) => `${length}:`)

/** All of a record that stands before the body. */
export function headOf ({ fingerprint, status, replayable, headers, text }: StoreOutcome): string {
  let fields = withLength(fingerprint)
  for (const [name, value] of headers) {
    // A header with several values has several lines.
    if (typeof value === 'string') fields += fieldOf(name) + fieldOf(value)
    else for (const one of value) fields += fieldOf(name) + fieldOf(one)
  }
  if (fields.length > MAX_FIELDS) throw new RangeError('The headers of the response are too large to be kept')
  const flags = (replayable ? REPLAYABLE : 0) | (text ? TEXT : 0)
  return `${VERSION}${flags}${status}${lengthOf(fields)}${fields}`
}

/**
 * Decodes what stands from `start` to `end`. A body of bytes is a part of `bytes`, not a copy.
 * @throws {UnreadableRecordError} when the record was written by an unknown version, or is not one at all.
 */
export function decodeOutcome (bytes: Buffer, start = 0, end = bytes.length): StoreOutcome {
  if (end <= start || bytes[start] !== VERSION_BYTE) throw unknownVersion(bytes.subarray(start, Math.max(start, end)))
  const flags = bytes[start + 1] as number - 48
  const text = (flags & TEXT) !== 0
  const small = text && end - start < SMALL
  const fieldsAt = start + FIELDS_AT
  const status = numberIn(bytes, start + 2, start + 5, 10)
  const length = numberIn(bytes, start + 5, fieldsAt, 16)
  const bodyAt = fieldsAt + length
  if ((flags & ~KNOWN_FLAGS) !== 0 || !(status >= 100 && bodyAt <= end)) throw damaged()
  const rest = small ? bytes.toString('utf8', fieldsAt, end) : bytes.toString('latin1', fieldsAt, bodyAt)
  const headers = newHeaders()
  return {
    fingerprint: readFields(rest, length, headers),
    status,
    replayable: (flags & REPLAYABLE) !== 0,
    headers,
    body: small ? rest.slice(length) : bytes.subarray(bodyAt, end),
    text
  }
}

/** The number that stands from `start` to `end` in digits, small letters among them; NaN where something else does. */
function numberIn (bytes: Buffer, start: number, end: number, radix: number): number {
  let number = 0
  for (let at = start; at < end; at++) {
    const code = bytes[at] ?? 0
    const digit = code <= 57 ? code - 48 : code >= 97 ? code - 87 : radix
    if (digit < 0 || digit >= radix) return NaN
    number = number * radix + digit
  }
  return number
}

/** How long the usual fields are, as it stands before them. */
const FIELD_LENGTHS = Array.from({ length: 512 }, (_, length) => hexOf(length))

function lengthOf (fields: string): string {
  return FIELD_LENGTHS[fields.length] ?? hexOf(fields.length)
}

function hexOf (length: number): string {
  return (MAX_FIELDS + 1 + length).toString(16).slice(1)
}

function fieldOf (text: string): string {
  return NOT_ASCII.test(text) ? encoded(text) : withLength(text)
}

function withLength (text: string): string {
  return (LENGTHS[text.length] ?? `${text.length}:`) + text
}

// eslint-disable-next-line no-control-regex -- all of ASCII
const NOT_ASCII = /[^\x00-\x7f]/

function encoded (text: string): string {
  const base64 = Buffer.from(text, 'latin1').toString('base64')
  return `${base64.length}=${base64}`
}

/** Reads the fields in the first `end` characters: returns the fingerprint, and makes `headers` the header lines. */
function readFields (text: string, end: number, headers: StoreOutcome['headers']): string {
  let lines = 0
  let fingerprint: string | undefined
  let name: string | undefined
  for (let at = 0; at < end;) {
    let length = 0
    let code = text.charCodeAt(at++)
    for (; code >= 48 && code <= 57; code = text.charCodeAt(at++)) length = length * 10 + code - 48
    const raw = text.slice(at, at += length)
    if ((code !== 58 && code !== 61) || at > end) throw damaged()
    const field = code === 58 ? raw : Buffer.from(raw, 'base64').toString('latin1')
    if (fingerprint === undefined) {
      fingerprint = field
    } else if (name === undefined) {
      name = field
    } else {
      if (!joins(headers[lines - 1], name, field)) headers[lines++] = [name, field]
      name = undefined
    }
  }
  if (fingerprint === undefined || name !== undefined) throw damaged()
  headers.length = lines
  return fingerprint
}

/** A further line of the header before it is a further value. */
function joins (last: StoreOutcome['headers'][0] | undefined, name: string, value: string): boolean {
  if (last === undefined || last[0] !== name) return false
  if (typeof last[1] === 'string') last[1] = [last[1], value]
  else last[1].push(value)
  return true
}

function unknownVersion (record: Buffer): Error {
  const version = record.length > 0 ? JSON.stringify(String.fromCharCode(record[0] as number)) : 'none'
  return new UnreadableRecordError(`The kept response has the unknown record version ${version}; this release ` +
    `reads version ${VERSION}. Remove the key, or let it expire, before mixing releases.`)
}

function damaged (): Error {
  return new UnreadableRecordError('The kept response is damaged. Remove the key, or let it expire.')
}
