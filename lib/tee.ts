import { PassThrough, type Readable } from 'node:stream'
import type { ReadableStream } from 'node:stream/web'

export type ByteStream = Readable | ReadableStream<unknown>

export function isStream (payload: unknown): payload is ByteStream {
  return typeof payload === 'object' && payload !== null && (typeof (payload as Readable).pipe === 'function' || typeof (payload as ReadableStream).getReader === 'function')
}

/**
 * A copy of `source` whose end waits for `keep`. A client that leaves does not stop the
 * reading: the result counts. Over `limit` bytes nothing is collected any more, and `keep`
 * gets `undefined`.
 *
 * `keep` answers whether the end may be sent; `broken` is told when the source fails.
 */
export function tee (source: ByteStream, limit: number, keep: (body: Buffer | undefined) => Promise<boolean>, broken: () => Promise<void>): Readable {
  const copy = new PassThrough()
  pump(source, copy, limit, keep).catch(async (error: Error) => {
    await broken()
    copy.destroy(error)
  })
  // Fastify listens for errors only while it sends; the client may have left before.
  copy.on('error', () => {})
  return copy
}

async function pump (source: ByteStream, copy: PassThrough, limit: number, keep: (body: Buffer | undefined) => Promise<boolean>): Promise<void> {
  let chunks: Buffer[] = []
  let length = 0
  let last: Buffer | undefined
  for await (const chunk of iterable(source)) {
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
    length += bytes.length
    if (length <= limit) chunks.push(bytes)
    else chunks = []
    if (last !== undefined) await write(copy, last)
    last = bytes
    // Nobody is there, and nothing is left to be kept: the source may be endless.
    if (copy.destroyed && length > limit) break
  }
  if (!await keep(length <= limit ? Buffer.concat(chunks) : undefined)) throw new Error('The lease was lost while the response was sent')
  if (last === undefined) copy.end()
  else copy.end(last)
}

/** Streams of old, which have `pipe` but cannot be iterated, are sent by Fastify as well. */
function iterable (source: ByteStream): AsyncIterable<string | Uint8Array> {
  if ((source as Partial<Readable>)[Symbol.asyncIterator] !== undefined) return source as AsyncIterable<string | Uint8Array>
  const through = new PassThrough()
  return (source as Readable).on('error', error => through.destroy(error)).pipe(through)
}

async function write (copy: PassThrough, bytes: Buffer): Promise<void> {
  if (copy.destroyed || copy.write(bytes)) return
  await new Promise<void>(resolve => {
    const go = (): void => {
      copy.off('drain', go).off('close', go)
      resolve()
    }
    copy.on('drain', go).on('close', go)
  })
}
