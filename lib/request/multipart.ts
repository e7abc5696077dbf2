import { createHash, type Hash } from 'node:crypto'

const PARAMETER = /;\s*([\w-]+)=(?:"([^"\\]*)"|([^\s;"\\,]+))/
/**
 * `multipart/…` with parameters whose values are quoted strings or, as many clients write a boundary, bare (RFC 9110,
 * section 8.3.1).
 */
const MULTIPART = new RegExp(`^multipart/[\\w.+-]+(?:\\s*${PARAMETER.source})+\\s*$`, 'i')
const MAY_BE_MULTIPART = /^\s*multipart\//i
/** RFC 2046, section 5.1.1. */
const IS_BOUNDARY = /^[\w'()+,./:=? -]{0,69}[\w'()+,./:=?-]$/

export interface Multipart {
  /** The type of the body without the boundary; with it where there is any doubt about what it is. */
  type: string
  /** What stands between the parts; `undefined` where there is any doubt. */
  boundary: string | undefined
}

/** Reads a Content-Type; `undefined` unless it is multipart. */
export function multipartOf (contentType: string | undefined): Multipart | undefined {
  if (contentType === undefined || !MAY_BE_MULTIPART.test(contentType)) return undefined
  const parameters = MULTIPART.test(contentType) ? Array.from(contentType.matchAll(new RegExp(PARAMETER, 'g'))) : []
  const [found, another] = parameters.filter(([, name]) => name?.toLowerCase() === 'boundary')
  const boundary = found?.[2] ?? found?.[3] ?? ''
  if (found === undefined || another !== undefined || !IS_BOUNDARY.test(boundary)) {
    return {
      type: contentType, boundary: undefined
    }
  }
  return { type: contentType.slice(0, found.index) + contentType.slice(found.index + found[0].length), boundary }
}

/**
 * Hashes a multipart body so that the boundary, which clients choose anew for each attempt,
 * does not count: what stands between the delimiters (RFC 2046, section 5.1.1), and how long
 * each piece is, in constant memory. A body that is not made as the RFC says counts with its boundary.
 */
export class MultipartHash {
  readonly #boundary: string
  readonly #delimiter: Buffer
  readonly #content = createHash('sha256')
  readonly #lengths = createHash('sha256')
  /** Of the piece so far. */
  #length = 0
  /** What may be the beginning of a delimiter. The one at the start of a body has no line break before it. */
  #rest = Buffer.from('\r\n')
  #regular = true
  #closed = false

  constructor (boundary: string) {
    this.#boundary = boundary
    this.#delimiter = Buffer.from(`\r\n--${boundary}`)
  }

  update (chunk: Buffer): void {
    const bytes = Buffer.concat([this.#rest, chunk])
    // Two more bytes tell a delimiter from a line that only begins like one.
    const needed = this.#delimiter.length + 2
    const lengths: number[] = []
    let from = 0
    let at = bytes.indexOf(this.#delimiter)
    while (at !== -1 && at + needed <= bytes.length) {
      this.#add(bytes, from, at)
      lengths.push(this.#length)
      this.#length = 0
      from = at + this.#delimiter.length
      this.#check(bytes.readUInt16BE(from))
      at = bytes.indexOf(this.#delimiter, from)
    }
    if (lengths.length > 0) this.#lengths.update(`${lengths.join()},`)
    const rest = Math.max(from, at === -1 ? bytes.length - needed + 1 : at)
    this.#add(bytes, from, rest)
    this.#rest = bytes.subarray(rest)
  }

  /** The hash of the whole body, for more to be added to it. */
  end (): Hash {
    this.#add(this.#rest, 0, this.#rest.length)
    const lengths = this.#lengths.update(String(this.#length)).digest()
    return this.#content.update(lengths).update(this.#regular && this.#closed ? '' : this.#boundary)
  }

  #add (bytes: Buffer, from: number, to: number): void {
    if (from === to) return
    this.#content.update(bytes.subarray(from, to))
    this.#length += to - from
  }

  /** After a delimiter comes the end of its line, perhaps after padding; after the last one, `--` comes first. */
  #check (next: number): void {
    const first = next >> 8
    if (this.#closed) this.#regular = false
    else if (next === 0x2d2d) this.#closed = true
    else if (next !== 0x0d0a && first !== 0x20 && first !== 0x09) this.#regular = false
  }
}
