import type { Awaitable } from './store.ts'

/**
 * Runs one store operation and calls `done` once: with its value, its error, or an error
 * after `ms`. An operation that answers at once is answered at once. What arrives after
 * the deadline goes to `late`.
 */
export function within<T> (ms: number, operation: () => Awaitable<T>, done: (error: unknown, value?: T) => void, late?: (value: T) => void): void {
  let pending: Awaitable<T>
  try {
    pending = operation()
  } catch (error) {
    return done(error)
  }
  if (!isPromise(pending)) return done(null, pending)
  let expired = false
  const timer = setTimeout(() => {
    expired = true
    done(new Error(`The store did not answer within ${ms} ms`))
  }, ms).unref()
  pending.then(value => {
    clearTimeout(timer)
    if (expired) late?.(value)
    else done(null, value)
  }, (error: unknown) => {
    clearTimeout(timer)
    if (!expired) done(error)
  })
}

/** Calls back with a value that may be there already. */
export function whenReady<T> (value: Awaitable<T>, done: (error: unknown, value?: T) => void): void {
  if (isPromise(value)) value.then(result => done(null, result), (error: unknown) => done(error))
  else done(null, value)
}

function isPromise<T> (value: Awaitable<T>): value is Promise<T> {
  return typeof (value as Promise<T> | null | undefined)?.then === 'function'
}
