import { splitParameters } from '../parameters.ts'
import type { Database, Row } from '../database.ts'

/** As much of a transaction of Knex as is used. */
export interface KnexTx {
  raw (text: string, values: string[]): PromiseLike<unknown>
}

export interface KnexTransactionOptions {
  /** Default: the database's own. */
  isolationLevel?: 'read committed' | 'repeatable read' | 'serializable' | undefined
}

/** As much of Knex as is used. */
export interface KnexDb<Tx> {
  transaction<T> (
    work: (tx: Tx) => Promise<T>, options?: { isolationLevel?: 'read committed' | 'repeatable read' | 'serializable' }
  ): Promise<T>
}

/** Transactions of Knex; `work` gets its transaction. */
export function viaKnex<Tx extends KnexTx> (knex: KnexDb<Tx>): Database<Tx, KnexTransactionOptions> {
  return {
    async transaction (work, { isolationLevel } = {}) {
      return await knex.transaction(work, isolationLevel === undefined ? {} : { isolationLevel })
    },
    async query (tx, text, values) {
      const { strings, order } = splitParameters(text)
      const { rows } = await tx.raw(strings.join('?'), order.map(n => values[n] as string)) as { rows: Row[] }
      return rows
    }
  }
}
