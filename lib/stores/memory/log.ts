import { hashOf } from '../../util/hash.ts'
import { decodeBinding, encodeBinding } from '../binding.ts'
import type { StoreBinding, StoreOutcome } from '../contract.ts'
import { KeyIndex, SLOT_BYTES } from './key-index.ts'
import { decodeOutcome, headOf } from '../record.ts'

/**
 * Ended keys of one ttl as bytes, in the order in which they ended, outside the JavaScript
 * heap: a million of them cost the garbage collector nothing.
 *
 *     record's length u32 | key's hash u32 | since f64 | attempt u32 | key length u16 |
 *     token length u16 | key | token | the kept outcome, or `b` and what a freed key is bound to, or nothing
 */
const HEAD = 24
/** What an outcome never begins with. */
const BOUND = 'b'.charCodeAt(0)
const SEGMENT_BYTES = 262_144
/** Of the first segment; each later one is twice as large, up to `SEGMENT_BYTES`. */
const FIRST_BYTES = 1_024
/** What a log takes beside its records. */
export const LOG_BYTES = 2_048

interface Segment {
  bytes: Buffer
  used: number
  /** A reader has a part of it, and may have it for long. */
  lent: boolean
}

/** An ended key in its log; to be read at once, since its bytes may be written over. */
export class Ended {
  readonly #segment: Segment
  readonly #at: number
  readonly #ttl: number

  constructor (segment: Segment, at: number, ttl: number) {
    this.#segment = segment
    this.#at = at
    this.#ttl = ttl
  }

  /** Byte by byte, which needs no string, as long as the key is ASCII. */
  isOf (key: string): boolean {
    const bytes = this.#bytes
    const start = this.#at + HEAD
    for (let i = 0; i < key.length; i++) {
      const code = key.charCodeAt(i)
      if (code > 127) return bytes.toString('utf8', start, this.#keyEnd) === key
      if (bytes[start + i] !== code) return false
    }
    return start + key.length === this.#keyEnd
  }

  get since (): number {
    return this.#bytes.readDoubleBE(this.#at + 8)
  }

  get until (): number {
    return this.since + this.#ttl
  }

  get attempt (): number {
    return this.#bytes.readUInt32BE(this.#at + 16)
  }

  get token (): string {
    return this.#bytes.toString('utf8', this.#keyEnd, this.#outcomeAt)
  }

  /** A key without an outcome is free. */
  get completed (): boolean {
    return this.#outcomeAt < this.#end && this.#bytes[this.#outcomeAt] !== BOUND
  }

  /** What a freed key is bound to. */
  get binding (): StoreBinding | undefined {
    if (this.completed || this.#outcomeAt === this.#end) return undefined
    return decodeBinding(this.#bytes, this.#outcomeAt + 1, this.#end)
  }

  /**
   * The kept outcome. Bytes are a copy, which hooks may write into; those of a text, which hooks see as a string, are
   * not.
   */
  get result (): StoreOutcome | undefined {
    if (!this.completed) return undefined
    const result = decodeOutcome(this.#bytes, this.#outcomeAt, this.#end)
    if (typeof result.body === 'string') return result
    if (!result.text) return { ...result, body: Buffer.from(result.body) }
    this.#segment.lent = true
    return result
  }

  get #bytes (): Buffer {
    return this.#segment.bytes
  }

  get #keyEnd (): number {
    return this.#at + HEAD + this.#bytes.readUInt16BE(this.#at + 20)
  }

  get #outcomeAt (): number {
    return this.#keyEnd + this.#bytes.readUInt16BE(this.#at + 22)
  }

  get #end (): number {
    return this.#at + this.#bytes.readUInt32BE(this.#at)
  }
}

export class Log {
  /** Milliseconds that each key lives from its end on. */
  readonly ttl: number
  readonly #maxBytes: number
  readonly #index = new KeyIndex((position, key) => this.#endedAt(position).isOf(key))
  readonly #segments: Segment[] = []
  /** One that was dropped: memory that has been touched is cheaper than new memory. */
  #spare: Segment | undefined
  /** Segments that have been dropped. */
  #dropped = 0
  /** Where the oldest record begins that has not been dropped, in its segment. */
  #tail = 0
  #bytes = 0

  /** What takes more than `maxBytes` is only known to be done. */
  constructor (ttl: number, maxBytes: number) {
    this.ttl = ttl
    this.#maxBytes = maxBytes
  }

  /** Bytes of all records from the oldest on, those that were deleted since included. */
  get bytes (): number {
    return this.#bytes
  }

  /** When the oldest key ended, which may have been deleted since; `Infinity` where there is none. */
  get oldestSince (): number {
    const [segment] = this.#segments
    return segment === undefined || this.#tail === segment.used ? Infinity : segment.bytes.readDoubleBE(this.#tail + 8)
  }

  /** Adds a key that is not there, and ended `since`: completed, or freed, and then maybe bound. */
  append (
    key: string, token: string, since: number, attempt: number, outcome: StoreOutcome | undefined,
    binding?: StoreBinding
  ): void {
    const body = binding === undefined ? outcome?.body : Buffer.concat([Buffer.of(BOUND), encodeBinding(binding)])
    // Without the body, which V8 would have to copy to make one text of both.
    const texts = key + token + (outcome === undefined ? '' : headOf(outcome))
    let room = HEAD + mostBytes(texts) + mostBytes(body)
    if (!this.#fits(room) || room + SLOT_BYTES > this.#maxBytes) {
      room = HEAD + Buffer.byteLength(texts) + Buffer.byteLength(body ?? '')
    }
    if (room + SLOT_BYTES > this.#maxBytes) {
      if (outcome?.replayable === true) {
        return this.append(key, token, since, attempt, { ...outcome, replayable: false, headers: [], body: '' })
      }
      if (binding !== undefined) return this.append(key, token, since, attempt, undefined)
    }
    const segment = this.#room(room)
    const { bytes, used } = segment
    const textsEnd = HEAD + bytes.write(texts, used + HEAD)
    const isAscii = textsEnd === HEAD + texts.length
    const length = textsEnd + write(body, bytes, used + textsEnd)
    const hash = indexHash(key)
    bytes.writeUInt32BE(length, used)
    bytes.writeUInt32BE(hash, used + 4)
    bytes.writeDoubleBE(since, used + 8)
    bytes.writeUInt32BE(attempt, used + 16)
    bytes.writeUInt16BE(isAscii ? key.length : Buffer.byteLength(key), used + 20)
    bytes.writeUInt16BE(isAscii ? token.length : Buffer.byteLength(token), used + 22)
    segment.used += length
    this.#bytes += length + SLOT_BYTES
    this.#index.add(hash, (this.#dropped + this.#segments.length - 1) * SEGMENT_BYTES + used)
  }

  find (key: string): Ended | undefined {
    const position = this.#index.find(indexHash(key), key)
    return position === -1 ? undefined : this.#endedAt(position)
  }

  /** Forgets a key. Its bytes are given back when it is the oldest. */
  delete (key: string): void {
    const hash = indexHash(key)
    const position = this.#index.find(hash, key)
    if (position !== -1) this.#index.delete(hash, position)
  }

  /** Drops the oldest key; there must be one. */
  dropOldest (): void {
    const { bytes, used } = this.#segments[0] as Segment
    const length = bytes.readUInt32BE(this.#tail)
    this.#index.delete(bytes.readUInt32BE(this.#tail + 4), this.#dropped * SEGMENT_BYTES + this.#tail)
    this.#bytes -= length + SLOT_BYTES
    this.#tail += length
    if (this.#tail < used) return
    const dropped = this.#segments.shift() as Segment
    if (dropped.bytes.length === SEGMENT_BYTES && !dropped.lent) this.#spare = dropped
    this.#dropped++
    this.#tail = 0
  }

  #fits (length: number): boolean {
    const last = this.#segments.at(-1)
    return last !== undefined && last.used + length <= last.bytes.length
  }

  /** A segment with `length` bytes left; a record that is larger than one gets one of its own. */
  #room (length: number): Segment {
    const last = this.#segments.at(-1)
    if (last !== undefined && this.#fits(length)) return last
    let segment = this.#spare
    if (segment === undefined || length > SEGMENT_BYTES) {
      const size = Math.min((last?.bytes.length ?? FIRST_BYTES / 2) * 2, SEGMENT_BYTES)
      segment = { bytes: Buffer.allocUnsafeSlow(Math.max(length, size)), used: 0, lent: false }
    } else {
      this.#spare = undefined
      segment.used = 0
    }
    this.#segments.push(segment)
    return segment
  }

  #endedAt (position: number): Ended {
    const number = Math.floor(position / SEGMENT_BYTES)
    return new Ended(this.#segments[number - this.#dropped] as Segment, position - number * SEGMENT_BYTES, this.ttl)
  }
}

/** Bytes that a text or bytes take at most: to count those of a text costs as much as to write it. */
function mostBytes (content: string | Buffer = ''): number {
  return typeof content === 'string' ? content.length * 3 : content.length
}

/** Returns how many bytes that were. */
function write (content: string | Buffer | undefined, bytes: Buffer, at: number): number {
  if (content === undefined) return 0
  return typeof content === 'string' ? bytes.write(content, at) : content.copy(bytes, at)
}

/** A key's end is a hash already (fingerprint.ts); keys of another form may share it, at worst. */
function indexHash (key: string): number {
  return hashOf(key, key.length - 12)
}
