import type { Readable } from 'node:stream'

const MAX_AHEAD_BYTES = 16_777_216
const STALL_MS = 10_000

/**
 * Lets a body that somebody reads go on to its end while the key waits for it. What a pipe has
 * no room for waits in memory, up to 16 MiB; beyond that the pipe sets the pace, and is taken
 * off once it has not moved for 10 s: whoever reads may have stopped for good.
 */
export function readAhead (stream: Readable, takenOff: (() => void) | undefined): void {
  let passed = 0
  let stalled: NodeJS.Timeout | undefined
  const resume = (): void => { stream.resume() }
  // Before a pipe's own listener, which may pause the stream.
  stream.prependListener('data', ({ length }: Buffer | string) => {
    passed += length
    clearTimeout(stalled)
  })
  stream.on('pause', () => {
    if (passed < MAX_AHEAD_BYTES) return setImmediate(resume)
    clearTimeout(stalled)
    stalled = setTimeout(() => {
      takenOff?.()
      stream.unpipe().resume()
    }, STALL_MS).unref()
  })
  stream.on('close', () => clearTimeout(stalled))
  resume()
}
