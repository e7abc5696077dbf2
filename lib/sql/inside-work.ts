import { AsyncLocalStorage } from 'node:async_hooks'

interface Work { request: object, name: string, isOver: boolean }

/**
 * Whose `work` is running: transactions of one request may run at once, and only what is called from inside `work`
 * would wait for a connection while it keeps another.
 */
const running = new AsyncLocalStorage<Work>()

export async function runWork<Tx, T> (
  request: object, name: string, work: (tx: Tx) => T | Promise<T>, tx: Tx
): Promise<T> {
  const own = { request, name, isOver: false }
  try {
    return await running.run(own, async () => await work(tx))
  } finally {
    // What it has left running is not inside any more.
    own.isOver = true
  }
}

/** @throws {TypeError} inside the `work` of another transaction of the request. */
export function assertOutside (request: object, name: string): void {
  const outer = running.getStore()
  if (outer?.request !== request || outer.isOver) return
  throw new TypeError(`fastify-idempotency/sql: the transaction "${name}" was begun inside the work of ` +
    `"${outer.name}", where it would wait for a connection of its own; begin it before or after, or do its work in ` +
    `that of "${outer.name}"`)
}
