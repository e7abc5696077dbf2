import { checkLibrary, levelOf, LEVELS } from '../check.ts'
import { splitParameters } from '../parameters.ts'
import { ClosedTransactions } from './closed.ts'
import { checkCommitted, COMMIT } from './commit.ts'
import type { Database, Row } from '../database.ts'

/** Drizzle's own options; it writes them into its BEGIN as they are given. */
const CONFIG = ['isolationLevel', 'accessMode', 'deferrable']

/** As much of a transaction of Drizzle as is used. */
export interface DrizzleTx {
  execute (query: never): PromiseLike<unknown>
}

/** As much of Drizzle's database as is used. */
export interface DrizzleDb<Tx, Config> {
  transaction<T> (work: (tx: Tx) => Promise<T>, config?: Config): Promise<T>
  readonly $client?: unknown
}

/** As much of Drizzle's `sql` as is used. */
export interface DrizzleSql {
  (strings: TemplateStringsArray, ...values: unknown[]): unknown
}

/**
 * Transactions of Drizzle; `work` gets its transaction. `sql` is that of drizzle-orm, which statements are made of.
 * Options: Drizzle's own configuration of a transaction.
 * @throws {TypeError} where `db` is no database of Drizzle, or `sql` is missing.
 */
export function viaDrizzle<Tx extends DrizzleTx, Config> (
  db: DrizzleDb<Tx, Config>, sql: DrizzleSql
): Database<Tx, Config> {
  checkLibrary(db, 'transaction', 'viaDrizzle', 'a database of Drizzle')
  if (typeof sql !== 'function') {
    throw new TypeError('fastify-idempotency/sql: viaDrizzle needs `sql` of drizzle-orm as its second argument')
  }
  const closed = new ClosedTransactions<Tx>()
  const isOverPostgres = typeof (db.$client as { begin?: unknown } | undefined)?.begin === 'function'
  const raw = (text: string): never => sql(Object.assign([text], { raw: [text] })) as never
  return {
    async transaction<T> (work: (tx: Tx) => Promise<T>, config?: Config): Promise<T> {
      levelOf(config, 'viaDrizzle', CONFIG, ['read uncommitted', ...LEVELS])
      const run = async (tx: Tx): Promise<T> => {
        const result = await work(tx)
        if (isOverPostgres) {
          closed.check(tx)
          checkCommitted(await tx.execute(raw(COMMIT)) as { command?: string })
        }
        return result
      }
      return await closed.run(async work => await db.transaction(work, config), run)
    },
    async query (tx, text, values) {
      closed.check(tx)
      const { strings, order } = splitParameters(text)
      const statement = sql(Object.assign(strings, { raw: strings }), ...order.map(n => values[n]))
      // pg and PGlite answer with an object, postgres with the rows themselves.
      const answer = await tx.execute(statement as never) as Row[] | { rows: Row[] }
      return 'rows' in answer ? answer.rows : [...answer]
    }
  }
}
