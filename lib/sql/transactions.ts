import type { FastifyRequest } from 'fastify'
import { duration, MAX_TIMER } from '../config/durations.ts'
import { executionOf } from '../lifecycle/execution.ts'
import { decodeResult, encodeResult, type Jsonified } from '../protocol/step-result.ts'
import { checkNames } from '../util/option-names.ts'
import { checkDatabase } from './check.ts'
import type { Database } from './database.ts'
import { assertOutside, runWork } from './inside-work.ts'
import { Once, plain, usedBefore, type Progress } from './once.ts'
import { statementsFor } from './statements.ts'

export interface TransactionsOptions {
  /** The table of `schema`, with a schema and a dot before it if need be. Default `'idempotency_transactions'`. */
  table?: string | undefined
  /** How often `work` is run again after a serialization failure or a deadlock (40001, 40P01). Default 3. */
  retries?: number | undefined
  /**
   * After how long the server ends a session that waits idle inside a transaction, as that of a frozen process does:
   * milliseconds, or text with a unit, such as `'30s'`. Default: the lease of the request's key.
   */
  idleTimeout?: number | string | undefined
}

/** See `transactions`. */
export interface Transaction<Tx, Options> {
  /**
   * Runs `work` in one transaction that also records its result, as JSON, under the request's key and `name`. Where
   * that was done before, or is done at the same time, gives the recorded result, and `work` does not run. Without a
   * key it is a plain transaction. `options` are those of the library's own transactions.
   *
   * `work` may run several times, each time in a new transaction, and only the last is committed.
   *
   * Rejects with what `work` throws, after a rollback, and with what the database says; with a TypeError for a result
   * that is no JSON, for a name that is empty, too long, or used twice in one execution, and inside another
   * transaction's `work`; and with an `IdempotencyError`, to be left to the plugin, where another request recorded the
   * result (`idempotency_key_mismatch`), where another execution holds the key or still has a transaction open
   * (`idempotency_in_progress`), where the store must be asked about that and is away
   * (`idempotency_store_unavailable`), and where `work` has ended the transaction by itself, by a commit or a rollback
   * of its own (`idempotency_outcome_unknown`): it does not run again then, in later executions either.
   */
  <T>(request: FastifyRequest, name: string, work: (tx: Tx) => T | Promise<T>, options?: Options): Promise<Jsonified<T>>
  /** The DDL of the table, for the application's own migrations. */
  readonly schema: string
  /** Forgets the results of a key, by its `id` (`request.idempotency.id`); `false` if there was none. */
  forget (id: string): Promise<boolean>
  /** Deletes rows that have expired, the oldest first and at most `limit` (default 1,000); returns how many. */
  sweep (limit?: number): Promise<number>
}

const MAX_NAME = 255
const IDLE_TIMEOUT = duration(1, MAX_TIMER)

/**
 * Transactions in a PostgreSQL database whose effects happen once per scope, key and name, whatever the key's store
 * does: what `work` writes, and that it has happened, are committed together.
 *
 * ```ts
 * const transaction = transactions(viaPg(app.pg.pool))
 * const order = await transaction(request, 'order', async tx => { … })
 * ```
 * @throws {TypeError} naming a wrong or unknown option, or where `database` is none.
 */
export function transactions<Tx, Options = never> (
  database: Database<Tx, Options>, options: TransactionsOptions = {}
): Transaction<Tx, Options> {
  checkDatabase(database)
  checkNames(options, ['table', 'retries', 'idleTimeout'], 'fastify-idempotency/sql: the options of transactions')
  const { table = 'idempotency_transactions', retries = 3 } = options
  const idleTimeout = options.idleTimeout === undefined ? undefined : IDLE_TIMEOUT.read(options.idleTimeout)
  const isWhole = (
    value: number, min: number
  ): boolean => Number.isSafeInteger(value) && value >= min && value <= MAX_TIMER
  if (!isWhole(retries, 0)) {
    throw new TypeError(
      'fastify-idempotency/sql: option "retries" must be a whole number, at least 0'
    )
  }
  if (options.idleTimeout !== undefined && idleTimeout === undefined) {
    throw new TypeError(`fastify-idempotency/sql: option "idleTimeout" must be ${IDLE_TIMEOUT.want}`)
  }
  const core = { database, sql: statementsFor(table), retries, idleTimeout }
  const known = new WeakMap<FastifyRequest, Progress>()
  const query = async (text: string, value: string): Promise<Array<Record<string, unknown>>> =>
    await database.transaction(async tx => await database.query(tx, text, [value]))

  const transaction = async <T>(
    request: FastifyRequest, name: string, work: (tx: Tx) => T | Promise<T>, options?: Options
  ): Promise<Jsonified<T>> => {
    if ((request as { idempotency?: unknown }).idempotency === undefined) {
      throw new TypeError(
        'fastify-idempotency/sql: the request is of an instance without the plugin; register it there'
      )
    }
    checkName(name)
    assertOutside(request, name)
    const run = async (tx: Tx): Promise<string> =>
      encodeResult('transaction', name, await runWork(request, name, work, tx))
    const execution = executionOf(request)
    if (execution === undefined) return decodeResult(await plain(core, run, options)) as Jsonified<T>
    const progress = known.get(request) ?? { names: new Set(), doubtful: new Set(), fence: undefined }
    known.set(request, progress)
    if (progress.names.has(name)) throw usedBefore(name)
    progress.names.add(name)
    const once = new Once(core, request, execution, progress, name, run, options)
    try {
      return decodeResult(await once.result()) as Jsonified<T>
    } catch (error) {
      progress.names.delete(name)
      if (once.inDoubt) progress.doubtful.add(name)
      throw error
    }
  }
  return Object.assign(transaction, {
    schema: core.sql.schema,
    async forget (id: string) {
      if (typeof id !== 'string') throw new TypeError('fastify-idempotency/sql: forget takes the id of a key')
      return (await query(core.sql.forget, id)).length > 0
    },
    async sweep (limit = 1_000) {
      if (!isWhole(limit, 1)) {
        throw new TypeError(
          'fastify-idempotency/sql: the limit of a sweep must be a whole number, at least 1'
        )
      }
      return Number((await query(core.sql.sweep, String(limit)))[0]?.['count'])
    }
  })
}

function checkName (name: unknown): asserts name is string {
  // A row's name is text: what has no UTF-8 form of its own, and NUL, cannot be told apart there, or not be written.
  if (typeof name === 'string' && name !== '' && name.length <= MAX_NAME && Buffer.from(name).toString() === name &&
    !name.includes('\0')) return
  throw new TypeError(`fastify-idempotency/sql: a transaction's name must be text of 1 to ${MAX_NAME} characters`)
}
