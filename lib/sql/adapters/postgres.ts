import { ClosedTransactions } from './closed.ts'
import type { Database, Row } from '../database.ts'

/** As much of a transaction of postgres (https://github.com/porsager/postgres) as is used. */
export interface PostgresTx {
  unsafe (text: string, values: string[]): PromiseLike<Iterable<unknown>>
}

/** As much of its `sql` as is used. */
export interface PostgresSql<Tx> {
  begin (options: string, work: (tx: Tx) => Promise<unknown>): Promise<unknown>
}

/** Transactions of postgres; `work` gets its `sql` of the transaction. Options: what stands after BEGIN, as text. */
export function viaPostgres<Tx extends PostgresTx> (sql: PostgresSql<Tx>): Database<Tx, string> {
  const closed = new ClosedTransactions<Tx>()
  return {
    async transaction (work, options = '') {
      return await closed.run(async work => await sql.begin(options, work), work)
    },
    async query (tx, text, values) {
      closed.check(tx)
      return [...await tx.unsafe(text, values)] as Row[]
    }
  }
}
