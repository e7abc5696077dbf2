/** Whether there is something to wait for. @throws what the value's own `then` throws when it is asked for. */
export function isThenable (value: unknown): value is PromiseLike<unknown> {
  return typeof (value as PromiseLike<unknown> | null | undefined)?.then === 'function'
}

/**
 * A promise that asks a thenable once, whatever it is: one that does its work at each `then`, as query builders do,
 * that throws in the place of rejecting, or that answers twice.
 */
export function promiseOf<T> (thenable: PromiseLike<T>): Promise<T> {
  const isPlain = thenable instanceof Promise && thenable.then === Promise.prototype.then
  return isPlain ? thenable as Promise<T> : adopted(thenable)
}

/** A function of its own: what a closure may need is made wherever it could be. */
function adopted<T> (thenable: PromiseLike<T>): Promise<T> {
  return new Promise(resolve => { resolve(thenable) })
}

/**
 * For the answer of a function among the options that is not waited for. A rejection is heard here, and nowhere else.
 * @throws {TypeError} when it is a promise, which would count as true.
 */
export function assertAnswered (answer: unknown, option: string): void {
  if (!isThenable(answer)) return
  promiseOf(answer).catch(() => {})
  throw new TypeError(`fastify-idempotency: option "${option}" must be a function that answers at once, got a promise`)
}

/** What was thrown, as an Error: a rejection with nothing would count as success. */
export function errorFrom (thrown: unknown): Error {
  try {
    if (thrown instanceof Error) return thrown
    return new Error(`Something was thrown that is no Error: ${String(thrown)}`, { cause: thrown })
  } catch {
    return new Error('Something was thrown that is no Error, and that has no text')
  }
}
