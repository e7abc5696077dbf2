import {
  acceptedIn, claimIn, recordingIn, stepsIn, type IdempotencyStore, type StoreBinding, type StoreClaim,
  type StoreClaimRequest, type StoreEntry, type StoreOutcome, type StoreRecording, type StoreStep
} from '../stores/contract.ts'
import { errorFrom, isThenable, promiseOf } from '../util/promise.ts'

export type Answer<T> = (error: unknown, value?: T) => void

/** No answer in time. One may still come. */
export class StoreTimeout extends Error {
  override readonly name = 'StoreTimeout'
}

const MAX_LATE = 1_000

/**
 * The way to the store: bounds the time and the number of operations, and lets only answers of the contract pass.
 *
 * Every operation is given `ms`. What comes after its time was over, a value or a failure, goes to `late`. While a
 * thousand are out past their time, further ones fail without being sent: a client that queues commands while the
 * store is away must not queue without end. One in `ms` is sent all the same; if it is answered in time, those that
 * are out may have been lost, and count no more.
 */
export class StoreCalls {
  readonly store: IdempotencyStore
  readonly #ms: number
  /** Operations that are out past their time. */
  #late = 0
  #lateAt = 0
  /** Operations that are out within their time. */
  #pending = 0
  readonly #idle: Array<() => void> = []

  constructor (store: IdempotencyStore, ms: number) {
    this.store = store
    this.#ms = ms
  }

  claim (key: string, request: StoreClaimRequest, done: Answer<StoreClaim>, late?: Answer<StoreClaim>): void {
    this.#call(() => this.store.claim(key, request), claimIn, done, late)
  }

  renew (
    key: string, token: string, lease: number, ttl: number, fingerprint: string, bind: boolean, done: Answer<boolean>,
    late?: Answer<boolean>
  ): void {
    this.#call(() => this.store.renew(key, token, lease, ttl, fingerprint, bind), acceptedIn, done, late)
  }

  complete (key: string, token: string, outcome: StoreOutcome, ttl: number, done: Answer<boolean>): void {
    this.#call(() => this.store.complete(key, token, outcome, ttl), acceptedIn, done)
  }

  release (
    key: string, token: string, ttl: number, executed: boolean, binding: StoreBinding | undefined, done: Answer<boolean>
  ): void {
    this.#call(() => this.store.release(key, token, ttl, executed, binding), acceptedIn, done)
  }

  /** Whether the store records steps. */
  get recordsSteps (): boolean {
    return this.store.record !== undefined && this.store.recorded !== undefined
  }

  record (
    key: string, token: string, fingerprint: string, name: string, result: string | undefined,
    done: Answer<StoreRecording>, late: Answer<StoreRecording>
  ): void {
    this.#call(() => this.store.record?.(key, token, fingerprint, name, result), recordingIn, done, late)
  }

  recorded (key: string, done: Answer<StoreStep[]>): void {
    this.#call(() => this.store.recorded?.(key), stepsIn, done)
  }

  read (key: string, done: Answer<StoreEntry | undefined>): void {
    this.#call(() => this.store.read(key), entry => entry as StoreEntry | undefined, done)
  }

  remove (key: string, done: Answer<boolean>): void {
    this.#call(() => this.store.remove(key), acceptedIn, done)
  }

  close (done: Answer<void>): void {
    this.#call(() => this.store.close?.(), () => undefined, done)
  }

  get isIdle (): boolean {
    return this.#pending === 0
  }

  /** Settles once no operation is under way. What is out past its time is not waited for. */
  async idle (): Promise<void> {
    if (!this.isIdle) await new Promise<void>(resolve => { this.#idle.push(resolve) })
  }

  #call<T> (operation: () => unknown, check: (answer: unknown) => T, done: Answer<T>, onLate?: Answer<T>): void {
    const isProbe = this.#late >= MAX_LATE
    if (isProbe) {
      const now = performance.now()
      if (now - this.#lateAt < this.#ms) {
        return done(
          new Error(`The store has left ${this.#late} operations unanswered; no more are sent until it answers`)
        )
      }
      this.#lateAt = now
    }
    let value
    try {
      const answer = operation()
      if (isThenable(answer)) return this.#wait(promiseOf(answer), check, isProbe, done, onLate)
      value = check(answer)
    } catch (error) {
      return done(errorFrom(error))
    }
    if (this.#late > 0) this.#answered(isProbe)
    done(null, value)
  }

  #wait<T> (
    pending: Promise<unknown>, check: (answer: unknown) => T, isProbe: boolean, done: Answer<T>, onLate?: Answer<T>
  ): void {
    let state: 'pending' | 'settled' | 'late' = 'pending'
    this.#pending++
    const expire = (): void => {
      if (state === 'settled') return
      state = 'late'
      this.#late = Math.min(this.#late + 1, MAX_LATE)
      this.#lateAt = performance.now()
      done(new StoreTimeout(`The store did not answer within ${this.#ms} ms`))
      this.#over()
    }
    // A process that was frozen runs its timers first: what has arrived meanwhile must still be read.
    const timer = setTimeout(() => setImmediate(expire), this.#ms).unref()
    const settle: Answer<T> = (error, value) => {
      clearTimeout(timer)
      const wasLate = state === 'late'
      state = 'settled'
      if (!wasLate) {
        if (this.#late > 0) this.#answered(isProbe)
        done(error, value)
        return this.#over()
      }
      this.#late = Math.max(0, this.#late - 1)
      onLate?.(error, value)
    }
    pending.then(answer => {
      let value
      try {
        value = check(answer)
      } catch (error) {
        return settle(error)
      }
      settle(null, value)
    }, (error: unknown) => settle(errorFrom(error)))
  }

  /** What came of the operation has begun what follows from it. */
  #over (): void {
    if (--this.#pending === 0) for (const resolve of this.#idle.splice(0)) resolve()
  }

  /** An answer in time: the store is there, and of those that are out some may never come. */
  #answered (isProbe: boolean): void {
    this.#late = isProbe ? 0 : this.#late - 1
  }
}
