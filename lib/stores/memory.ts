import type { Claim, ClaimRequest, Entry, Outcome, Store } from '../store.ts'

export interface MemoryStoreOptions {
  /** Bytes that completed responses may take, their overhead included. Default 67,108,864 (64 MiB). */
  maxBytes?: number
  /** The clock, ms since the epoch. Default: one that does not jump when the system's is set. */
  now?: () => number
}

interface Held { token: string, attempt: number, since: number, leaseUntil: number, until: number, fingerprint: string }
interface Ended { token: string, attempt: number, since: number, until: number, bytes: number, result: Outcome | undefined }

/** What a record costs beside its headers and body: map entry, key, token, fingerprint, objects. */
const RECORD_BYTES = 400
const SWEEP_STEPS = 4

/**
 * Keeps everything in this process. Held keys are never dropped; ended ones (completed or
 * freed) are dropped oldest first once they take more than `maxBytes`.
 */
export class MemoryStore implements Store {
  readonly #maxBytes: number
  readonly #now: () => number
  readonly #held = new Map<string, Held>()
  readonly #ended = new Map<string, Ended>()
  readonly #watchers = new Map<string, Set<() => void>>()
  #bytes = 0
  #sweeper: Iterator<[string, Ended]> = this.#ended.entries()

  /** @throws {TypeError} when `maxBytes` is not a positive number. */
  constructor (options: MemoryStoreOptions = {}) {
    const { maxBytes = 67_108_864, now = steadyNow } = options
    if (!(typeof maxBytes === 'number' && maxBytes > 0)) {
      throw new TypeError(`MemoryStore: option "maxBytes" must be a positive number of bytes, got ${String(maxBytes)}`)
    }
    this.#maxBytes = maxBytes
    this.#now = now
  }

  /** Bytes that ended keys take now, as counted against `maxBytes`. */
  get bytes (): number {
    return this.#bytes
  }

  claim (key: string, { token, lease, ttl, takeover }: ClaimRequest): Claim {
    const now = this.#now()
    let attempt = 1
    let takenOver = false
    const held = this.#held.get(key)
    if (held !== undefined && held.until > now) {
      if (held.token === token) {
        this.renew(key, token, lease, ttl, '')
        return { outcome: 'acquired', attempt: held.attempt, takeover: false }
      }
      if (held.leaseUntil > now) return { outcome: 'held', attempt: held.attempt, fingerprint: held.fingerprint }
      if (!takeover) return { outcome: 'abandoned', attempt: held.attempt, fingerprint: held.fingerprint }
      attempt = held.attempt + 1
      takenOver = true
    }
    const ended = this.#ended.get(key)
    if (ended !== undefined) {
      if (ended.until > now) {
        if (ended.result !== undefined) return { outcome: 'completed', attempt: ended.attempt, result: ended.result }
        attempt = ended.attempt + 1
      }
      this.#drop(key, ended)
    }
    this.#held.set(key, { token, attempt, since: now, leaseUntil: now + lease, until: now + lease + ttl, fingerprint: '' })
    return { outcome: 'acquired', attempt, takeover: takenOver }
  }

  renew (key: string, token: string, lease: number, ttl: number, fingerprint: string): boolean {
    const held = this.#held.get(key)
    if (held === undefined || held.token !== token) return false
    const now = this.#now()
    held.leaseUntil = now + lease
    held.until = now + lease + ttl
    if (fingerprint !== '') held.fingerprint = fingerprint
    return true
  }

  complete (key: string, token: string, outcome: Outcome, ttl: number): boolean {
    return this.#end(key, token, ttl, { ...outcome, body: owned(outcome.body) }, true)
  }

  release (key: string, token: string, ttl: number, executed: boolean): boolean {
    return this.#end(key, token, ttl, undefined, executed)
  }

  watch (key: string, changed: () => void): () => void {
    if (!this.#held.has(key)) {
      const soon = setImmediate(changed)
      return () => clearImmediate(soon)
    }
    const watchers = this.#watchers.get(key) ?? new Set()
    this.#watchers.set(key, watchers.add(changed))
    return () => {
      if (watchers.delete(changed) && watchers.size === 0) this.#watchers.delete(key)
    }
  }

  read (key: string): Entry | undefined {
    const now = this.#now()
    const held = this.#held.get(key)
    if (held !== undefined && held.until > now) {
      return { state: 'held', attempt: held.attempt, since: held.since, until: held.leaseUntil, result: undefined }
    }
    const ended = this.#ended.get(key)
    if (ended === undefined || ended.until <= now) return undefined
    const { attempt, since, until, result } = ended
    return { state: result === undefined ? 'freed' : 'completed', attempt, since, until, result }
  }

  remove (key: string): boolean {
    const known = this.read(key) !== undefined
    this.#held.delete(key)
    const ended = this.#ended.get(key)
    if (ended !== undefined) this.#drop(key, ended)
    this.#wake(key)
    return known
  }

  #end (key: string, token: string, ttl: number, result: Outcome | undefined, executed: boolean): boolean {
    const replaced = this.#ended.get(key)
    const before = this.#held.get(key) ?? replaced
    if (before === undefined || before.token !== token) return false
    // A step that is repeated must not count twice.
    if (before === replaced && result === undefined && replaced.result === undefined) return true
    this.#held.delete(key)
    if (replaced !== undefined) this.#drop(key, replaced)
    const now = this.#now()
    const attempt = executed ? before.attempt : before.attempt - 1
    const bytes = RECORD_BYTES + (result === undefined ? 0 : sizeOf(result))
    this.#ended.set(key, { token, attempt, since: now, until: now + ttl, bytes, result })
    this.#bytes += bytes
    this.#sweep(now)
    this.#wake(key)
    return true
  }

  #wake (key: string): void {
    const watchers = this.#watchers.get(key)
    if (watchers === undefined) return
    this.#watchers.delete(key)
    setImmediate(() => { for (const changed of watchers) changed() })
  }

  /** A few steps per write reach every expired record in time, without a timer or a pause. */
  #sweep (now: number): void {
    for (let step = 0; step < SWEEP_STEPS; step++) {
      const next = this.#sweeper.next()
      if (next.done === true) {
        this.#sweeper = this.#ended.entries()
        break
      }
      if (next.value[1].until <= now) this.#drop(...next.value)
    }
    for (const [key, entry] of this.#ended) {
      if (this.#bytes <= this.#maxBytes) break
      this.#drop(key, entry)
    }
    // A dead holder's record outlives its lease by the ttl; the oldest stand first.
    for (const [key, held] of this.#held) {
      if (held.until > now) break
      this.#held.delete(key)
    }
  }

  #drop (key: string, entry: Ended): void {
    if (this.#ended.delete(key)) this.#bytes -= entry.bytes
  }
}

function steadyNow (): number {
  return performance.timeOrigin + performance.now()
}

/** A slice would keep the whole pool or request buffer that it was cut from in memory. */
function owned (body: string | Buffer): string | Buffer {
  if (typeof body === 'string') return body
  const copy = Buffer.allocUnsafeSlow(body.length)
  body.copy(copy)
  return copy
}

function sizeOf (result: Outcome): number {
  let bytes = typeof result.body === 'string' ? Buffer.byteLength(result.body) : result.body.length
  for (const [name, value] of result.headers) bytes += 64 + name.length + (typeof value === 'string' ? value.length : value.join().length)
  return bytes
}
