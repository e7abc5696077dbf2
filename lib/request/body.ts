import { createHash, hash, randomUUID, type Hash } from 'node:crypto'
import { Readable } from 'node:stream'
import type { FastifyRequest } from 'fastify'
import { MultipartHash, multipartOf } from './multipart.ts'
import { readAhead } from './read-ahead.ts'

/** Encodings, beside UTF-8, whose text tells every byte; `null`: a stream of texts, which are the body themselves. */
const EXACT = new Set<string | null>([null, 'latin1', 'binary', 'hex', 'base64', 'base64url'])

/** Used within one call only. */
const SCRATCH = Buffer.allocUnsafeSlow(65_536)

/** Its beginnings by their length, made once each: a view of a few bytes takes a hundred. */
const BEGINNINGS = new Array<Buffer | undefined>(1_024).fill(undefined)

function beginning (length: number): Buffer {
  const known = BEGINNINGS[length]
  if (known !== undefined) return known
  const made = SCRATCH.subarray(0, length)
  if (length < BEGINNINGS.length) BEGINNINGS[length] = made
  return made
}

/** Where a stream has the body that watches it, for `unshift`. */
const kBody = Symbol('fastify-idempotency body')

/** Hashes a request's body while it passes, in constant memory and without replacing the stream. */
export class RequestBody {
  /** There is something to read, if only for a parser that will find it empty. */
  readonly present: boolean
  /** Every byte has arrived. */
  whole: boolean
  /** Somebody had begun to read before: these bytes are not all here, but by `substitute`. */
  readonly readEarly: boolean
  /** Bytes that have arrived. */
  length = 0
  /** More than the route's `bodyLimit` with `collect`: the bytes are not there. */
  tooLarge = false
  readonly #stream: Readable
  readonly #request: FastifyRequest
  readonly #collect: boolean
  #first: Buffer | undefined
  /** With `collect`: the chunks after the first. */
  #others: Buffer[] | undefined
  #hash: Hash | undefined
  /** Stands in the place of `#hash` until the body's end. */
  #multipart: MultipartHash | undefined
  /** Counts as well where it says what the bytes mean. */
  #type = ''
  #ambiguous = false
  #cut = false
  /** Bytes that may come while the body is compared; `Infinity` where a parser or a handler reads it. */
  #limit = Infinity
  /** Bytes that a reader has put back: they come a second time. */
  #again = 0
  /** Called at the end, for those who wait for it. */
  #settled: Promise<Error | undefined> | undefined
  #resolve: ((error?: Error) => void) | undefined
  #stopWatching: (() => void) | undefined

  /** `collect`: keep the bytes, for `bytes()`; otherwise only their digest. */
  constructor (request: FastifyRequest, stream: Readable, collect: boolean) {
    this.#request = request
    this.#stream = stream
    this.#collect = collect
    this.present = hasBody(request)
    this.readEarly = this.present && stream.readableDidRead
    this.whole = !this.present || (stream.readableEnded && !this.readEarly)
    if (this.whole || this.readEarly) return
    const multipart = collect ? undefined : multipartOf(request.headers['content-type'])
    if (multipart !== undefined) {
      this.#type = multipart.type
      if (multipart.boundary !== undefined) this.#multipart = new MultipartHash(multipart.boundary)
    }
    // Unlike on('data'), which a Readable overrides, this does not make the stream flow: only whoever reads the body
    // may do that.
    const tapped = stream as Tapped
    tapped[kBody] = this
    stream.prependListener('data', onData)
    stream.on('end', onEnd)
    tapped.unshift = unshift
    if (stream !== request.raw) stream.on('error', () => {})
  }

  /** Takes `bytes` for the whole body, which was read before. */
  substitute (bytes: Buffer): void {
    this.#first = bytes
    this.length = bytes.length
    this.whole = true
  }

  /** A hook has made another stream of ours, which may fail with nobody else there. */
  replacedBy (payload: Readable): void {
    if (!this.whole && payload !== this.#stream) payload.on('error', () => {})
  }

  /**
   * The SHA-256 of the body (of its parts, where it is multipart), `salt` and the salt's length in bytes; only once it
   * is whole.
   */
  digest (salt: string): string {
    const typed = this.#type === '' ? salt : `${this.#type}\n${salt}`
    const suffix = this.#ambiguous ? typed + randomUUID() : typed
    const first = this.#first
    const bodyLength = this.#hash === undefined ? first?.length ?? 0 : Infinity
    // One shot over one piece of memory is the cheapest way to hash a small body.
    if (bodyLength + suffix.length * 3 + 4 <= SCRATCH.length) {
      first?.copy(SCRATCH)
      const suffixLength = SCRATCH.write(suffix, bodyLength)
      return hash('sha256', beginning(SCRATCH.writeUInt32BE(suffixLength, bodyLength + suffixLength)), 'base64url')
    }
    const tail = Buffer.alloc(4)
    tail.writeUInt32BE(Buffer.byteLength(suffix))
    return (this.#hash ?? createHash('sha256').update(first ?? '')).update(suffix).update(tail).digest('base64url')
  }

  /** The body; only once it is whole, with `collect`, and not `tooLarge`. */
  bytes (): Buffer {
    return Buffer.concat([this.#first ?? NOTHING, ...this.#others ?? []])
  }

  /**
   * Reads what nobody else will read, and calls back when the body is whole or was cut off. `compare`: nobody else may
   * have it. `keep`: a handler may still read it. `answered`: the same, but the response is over, and Node.js no longer
   * tells a request that its client has left.
   * `limit`: bytes, beyond which a body that is still to be read ends with a 413. `stalled`: the handler has stopped
   * reading.
   */
  drain (
    purpose: 'compare' | 'keep' | 'answered', done: (error?: Error) => void, limit = Infinity, stalled?: () => void
  ): void {
    if (this.whole) return done()
    if (this.length > limit || Number(this.#request.headers['content-length']) > limit) return done(tooLarge())
    const stream = this.#stream
    const { raw } = this.#request
    const piped = stream !== raw
    if (stream.destroyed || this.#cut || (piped && isCut(raw))) return done(cutOff())
    this.#whenSettled(done)
    stream.on('close', onClose)
    if (piped) this.#watchSource()
    if (purpose === 'answered') this.#watchSocket()
    // Whoever has begun to read, and stopped, would hold the rest back.
    this.#limit = limit
    if (purpose === 'compare') stream.unpipe()
    else if (stream.listenerCount('data') > 1) return readAhead(stream, stalled)
    stream.resume()
  }

  /** A pipe does not tell that its source was cut off. */
  #watchSource (): void {
    const { raw } = this.#request
    raw.on('close', () => { if (isCut(raw)) this.closed() })
  }

  #watchSocket (): void {
    const { socket } = this.#request.raw
    const closed = (): void => this.closed()
    socket.once('close', closed)
    this.#stopWatching = () => socket.off('close', closed)
  }

  /** Whether somebody reads it, or has begun to. */
  get isRead (): boolean {
    const stream = this.#stream
    return stream.readableDidRead || stream.readableFlowing === true ||
      stream.listenerCount('readable') > 0 || stream.listenerCount('data') > 1
  }

  /**
   * Calls back when the body that a handler reads is whole or was cut off, without reading it. Where nobody has begun
   * to read it by the next turn, nobody may be there to do so.
   */
  arrive (done: (error?: Error) => void): void {
    const stream = this.#stream
    if (this.whole) return done()
    if (stream.destroyed || this.#cut) return done(cutOff())
    this.#whenSettled(done)
    stream.on('close', onClose)
    setImmediate(() => {
      if (!this.whole && !this.isRead) {
        this.#settle(new Error('Nobody reads the request body, which must be whole before the first step'))
      }
    })
  }

  /** Events of a stream come in an asynchronous context of their own; a promise goes on in that of who waits. */
  #whenSettled (done: (error?: Error) => void): void {
    this.#settled ??= new Promise(resolve => { this.#resolve = resolve })
    this.#settled.then(done)
  }

  /** Lets the rest of an unwanted body pass, so that the connection can be used again: it is never whole. */
  discard (): void {
    if (this.whole) return
    this.#cut = true
    this.#stream.off('data', onData).resume()
  }

  /** The same, where another reply may come that is an outcome. */
  letPass (): void {
    if (!this.whole) this.#stream.resume()
  }

  arrived (chunk: Buffer | string): void {
    const bytes = typeof chunk === 'string' ? this.#encode(chunk) : chunk
    if (this.#again > 0) {
      const again = Math.min(this.#again, bytes.length)
      this.#again -= again
      if (again < bytes.length) this.#add(bytes.subarray(again))
    } else {
      this.#add(bytes)
    }
  }

  #add (bytes: Buffer): void {
    this.length += bytes.length
    if (this.length > this.#limit) {
      this.#stream.off('data', onData).pause()
      return this.#settle(tooLarge())
    }
    if (this.#multipart !== undefined) return this.#multipart.update(bytes)
    // One chunk, the usual case, is cheaper to hash in one shot at the end.
    const first = this.#first
    if (this.#collect) {
      this.#collectUpTo(this.#request.routeOptions.bodyLimit as number, bytes)
    } else if (first === undefined) {
      this.#first = bytes
    } else {
      this.#hash ??= createHash('sha256').update(first)
      this.#hash.update(bytes)
    }
  }

  #collectUpTo (limit: number, bytes: Buffer): void {
    if (this.length <= limit) {
      if (this.#first === undefined) this.#first = bytes
      else (this.#others ??= []).push(bytes)
    } else {
      this.tooLarge = true
      this.#first = this.#others = undefined
    }
  }

  /** A reader has put back what it had read. */
  putBack (chunk: Buffer | string): void {
    this.#again += (typeof chunk === 'string' ? this.#encode(chunk) : chunk).length
  }

  /** A parser has set an encoding. Where its text may stand for several bodies, none is the same as this one. */
  #encode (text: string): Buffer {
    const encoding = this.#stream.readableEncoding as BufferEncoding
    if (encoding === 'utf8' ? text.includes('\ufffd') : !EXACT.has(encoding)) this.#ambiguous = true
    return Buffer.from(text, encoding)
  }

  /** Nothing more comes. */
  closed (): void {
    if (!this.whole) this.#settle(cutOff())
  }

  ended (): void {
    // Over HTTP/2, Node.js ends a body that was cut off as if it were whole; but then its stream is closed already.
    if ((this.#request.raw as { stream?: { closed: boolean } }).stream?.closed === true) this.#cut = true
    if (this.#cut) return this.#settle(cutOff())
    this.whole = true
    this.#hash ??= this.#multipart?.end()
    // Node.js would do it after the response, at a higher price.
    this.#stream.off('data', onData)
    this.#settle()
  }

  #settle (error?: Error): void {
    const resolve = this.#resolve
    if (resolve === undefined) return
    this.#settled = this.#resolve = undefined
    this.#stopWatching?.()
    resolve(error)
  }
}

const NOTHING = Buffer.alloc(0)

type Tapped = Readable & { [kBody]?: RequestBody }

/** The listeners are shared by all requests: each stream knows its body. */
function onData (this: Tapped, chunk: Buffer | string): void {
  this[kBody]?.arrived(chunk)
}

function onEnd (this: Tapped): void {
  this[kBody]?.ended()
}

function onClose (this: Tapped): void {
  this[kBody]?.closed()
}

/** Stands in the place of the stream's own method. */
function unshift (this: Tapped, chunk: Buffer | string | null, encoding?: BufferEncoding): void {
  if (!this.readableEnded && chunk !== null) this[kBody]?.putBack(chunk)
  Readable.prototype.unshift.call(this, chunk, encoding)
}

/** Answers a request whose client is gone, as Fastify's own parser does. */
export function cutOff (): Error {
  return Object.assign(new Error('The request body was cut off'), { statusCode: 400 })
}

function isCut ({ destroyed, readableEnded }: Readable): boolean {
  return destroyed && !readableEnded
}

/** As Fastify's parsers answer it. */
function tooLarge (): Error {
  return Object.assign(new Error('Request body is too large'), { statusCode: 413, code: 'FST_ERR_CTP_BODY_TOO_LARGE' })
}

/** Whether a parser will read this request, or HTTP says that there is something to read. */
function hasBody ({ headers, raw }: FastifyRequest): boolean {
  const length = headers['content-length']
  if (headers['content-type'] !== undefined || headers['transfer-encoding'] !== undefined || (
    length !== undefined && length !== '0'
  )) return true
  // HTTP/2 needs neither header: END_STREAM on the HEADERS frame tells (RFC 9113, section 8.1).
  return (raw as { stream?: { endAfterHeaders?: boolean } }).stream?.endAfterHeaders === false
}
