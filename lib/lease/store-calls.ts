import {
  acceptedIn, claimIn, recordingIn, stepsIn, type IdempotencyStore, type StoreBinding, type StoreClaim,
  type StoreClaimRequest, type StoreEntry, type StoreRecording, type StoreStep
} from '../stores/contract.ts'
import { Deadlines, type Timed } from './deadlines.ts'
import { errorFrom, isThenable, promiseOf } from '../util/promise.ts'

export type Answer<T> = (error: unknown, value?: T) => void

/**
 * One call of the store, and who hears of its answer. An object, since each request has some: as functions they would
 * take several times the memory.
 */
export interface Operation<T> {
  send (store: IdempotencyStore): unknown
  /** The store's answer, once it is one of the contract's. @throws {StoreAnswerError} when it is none. */
  check (answer: unknown): T
  answered (error: unknown, value?: T): void
  /** What comes after the operation's time was over. */
  late? (error: unknown, value?: T): void
}

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
  readonly #deadlines = new Deadlines<PendingCall>()
  readonly #idle: Array<() => void> = []

  constructor (store: IdempotencyStore, ms: number) {
    this.store = store
    this.#ms = ms
  }

  claim (key: string, request: StoreClaimRequest, answered: Answer<StoreClaim>): void {
    this.run({ send: store => store.claim(key, request), check: claimIn, answered })
  }

  renew (
    key: string, token: string, lease: number, ttl: number, fingerprint: string, bind: boolean,
    answered: Answer<boolean>, late: Answer<boolean>
  ): void {
    this.run({
      send: store => store.renew(key, token, lease, ttl, fingerprint, bind), check: acceptedIn, answered, late
    })
  }

  release (
    key: string, token: string, ttl: number, executed: boolean, binding: StoreBinding | undefined,
    answered: Answer<boolean>
  ): void {
    this.run({ send: store => store.release(key, token, ttl, executed, binding), check: acceptedIn, answered })
  }

  /** Whether the store records steps. */
  get recordsSteps (): boolean {
    return this.store.record !== undefined && this.store.recorded !== undefined
  }

  record (
    key: string, token: string, fingerprint: string, name: string, result: string | undefined,
    answered: Answer<StoreRecording>, late: Answer<StoreRecording>
  ): void {
    this.run({
      send: store => store.record?.(key, token, fingerprint, name, result), check: recordingIn, answered, late
    })
  }

  recorded (key: string, answered: Answer<StoreStep[]>): void {
    this.run({ send: store => store.recorded?.(key), check: stepsIn, answered })
  }

  read (key: string, answered: Answer<StoreEntry | undefined>): void {
    this.run({ send: store => store.read(key), check: entry => entry as StoreEntry | undefined, answered })
  }

  remove (key: string, answered: Answer<boolean>): void {
    this.run({ send: store => store.remove(key), check: acceptedIn, answered })
  }

  close (answered: Answer<void>): void {
    this.run({ send: store => store.close?.(), check: () => undefined, answered })
  }

  get isIdle (): boolean {
    return this.#pending === 0
  }

  /** Settles once no operation is under way. What is out past its time is not waited for. */
  async idle (): Promise<void> {
    if (!this.isIdle) await new Promise<void>(resolve => { this.#idle.push(resolve) })
  }

  run<T> (operation: Operation<T>): void {
    const isProbe = this.#late >= MAX_LATE
    if (isProbe) {
      const now = performance.now()
      if (now - this.#lateAt < this.#ms) {
        return operation.answered(
          new Error(`The store has left ${this.#late} operations unanswered; no more are sent until it answers`)
        )
      }
      this.#lateAt = now
    }
    let value
    try {
      const answer = operation.send(this.store)
      if (isThenable(answer)) return this.#wait(promiseOf(answer), operation, isProbe)
      value = operation.check(answer)
    } catch (error) {
      return operation.answered(errorFrom(error))
    }
    if (this.#late > 0) this.#answered(isProbe)
    operation.answered(null, value)
  }

  #wait<T> (pending: Promise<unknown>, operation: Operation<T>, isProbe: boolean): void {
    this.#pending++
    const call = new PendingCall(this, operation, isProbe, performance.now() + this.#ms)
    this.#deadlines.add(call)
    pending.then(answer => call.answered(answer), (error: unknown) => call.settle(errorFrom(error)))
  }

  /** A call's time is over. */
  expired ({ operation }: PendingCall): void {
    this.#late = Math.min(this.#late + 1, MAX_LATE)
    this.#lateAt = performance.now()
    operation.answered(new StoreTimeout(`The store did not answer within ${this.#ms} ms`))
    this.#over()
  }

  /** The store has answered a call, or failed at it. */
  settled (call: PendingCall, error: unknown, value: unknown): void {
    const { operation, isLate, isProbe } = call
    if (!isLate) {
      this.#deadlines.delete(call)
      if (this.#late > 0) this.#answered(isProbe)
      operation.answered(error, value)
      return this.#over()
    }
    this.#late = Math.max(0, this.#late - 1)
    operation.late?.(error, value)
  }

  /** What follows from the operation has begun. */
  #over (): void {
    if (--this.#pending === 0) for (const resolve of this.#idle.splice(0)) resolve()
  }

  /** An answer in time: the store is there, and of those that are out some may never come. */
  #answered (isProbe: boolean): void {
    this.#late = isProbe ? 0 : this.#late - 1
  }
}

/** An operation whose answer is waited for. */
class PendingCall implements Timed<PendingCall> {
  readonly #calls: StoreCalls
  readonly operation: Operation<unknown>
  readonly isProbe: boolean
  readonly until: number
  previous: PendingCall | undefined
  next: PendingCall | undefined
  isLate = false

  constructor (calls: StoreCalls, operation: Operation<unknown>, isProbe: boolean, until: number) {
    this.#calls = calls
    this.operation = operation
    this.isProbe = isProbe
    this.until = until
  }

  expire (): void {
    this.isLate = true
    this.#calls.expired(this)
  }

  answered (answer: unknown): void {
    let value
    try {
      value = this.operation.check(answer)
    } catch (error) {
      return this.settle(error)
    }
    this.settle(null, value)
  }

  settle (error: unknown, value?: unknown): void {
    this.#calls.settled(this, error, value)
  }
}
