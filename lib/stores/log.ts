import { hashOf } from '../hash.ts'
import { KeyIndex, SLOT_BYTES } from './key-index.ts'

/**
 * Records of bytes under keys, in the order in which they were written, outside the
 * JavaScript heap: a million of them cost the garbage collector nothing.
 *
 *     payload length u32 | key's hash u32 | key length u16 | key | payload
 */
const HEAD = 10
const SEGMENT_BYTES = 262_144

interface Segment { bytes: Buffer, used: number }

/** Where a payload is; to be read at once, since its segment will be written to again. */
export interface Place { bytes: Buffer, start: number, end: number }

export class Log {
  readonly #index = new KeyIndex((position, key) => this.#isAt(position, key))
  readonly #segments: Segment[] = []
  /** One that was dropped: memory that has been touched is cheaper than new memory. */
  #spare: Segment | undefined
  /** Segments that have been dropped. */
  #dropped = 0
  /** Where the oldest record begins that has not been dropped, in its segment. */
  #tail = 0
  #bytes = 0

  /** Bytes of all records from the oldest on, those that were deleted since included. */
  get bytes (): number {
    return this.#bytes
  }

  /** Room for the payload of a new record, to be filled at once; the key must not be there. */
  append (key: string, length: number): Buffer {
    const keyLength = Buffer.byteLength(key)
    const total = HEAD + keyLength + length
    const segment = this.#room(total)
    const { bytes, used } = segment
    const hash = hashOf(key)
    bytes.writeUInt32BE(length, used)
    bytes.writeUInt32BE(hash, used + 4)
    bytes.writeUInt16BE(keyLength, used + 8)
    bytes.write(key, used + HEAD)
    segment.used += total
    this.#bytes += total + SLOT_BYTES
    this.#index.add(hash, (this.#dropped + this.#segments.length - 1) * SEGMENT_BYTES + used)
    return bytes.subarray(used + HEAD + keyLength, used + total)
  }

  find (key: string): Place | undefined {
    const position = this.#index.find(hashOf(key), key)
    return position === -1 ? undefined : placeOf(this.#segmentAt(position), position % SEGMENT_BYTES)
  }

  /** Forgets a key. Its bytes are given back when it is the oldest. */
  delete (key: string): void {
    const hash = hashOf(key)
    const position = this.#index.find(hash, key)
    if (position !== -1) this.#index.delete(hash, position)
  }

  /** The oldest record, which may have been deleted since. */
  oldest (): Place | undefined {
    const [segment] = this.#segments
    return segment === undefined || this.#tail === segment.used ? undefined : placeOf(segment, this.#tail)
  }

  /** Drops the oldest record; there must be one. */
  dropOldest (): void {
    const { bytes, used } = this.#segments[0] as Segment
    const length = HEAD + bytes.readUInt16BE(this.#tail + 8) + bytes.readUInt32BE(this.#tail)
    this.#index.delete(bytes.readUInt32BE(this.#tail + 4), this.#dropped * SEGMENT_BYTES + this.#tail)
    this.#bytes -= length + SLOT_BYTES
    this.#tail += length
    if (this.#tail < used) return
    const dropped = this.#segments.shift() as Segment
    if (dropped.bytes.length === SEGMENT_BYTES) this.#spare = dropped
    this.#dropped++
    this.#tail = 0
  }

  /** A segment with `length` bytes left; a record that is larger than one gets one of its own. */
  #room (length: number): Segment {
    const last = this.#segments.at(-1)
    if (last !== undefined && last.used + length <= last.bytes.length) return last
    let segment = this.#spare
    if (segment === undefined || length > SEGMENT_BYTES) {
      segment = { bytes: Buffer.allocUnsafeSlow(Math.max(length, SEGMENT_BYTES)), used: 0 }
    } else {
      this.#spare = undefined
      segment.used = 0
    }
    this.#segments.push(segment)
    return segment
  }

  #segmentAt (position: number): Segment {
    return this.#segments[Math.floor(position / SEGMENT_BYTES) - this.#dropped] as Segment
  }

  #isAt (position: number, key: string): boolean {
    const { bytes } = this.#segmentAt(position)
    const at = position % SEGMENT_BYTES
    return bytes.toString('utf8', at + HEAD, at + HEAD + bytes.readUInt16BE(at + 8)) === key
  }
}

function placeOf ({ bytes }: Segment, at: number): Place {
  const start = at + HEAD + bytes.readUInt16BE(at + 8)
  return { bytes, start, end: start + bytes.readUInt32BE(at) }
}
