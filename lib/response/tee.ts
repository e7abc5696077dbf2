import { PassThrough, type Readable } from 'node:stream'
import type { ReadableStream } from 'node:stream/web'

export type ByteStream = Readable | ReadableStream<unknown>

export function isStream (payload: unknown): payload is ByteStream {
  return typeof payload === 'object' && payload !== null &&
    (typeof (payload as Readable).pipe === 'function' || typeof (payload as ReadableStream).getReader === 'function')
}

/** A stream that is sent later: until then nobody else listens for its errors, nor keeps what an old one emits. */
export function held (source: ByteStream): ByteStream {
  const stream = iterable(source)
  if ('on' in stream) stream.on('error', () => {})
  return stream
}

/** Ends a stream that is not sent after all, so that it lets go of what it reads. */
export function cancel (source: ByteStream): void {
  if ('getReader' in source) source.cancel().catch(() => {})
  else (source as Partial<Readable>).destroy?.()
}

/**
 * A copy of `source` whose end waits for `commit`. Up to `limit` bytes the source sets the pace: a client that
 * stalls, or leaves, does not keep the outcome from being stored. Beyond, nothing is collected any more, the client
 * sets the pace, and `commit` gets `undefined`.
 *
 * `commit` answers whether the end may be sent; `broken` is told when the source fails.
 */
export function tee (
  source: ByteStream, limit: number, commit: (body: Buffer | undefined) => Promise<boolean>,
  broken: () => Promise<void>
): Readable {
  const copy = new PassThrough()
  pump(source, copy, limit, commit).catch(async (error: Error) => {
    await broken()
    copy.destroy(error)
  })
  // Fastify listens for errors only while it sends; the client may have left before.
  copy.on('error', () => {})
  return copy
}

async function pump (
  source: ByteStream, copy: PassThrough, limit: number, commit: (body: Buffer | undefined) => Promise<boolean>
): Promise<void> {
  let chunks: Buffer[] = []
  let length = 0
  let last: Buffer | undefined
  for await (const chunk of iterable(source)) {
    const bytes = copyOf(chunk)
    // What has left before an empty chunk would be the last byte.
    if (bytes.length === 0) continue
    length += bytes.length
    const fits = length <= limit
    if (fits) chunks.push(bytes)
    else chunks = []
    if (last !== undefined && !copy.destroyed && !copy.write(last) && !fits) await drained(copy)
    last = bytes
    // Nobody is there, and nothing is left to be kept: the source may be endless.
    if (copy.destroyed && !fits) break
  }
  const stored = await commit(length <= limit ? Buffer.concat(chunks) : undefined)
  if (!stored) throw new Error('The lease was lost while the response was sent')
  if (last === undefined) copy.end()
  else copy.end(last)
}

/** A chunk of its own: whoever made it may use its memory again. */
function copyOf (chunk: string | Uint8Array): Buffer {
  if (typeof chunk === 'string') return Buffer.from(chunk)
  return Buffer.from(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength))
}

/** Streams of old, which have `pipe` but cannot be iterated, are sent by Fastify as well. They go on unasked. */
function iterable (source: ByteStream): ByteStream & AsyncIterable<string | Uint8Array> {
  if ((source as Partial<Readable>)[Symbol.asyncIterator] !== undefined) return source as Readable
  const through = new PassThrough()
  const write = through.write.bind(through) as (chunk: Buffer) => boolean
  through.write = (chunk: string | Uint8Array) => write(copyOf(chunk))
  return (source as Readable).on('error', error => through.destroy(error)).pipe(through)
}

async function drained (copy: PassThrough): Promise<void> {
  await new Promise<void>(resolve => {
    const go = (): void => {
      copy.off('drain', go).off('close', go)
      resolve()
    }
    copy.on('drain', go).on('close', go)
  })
}
