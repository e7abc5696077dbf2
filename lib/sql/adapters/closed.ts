/**
 * For transactions of postgres (https://github.com/porsager/postgres), by itself or under another library: up to
 * version 3.4 at least, a statement that is sent on a connection which has closed, and a ROLLBACK too, ends the
 * process.
 */
export class ClosedTransactions<Tx extends object> {
  readonly #closed = new WeakSet<Tx>()

  /**
   * Runs `work` by `begin`; where that has rejected, because the connection closed, the work's own end stays out of it.
   */
  async run<T> (begin: (work: (tx: Tx) => Promise<T>) => Promise<unknown>, work: (tx: Tx) => Promise<T>): Promise<T> {
    let begun: Tx | undefined
    try {
      return await begin(async tx => {
        begun = tx
        try {
          return await work(tx)
        } catch (error) {
          // What becomes of the connection is told a moment later.
          await new Promise(resolve => { setImmediate(resolve) })
          if (this.#closed.has(tx)) await new Promise(() => {})
          throw error
        }
      }) as T
    } catch (error) {
      if (begun !== undefined) this.#closed.add(begun)
      throw error
    }
  }

  /** @throws {Error} where nothing may be sent any more. */
  check (tx: Tx): void {
    if (this.#closed.has(tx)) {
      throw new Error(
        'fastify-idempotency/sql: the transaction is over: its connection has closed'
      )
    }
  }
}
