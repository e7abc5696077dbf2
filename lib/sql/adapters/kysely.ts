import { checkLibrary, levelOf, type IsolationLevel } from '../check.ts'
import type { Database, Row } from '../database.ts'

/** As much of a transaction of Kysely as is used. */
export interface KyselyTx {
  executeQuery (query: object): Promise<{ rows: unknown[] }>
}

/** As much of Kysely's transaction builder as is used. */
export interface KyselyTransactionBuilder<Tx> {
  setIsolationLevel (level: IsolationLevel): KyselyTransactionBuilder<Tx>
  execute<T> (work: (tx: Tx) => Promise<T>): Promise<T>
}

/** As much of Kysely as is used. */
export interface KyselyDb<Tx> {
  transaction (): KyselyTransactionBuilder<Tx>
}

export interface KyselyTransactionOptions {
  /** Default: the database's own. */
  isolationLevel?: IsolationLevel | undefined
}

/**
 * Transactions of Kysely; `work` gets its `Transaction<DB>`.
 * @throws {TypeError} where `db` is no instance of Kysely.
 */
export function viaKysely<Tx extends KyselyTx> (db: KyselyDb<Tx>): Database<Tx, KyselyTransactionOptions> {
  checkLibrary(db, 'transaction', 'viaKysely', 'an instance of Kysely')
  return {
    async transaction (work, options) {
      const isolationLevel = levelOf(options, 'viaKysely')
      const builder = db.transaction()
      return await (isolationLevel === undefined ? builder : builder.setIsolationLevel(isolationLevel)).execute(work)
    },
    async query (tx, text, values) {
      // What CompiledQuery.raw makes of it.
      const query = { kind: 'RawNode', sqlFragments: [text], parameters: [] }
      const queryId = { queryId: 'fastify-idempotency' }
      return (await tx.executeQuery({ sql: text, parameters: values, query, queryId })).rows as Row[]
    }
  }
}
