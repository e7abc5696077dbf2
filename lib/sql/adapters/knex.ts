import { checkLibrary, levelOf, type IsolationLevel } from '../check.ts'
import { splitParameters } from '../parameters.ts'
import type { Database, Row } from '../database.ts'

/** As much of a transaction of Knex as is used. */
export interface KnexTx {
  raw (text: string, values: string[]): PromiseLike<unknown>
}

export interface KnexTransactionOptions {
  /** Default: the database's own. */
  isolationLevel?: IsolationLevel | undefined
}

/** As much of Knex as is used. */
export interface KnexDb<Tx> {
  transaction<T> (
    work: (tx: Tx) => Promise<T>, options?: { isolationLevel?: IsolationLevel }
  ): Promise<T>
}

/**
 * Transactions of Knex; `work` gets its transaction.
 * @throws {TypeError} where `knex` is no instance of Knex.
 */
export function viaKnex<Tx extends KnexTx> (knex: KnexDb<Tx>): Database<Tx, KnexTransactionOptions> {
  checkLibrary(knex, 'transaction', 'viaKnex', 'an instance of Knex')
  return {
    async transaction (work, options) {
      const isolationLevel = levelOf(options, 'viaKnex')
      return await knex.transaction(work, isolationLevel === undefined ? {} : { isolationLevel })
    },
    async query (tx, text, values) {
      const { strings, order } = splitParameters(text)
      const { rows } = await tx.raw(strings.join('?'), order.map(n => values[n] as string)) as { rows: Row[] }
      return rows
    }
  }
}
