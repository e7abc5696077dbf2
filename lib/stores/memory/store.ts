import { inspect } from 'node:util'
import type {
  StoreBinding, StoreClaim, StoreClaimRequest, StoreEntry, StoreOutcome, StoreRecording, StoreStep, IdempotencyStore
} from '../contract.ts'
import { KeyTable } from '../../util/key-table.ts'
import { checkNames } from '../../util/option-names.ts'
import { Log, LOG_BYTES, type Ended } from './log.ts'

export interface MemoryStoreOptions {
  /**
   * Bytes that ended keys may take, completed or freed, their overhead and all recorded steps included.
   * Default 67,108,864 (64 MiB).
   */
  maxBytes?: number
  /** The clock, ms since the epoch. Default: one that does not jump when the system's is set. */
  now?: () => number
}

interface Held {
  storeKey: string
  next: Held | undefined
  token: string
  attempt: number
  since: number
  leaseUntil: number
  until: number
  fingerprint: string
  /** What is recorded; `undefined` where the key is not bound. */
  steps: StoreStep[] | undefined
}

/** Characters; a log keeps 16 bits for the length in bytes. */
const MAX_KEY_LENGTH = 20_000
/** What a step takes beside its name and result. */
const STEP_BYTES = 100
const SWEEP_STEPS = 4
const DEAD_CHECK_MS = 10_000

/**
 * Keeps everything in this process. Held keys are never dropped; ended ones (completed or
 * freed) are dropped oldest first once they take more than `maxBytes`, with the steps of
 * held keys; a step that does not fit then is refused.
 *
 * Held keys are objects. Ended ones are bytes, in one log for each ttl: what was written
 * first ends first.
 */
export class MemoryStore implements IdempotencyStore {
  readonly #maxBytes: number
  readonly #now: () => number
  readonly #held = new KeyTable<Held>()
  #logs: Log[] = []
  readonly #watchers = new Map<string, Set<() => void>>()
  #deadCheckAt = 0
  /** Bytes of the steps of held keys. */
  #stepBytes = 0

  /** @throws {TypeError} when an option is unknown or wrong. */
  constructor (options: MemoryStoreOptions = {}) {
    checkNames(options, ['maxBytes', 'now'], 'fastify-idempotency: the options of MemoryStore')
    const { maxBytes = 67_108_864, now = steadyNow } = options
    if (!(typeof maxBytes === 'number' && maxBytes > 0)) {
      throw new TypeError(`MemoryStore: option "maxBytes" must be a positive number of bytes, got ${String(maxBytes)}`)
    }
    if (typeof now !== 'function') {
      throw new TypeError('MemoryStore: option "now" must be a function that gives milliseconds since the epoch, ' +
        `got ${inspect(now, { depth: 0 })}`)
    }
    this.#maxBytes = maxBytes
    this.#now = now
  }

  /** Bytes that ended keys and recorded steps take now, as counted against `maxBytes`. */
  get bytes (): number {
    let bytes = this.#overhead + this.#stepBytes
    for (const log of this.#logs) bytes += log.bytes
    return bytes
  }

  claim (key: string, { token, lease, ttl, takeover }: StoreClaimRequest): StoreClaim {
    if (key.length + token.length > MAX_KEY_LENGTH) {
      throw new RangeError(
        `MemoryStore: key and token may have ${MAX_KEY_LENGTH} characters, got ${key.length + token.length}`
      )
    }
    const now = this.#now()
    let attempt = 1
    let takenOver = false
    let binding: StoreBinding | undefined
    const held = this.#held.get(key)
    if (held !== undefined && held.until > now) {
      if (held.token === token) {
        this.renew(key, token, lease, ttl, '')
        return acquired(held, false)
      }
      if (held.leaseUntil > now) return { outcome: 'held', attempt: held.attempt, fingerprint: held.fingerprint }
      if (!takeover) return { outcome: 'abandoned', attempt: held.attempt, fingerprint: held.fingerprint }
      attempt = held.attempt + 1
      takenOver = true
      binding = bindingOf(held)
    }
    const ended = this.#ended(key)
    if (ended !== undefined) {
      if (ended.until > now) {
        const { result } = ended
        if (result !== undefined) return { outcome: 'completed', attempt: ended.attempt, result }
        attempt = ended.attempt + 1
        binding = ended.binding
      }
      this.#forget(key)
    }
    if (held !== undefined) this.#drop(held)
    const holder: Held = {
      storeKey: key,
      next: undefined,
      token,
      attempt,
      since: now,
      leaseUntil: now + lease,
      until: now + lease + ttl,
      fingerprint: binding?.fingerprint ?? '',
      steps: binding === undefined ? undefined : [...binding.steps]
    }
    this.#held.add(holder)
    if (binding !== undefined) this.#stepBytes += bytesOf(holder)
    return acquired(holder, takenOver)
  }

  renew (key: string, token: string, lease: number, ttl: number, fingerprint: string, bind = false): boolean {
    const held = this.#held.get(key)
    if (held === undefined || held.token !== token) return false
    const now = this.#now()
    held.leaseUntil = now + lease
    held.until = now + lease + ttl
    if (fingerprint === '' || held.steps !== undefined) return true
    held.fingerprint = fingerprint
    if (bind) held.steps = []
    return true
  }

  complete (key: string, token: string, outcome: StoreOutcome, ttl: number): boolean {
    return this.#end(key, token, ttl, outcome, true)
  }

  release (key: string, token: string, ttl: number, executed: boolean, binding?: StoreBinding): boolean {
    return this.#end(key, token, ttl, undefined, executed, binding)
  }

  /** @throws {RangeError} when the steps of held keys alone would take more than `maxBytes`. */
  record (key: string, token: string, fingerprint: string, name: string, result: string | undefined): StoreRecording {
    const now = this.#now()
    const held = this.#held.get(key)
    if (held === undefined || held.until <= now) return { outcome: 'lost' }
    const { steps = [] } = held
    const takes = held.token === token
      ? held.steps === undefined || held.fingerprint === fingerprint
      : result !== undefined && held.fingerprint === fingerprint
    if (!takes) return { outcome: 'lost' }
    const step = { name, result }
    const at = steps.findIndex(({ name: other }) => other === name)
    const known = steps[at]
    if (known !== undefined && (known.result !== undefined || result === undefined)) {
      return {
        outcome: 'known', result: known.result
      }
    }
    const bytes = stepBytes(step) - (known === undefined ? 0 : stepBytes(known))
    if (this.#stepBytes + bytes > this.#maxBytes) {
      throw new RangeError(
        `MemoryStore: the steps of held keys would take more than maxBytes, ${this.#maxBytes}`
      )
    }
    if (known === undefined) steps.push(step)
    else steps[at] = step
    held.fingerprint = fingerprint
    held.steps = steps
    this.#stepBytes += bytes
    this.#sweep(now)
    return { outcome: 'recorded' }
  }

  recorded (key: string): StoreStep[] {
    const now = this.#now()
    const held = this.#held.get(key)
    if (held !== undefined && held.until > now) return [...held.steps ?? []]
    const ended = this.#ended(key)
    return ended === undefined || ended.until <= now ? [] : [...ended.binding?.steps ?? []]
  }

  watch (key: string, changed: () => void): () => void {
    if (this.#held.get(key) === undefined) {
      const soon = setImmediate(changed)
      return () => clearImmediate(soon)
    }
    const watchers = this.#watchers.get(key) ?? new Set()
    this.#watchers.set(key, watchers.add(changed))
    return () => {
      // The key may have been ended and taken again since: those who wait for its new holder are others.
      if (watchers.delete(changed) && watchers.size === 0 && this.#watchers.get(key) === watchers) {
        this.#watchers.delete(key)
      }
    }
  }

  read (key: string): StoreEntry | undefined {
    const now = this.#now()
    const held = this.#held.get(key)
    if (held !== undefined && held.until > now) {
      return { state: 'held', attempt: held.attempt, since: held.since, until: held.leaseUntil, result: undefined }
    }
    const ended = this.#ended(key)
    if (ended === undefined || ended.until <= now) return undefined
    const { attempt, since, until, result } = ended
    return { state: result === undefined ? 'freed' : 'completed', attempt, since, until, result }
  }

  remove (key: string): boolean {
    const known = this.read(key) !== undefined
    const held = this.#held.get(key)
    if (held !== undefined) this.#drop(held)
    this.#forget(key)
    this.#wake(key)
    return known
  }

  #end (
    key: string, token: string, ttl: number, outcome: StoreOutcome | undefined, executed: boolean,
    binding?: StoreBinding
  ): boolean {
    const held = this.#held.get(key)
    const ended = held === undefined ? this.#ended(key) : undefined
    const holder = held ?? ended
    const now = this.#now()
    if (holder === undefined || holder.token !== token || holder.until <= now) return false
    // A step that is repeated must not count twice.
    if (ended !== undefined && outcome === undefined && !ended.completed) return true
    const { attempt } = holder
    const bound = outcome === undefined ? (held === undefined ? undefined : bindingOf(held)) ?? binding : undefined
    if (held !== undefined) this.#drop(held)
    else this.#forget(key)
    this.#logOf(ttl).append(key, token, now, executed ? attempt : attempt - 1, outcome, bound)
    this.#sweep(now)
    this.#wake(key)
    return true
  }

  /**
   * Bytes that the logs take beside their records, but for the one that there always is: they count with many ttls.
   */
  get #overhead (): number {
    return Math.max(0, this.#logs.length - 1) * LOG_BYTES
  }

  #logOf (ttl: number): Log {
    for (const log of this.#logs) if (log.ttl === ttl) return log
    const log = new Log(ttl, this.#maxBytes)
    this.#logs.push(log)
    return log
  }

  #ended (key: string): Ended | undefined {
    for (const log of this.#logs) {
      const found = log.find(key)
      if (found !== undefined) return found
    }
    return undefined
  }

  #forget (key: string): void {
    for (const log of this.#logs) log.delete(key)
  }

  #wake (key: string): void {
    const watchers = this.#watchers.get(key)
    if (watchers === undefined) return
    this.#watchers.delete(key)
    setImmediate(() => { for (const changed of watchers) changed() })
  }

  /** A few steps per write reach every expired record in time, without a timer or a pause. */
  #sweep (now: number): void {
    let bytes = this.#overhead + this.#stepBytes
    for (const log of this.#logs) {
      for (let step = 0; step < SWEEP_STEPS && log.oldestSince + log.ttl <= now; step++) log.dropOldest()
      bytes += log.bytes
    }
    if (bytes > this.#maxBytes) this.#evict()
    if (now >= this.#deadCheckAt) this.#forgetDead(now)
  }

  #evict (): void {
    for (;;) {
      this.#logs = this.#logs.filter(({ bytes }) => bytes > 0)
      if (this.bytes <= this.#maxBytes || this.#logs.length === 0) return
      this.#logs.reduce((oldest, log) => log.oldestSince < oldest.oldestSince ? log : oldest).dropOldest()
    }
  }

  /** A dead holder's record outlives its lease by the ttl. */
  #forgetDead (now: number): void {
    this.#deadCheckAt = now + DEAD_CHECK_MS
    this.#held.forEach(held => { if (held.until <= now) this.#drop(held) })
  }

  #drop (held: Held): void {
    this.#held.delete(held)
    if (held.steps !== undefined) this.#stepBytes -= bytesOf(held)
  }
}

function acquired ({ attempt, fingerprint, steps }: Held, takeover: boolean): StoreClaim {
  return steps === undefined
    ? { outcome: 'acquired', attempt, takeover }
    : {
        outcome: 'acquired', attempt, takeover, fingerprint
      }
}

function bindingOf ({ fingerprint, steps }: Held): StoreBinding | undefined {
  return steps === undefined ? undefined : { fingerprint, steps }
}

function bytesOf ({ steps = [] }: Held): number {
  let bytes = 0
  for (const step of steps) bytes += stepBytes(step)
  return bytes
}

function stepBytes ({ name, result = '' }: StoreStep): number {
  return STEP_BYTES + Buffer.byteLength(name) + Buffer.byteLength(result)
}

const { timeOrigin } = performance

function steadyNow (): number {
  return timeOrigin + performance.now()
}
