import { checkLibrary } from '../check.ts'
import { ClosedTransactions } from './closed.ts'
import { checkCommitted, COMMIT } from './commit.ts'
import type { Database, Row } from '../database.ts'

/** As much of a transaction of postgres (https://github.com/porsager/postgres) as is used. */
export interface PostgresTx {
  unsafe (text: string, values: string[]): PromiseLike<Iterable<unknown> & { command?: string }>
}

/** As much of its `sql` as is used. */
export interface PostgresSql<Tx> {
  begin (options: string, work: (tx: Tx) => Promise<unknown>): Promise<unknown>
}

/** What may stand after BEGIN: modes alone, and no statement. */
const MODES = /^[a-z ,]*$/i

/**
 * Transactions of postgres; `work` gets its `sql` of the transaction. Options: what stands after BEGIN, as text.
 * @throws {TypeError} where `sql` is not that of postgres.
 */
export function viaPostgres<Tx extends PostgresTx> (sql: PostgresSql<Tx>): Database<Tx, string> {
  checkLibrary(sql, 'begin', 'viaPostgres', 'sql of postgres')
  const closed = new ClosedTransactions<Tx>()
  return {
    async transaction<T> (work: (tx: Tx) => Promise<T>, options = ''): Promise<T> {
      if (typeof options !== 'string' || !MODES.test(options)) {
        throw new TypeError('fastify-idempotency/sql: the options of a transaction of viaPostgres must be the text ' +
          'after BEGIN, such as \'isolation level serializable\'')
      }
      let worked = undefined as { result: T, commit: Promise<{ command?: string }> } | undefined
      const run = async (tx: Tx): Promise<void> => {
        const result = await work(tx)
        closed.check(tx)
        // Not waited for here: the library's own COMMIT goes after it in the same breath.
        const commit = new Promise<{ command?: string }>((resolve, reject) => {
          tx.unsafe(COMMIT, []).then(resolve, reject)
        })
        commit.catch(() => {})
        worked = { result, commit }
      }
      await closed.run(async work => await sql.begin(options, work), run).catch(error => {
        // What became of the work is told by the answer to its own COMMIT.
        if (worked === undefined) throw error
      })
      const { result, commit } = worked as NonNullable<typeof worked>
      checkCommitted(await commit)
      return result
    },
    async query (tx, text, values) {
      closed.check(tx)
      return [...await tx.unsafe(text, values)] as Row[]
    }
  }
}
