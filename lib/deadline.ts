import type { Awaitable } from './store.ts'

/**
 * Runs one store operation and calls `done` once: with its value, its error, or an error
 * once its time is over. An operation that answers at once is answered at once. What
 * comes after the time was over, a value or a failure, goes to `late`.
 */
export type Bounded = <T>(operation: () => Awaitable<T>, done: Answer<T>, late?: Answer<T>) => void
type Answer<T> = (error: unknown, value?: T) => void

/** No answer in time. One may still come. */
export class StoreTimeout extends Error {
  override readonly name = 'StoreTimeout'
}

const MAX_LATE = 1_000

/**
 * The way to the store, which bounds time and number: every operation is given `ms`. While
 * a thousand are out past their time, further ones fail without being sent: a client that
 * queues commands while the store is away must not queue without end. One in `ms` is sent all
 * the same; if it is answered in time, those that are out may have been lost, and count no more.
 */
export function bounded (ms: number): Bounded {
  let late = 0
  let lateAt = 0
  return (operation, done, onLate) => {
    const isProbe = late >= MAX_LATE
    if (isProbe) {
      const now = performance.now()
      if (now - lateAt < ms) return done(new Error(`The store has left ${late} operations unanswered; no more are sent until it answers`))
      lateAt = now
    }
    let pending
    try {
      pending = operation()
    } catch (error) {
      return done(error)
    }
    if (!isPromise(pending)) return done(null, pending)
    let state: 'pending' | 'settled' | 'late' = 'pending'
    const expire = (): void => {
      if (state === 'settled') return
      state = 'late'
      late = Math.min(late + 1, MAX_LATE)
      lateAt = performance.now()
      done(new StoreTimeout(`The store did not answer within ${ms} ms`))
    }
    // A process that was frozen runs its timers first: what has arrived meanwhile must still be read.
    const timer = setTimeout(() => setImmediate(expire), ms).unref()
    const settle: typeof done = (error, value) => {
      clearTimeout(timer)
      const wasLate = state === 'late'
      state = 'settled'
      if (!wasLate) {
        if (isProbe) late = 0
        return done(error, value)
      }
      late = Math.max(0, late - 1)
      onLate?.(error, value)
    }
    pending.then(value => settle(null, value), (error: unknown) => settle(error))
  }
}

/** Whether a value is still to come. */
export function isPromise<T> (value: Awaitable<T>): value is Promise<T> {
  return typeof (value as Promise<T> | null | undefined)?.then === 'function'
}
