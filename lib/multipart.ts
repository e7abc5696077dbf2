import { createHash, type Hash } from 'node:crypto'

/** `multipart/…` with parameters whose values are tokens or quoted strings (RFC 9110, section 8.3.1). */
const MULTIPART = /^multipart\/[\w.+-]+((?:\s*;\s*[\w-]+=(?:[!#$%&'*+.^`|~\w-]+|"[^"\\]*"))+)\s*$/i
const BOUNDARY = /;\s*boundary=(?:"([^"]*)"|([^\s;]*))/gi
/** RFC 2046, section 5.1.1. */
const IS_BOUNDARY = /^[\w'()+,./:=? -]{0,69}[\w'()+,./:=?-]$/

/** The boundary between the parts of a body of this type; `undefined` where there is none, or any doubt. */
export function boundaryOf (contentType: string | undefined): string | undefined {
  if (contentType === undefined || !/^multipart\//i.test(contentType)) return undefined
  const parameters = MULTIPART.exec(contentType)?.[1] ?? ''
  const [first, second] = Array.from(parameters.matchAll(BOUNDARY), ([, quoted, token]) => quoted ?? token as string)
  return first !== undefined && second === undefined && IS_BOUNDARY.test(first) ? first : undefined
}

/**
 * Hashes a multipart body so that the boundary, which clients choose anew for each attempt,
 * does not count: the SHA-256 of what stands between the delimiters (RFC 2046, section 5.1.1), each hashed
 * by itself, in constant memory. A body that is not made as the RFC says counts with its boundary.
 */
export class MultipartHash {
  readonly #boundary: string
  readonly #delimiter: Buffer
  readonly #parts = createHash('sha256')
  #part = createHash('sha256')
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
    let from = 0
    let at = bytes.indexOf(this.#delimiter)
    while (at !== -1 && at + needed <= bytes.length) {
      this.#part.update(bytes.subarray(from, at))
      this.#endPart()
      from = at + this.#delimiter.length
      this.#check(bytes.toString('latin1', from, from + 2))
      at = bytes.indexOf(this.#delimiter, from)
    }
    const rest = Math.max(from, at === -1 ? bytes.length - needed + 1 : at)
    this.#part.update(bytes.subarray(from, rest))
    this.#rest = bytes.subarray(rest)
  }

  /** The hash of the whole body, for more to be added to it. */
  end (): Hash {
    this.#part.update(this.#rest)
    this.#endPart()
    return this.#regular && this.#closed ? this.#parts : this.#parts.update(this.#boundary)
  }

  #endPart (): void {
    this.#parts.update(this.#part.digest())
    this.#part = createHash('sha256')
  }

  #check (next: string): void {
    if (this.#closed) this.#regular = false
    else if (next === '--') this.#closed = true
    else if (!/^(?:\r\n|[ \t])/.test(next)) this.#regular = false
  }
}
