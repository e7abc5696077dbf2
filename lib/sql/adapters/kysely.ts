import type { Database, Row } from '../database.ts'

/** As much of a transaction of Kysely as is used. */
export interface KyselyTx {
  executeQuery (query: object): Promise<{ rows: unknown[] }>
}

/** As much of Kysely's transaction builder as is used. */
export interface KyselyTransactionBuilder<Tx> {
  setIsolationLevel (level: 'read committed' | 'repeatable read' | 'serializable'): KyselyTransactionBuilder<Tx>
  execute<T> (work: (tx: Tx) => Promise<T>): Promise<T>
}

/** As much of Kysely as is used. */
export interface KyselyDb<Tx> {
  transaction (): KyselyTransactionBuilder<Tx>
}

export interface KyselyTransactionOptions {
  /** Default: the database's own. */
  isolationLevel?: 'read committed' | 'repeatable read' | 'serializable' | undefined
}

/** Transactions of Kysely; `work` gets its `Transaction<DB>`. */
export function viaKysely<Tx extends KyselyTx> (db: KyselyDb<Tx>): Database<Tx, KyselyTransactionOptions> {
  return {
    async transaction (work, { isolationLevel } = {}) {
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
