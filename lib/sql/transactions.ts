import { randomInt } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyRequest } from 'fastify'
import { duration, MAX_TIMER } from '../config/durations.ts'
import { executionOf, type Execution } from '../lifecycle/execution.ts'
import { IdempotencyError } from '../protocol/errors.ts'
import { matches } from '../protocol/fingerprint.ts'
import { decodeResult, encodeResult, type Jsonified } from '../protocol/step-result.ts'
import { inProgress, mismatch } from '../protocol/verdict.ts'
import { fromBase64, toBase64 } from '../util/base64.ts'
import { isRolledBack, isSerializationFailure, sqlStateOf, type Database } from './database.ts'
import { statementsFor, type Statements } from './statements.ts'

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
   * that is no JSON, and for a name that is empty, too long, or used twice in one execution; and with an
   * `IdempotencyError`, to be left to the plugin, where another request recorded the result
   * (`idempotency_key_mismatch`), where another execution holds the key or still has a transaction open
   * (`idempotency_in_progress`), where the store must be asked about that and is away
   * (`idempotency_store_unavailable`), and where `work` has committed by itself (`idempotency_outcome_unknown`).
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
/** Of tries that meet other executions; each is another's progress. */
const MAX_TURNS = 10
const MAX_FENCES = 3
/** A session that is ended by its idle timeout takes a moment to go. */
const FENCE_MARGIN_MS = 1_000
const IDLE_TIMEOUT = duration(1, MAX_TIMER)

/** What is known of a request's transactions while it runs. */
interface Progress {
  names: Set<string>
  fence: Promise<void> | undefined
}

/**
 * Transactions in a PostgreSQL database whose effects happen once per scope, key and name, whatever the key's store
 * does: what `work` writes, and that it has happened, are committed together.
 *
 * ```ts
 * const transaction = transactions(viaPg(app.pg.pool))
 * const order = await transaction(request, 'order', async tx => { … })
 * ```
 * @throws {TypeError} naming a wrong option.
 */
export function transactions<Tx, Options = never> (
  database: Database<Tx, Options>, options: TransactionsOptions = {}
): Transaction<Tx, Options> {
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
    const run = async (tx: Tx): Promise<string> => encodeResult('transaction', name, await work(tx))
    const execution = executionOf(request)
    if (execution === undefined) return decodeResult(await plain(core, run, options)) as Jsonified<T>
    const progress = known.get(request) ?? { names: new Set(), fence: undefined }
    known.set(request, progress)
    if (progress.names.has(name)) {
      throw new TypeError(`fastify-idempotency/sql: the transaction "${name}" was begun before in this request; ` +
        'give each a name of its own')
    }
    progress.names.add(name)
    try {
      return decodeResult(await new Once(core, execution, progress, name, run, options).result()) as Jsonified<T>
    } catch (error) {
      progress.names.delete(name)
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

interface Core<Tx, Options> {
  database: Database<Tx, Options>
  sql: Statements
  retries: number
  idleTimeout: number | undefined
}

/** Without a key: retried alike, but what became of a COMMIT without an answer cannot be known. */
async function plain<Tx, Options> (
  { database, retries }: Core<Tx, Options>, run: (tx: Tx) => Promise<string>, options: Options | undefined
): Promise<string> {
  for (let runs = 1; runs <= retries; runs++) {
    try {
      return await database.transaction(run, options)
    } catch (error) {
      if (!isSerializationFailure(sqlStateOf(error))) throw error
      await pause(runs)
    }
  }
  return await database.transaction(run, options)
}

/** How far one transaction came. */
interface Try {
  phase: 'opening' | 'working' | 'committing'
  /** What failed inside. */
  failure: { error: unknown } | undefined
  /** RECORD has met another execution's fence. */
  fencedBy: string | undefined
}

/** What a transaction has found, or done. */
type Found =
  | { result: string }
  /** Another execution's fence, or its attempt to set one, stands in the way; '' where its token is not known. */
  | { fencedBy: string }
  /** What was in the way is gone. */
  | 'again'

/**
 * One name in one execution. OPEN, the work, RECORD and COMMIT, as often as it takes:
 *
 * | what came                            | where                 | then                                          |
 * |--------------------------------------|-----------------------|-----------------------------------------------|
 * | a recorded result                    | OPEN                  | that is the result                            |
 * | another execution's fence            | OPEN, RECORD          | ask the store who holds the key: fence or 409 |
 * | 40001, 40P01                         | OPEN                  | again, a few times                            |
 * | 40001, 40P01                         | work, RECORD, COMMIT  | again, `retries` times                        |
 * | no answer                            | COMMIT                | again: OPEN finds the result, or nothing      |
 * | any other error                      | anywhere              | that is the error; nothing was committed      |
 */
class Once<Tx, Options> {
  readonly #core: Core<Tx, Options>
  readonly #execution: Execution
  readonly #progress: Progress
  readonly #name: string
  readonly #run: (tx: Tx) => Promise<string>
  readonly #options: Options | undefined
  #runs = 0
  /** The error that came in the place of COMMIT's answer, until it is known what became of it. */
  #unanswered: { error: unknown } | undefined

  constructor (
    core: Core<Tx, Options>, execution: Execution, progress: Progress, name: string, run: (tx: Tx) => Promise<string>,
    options: Options | undefined
  ) {
    this.#core = core
    this.#execution = execution
    this.#progress = progress
    this.#name = name
    this.#run = run
    this.#options = options
  }

  /** The result as it is recorded. */
  async result (): Promise<string> {
    const fingerprint = await this.#execution.fingerprint()
    if (this.#execution.attempt > 1) await this.#fenceOnce()
    let fences = 0
    let turn = 1
    let found = await this.#try(fingerprint, turn)
    while (found === 'again' || 'fencedBy' in found) {
      if (found === 'again') await pause(turn)
      else if (++fences > MAX_FENCES) throw this.#lost()
      else await this.#contest(found.fencedBy)
      found = await this.#try(fingerprint, ++turn)
    }
    return found.result
  }

  /** One transaction. What may be cured by another is no error. */
  async #try (fingerprint: string, turn: number): Promise<Found> {
    const { database } = this.#core
    // A library may go on alone although its work is still under way: what that finds is of this try only.
    const state: Try = { phase: 'opening', failure: undefined, fencedBy: undefined }
    try {
      return await database.transaction(async tx => {
        try {
          return await this.#inside(tx, fingerprint, state)
        } catch (error) {
          // What the library says instead, once it has rolled back, may be another error.
          state.failure = { error }
          throw error
        }
      }, this.#options)
    } catch (error) {
      if (state.fencedBy !== undefined) return { fencedBy: state.fencedBy }
      return this.#failed(state, state.failure === undefined ? error : state.failure.error, turn)
    }
  }

  async #inside (tx: Tx, fingerprint: string, state: Try): Promise<Found> {
    const { database, sql, retries, idleTimeout } = this.#core
    const { id, token, attempt, lease } = this.#execution
    const [opened = {}] = await database.query(tx, sql.open, [
      id, this.#name, token, String(attempt), fingerprint, this.#life, String(idleTimeout ?? lease)
    ])
    if (typeof opened['place'] !== 'string') return await this.#read(tx, fingerprint, opened['locked'] === 'true')
    if (this.#unanswered !== undefined) {
      // Nothing was committed then.
      const { error } = this.#unanswered
      this.#unanswered = undefined
      if (this.#runs > retries) throw error
    }
    this.#runs++
    state.phase = 'working'
    const result = await this.#run(tx)
    const recorded = await database.query(tx, sql.record, [id, token, toBase64(result), opened['place'], this.#name])
    if (recorded.length === 0) {
      state.fencedBy = ''
      throw new Error('fastify-idempotency/sql: a later execution has set its fence')
    }
    state.phase = 'committing'
    return { result }
  }

  async #read (tx: Tx, fingerprint: string, locked: boolean): Promise<Found> {
    const { database, sql } = this.#core
    const rows = await database.query(tx, sql.read, [this.#execution.id, this.#name])
    const row = rows.find(({ name }) => name !== '')
    if (row !== undefined) {
      const { fingerprint: known, result } = row
      if (!matches(String(known), fingerprint)) throw mismatch(String(known), fingerprint, this.#execution.keyName)
      if (typeof result !== 'string') throw committedByItself(this.#name)
      return { result: fromBase64(result) }
    }
    const fence = rows.find(({ token }) => token !== this.#execution.token)
    if (fence !== undefined) return { fencedBy: String(fence['token']) }
    return locked ? 'again' : { fencedBy: '' }
  }

  /** 'again', or throws. */
  #failed ({ phase }: Try, error: unknown, turn: number): 'again' {
    if (error instanceof IdempotencyError) throw error
    const sqlState = sqlStateOf(error)
    if (phase === 'committing' && !isRolledBack(sqlState)) this.#unanswered ??= { error }
    const inDoubt = this.#unanswered !== undefined
    const mayRunAgain = phase === 'opening' || this.#runs <= this.#core.retries
    if (turn < MAX_TURNS && (inDoubt || (isSerializationFailure(sqlState) && mayRunAgain))) return 'again'
    throw this.#unanswered === undefined ? error : this.#unanswered.error
  }

  /** Another execution may hold the key: the store knows. If it does not, its fence is not the last word. */
  async #contest (fencedBy: string): Promise<void> {
    if (!await this.#execution.renew()) throw this.#lost()
    await this.#fence(fencedBy)
  }

  /** Before the first transaction of a later execution: from then on no earlier one can commit. */
  async #fenceOnce (): Promise<void> {
    const progress = this.#progress
    progress.fence ??= this.#fence('')
    try {
      await progress.fence
    } catch (error) {
      progress.fence = undefined
      throw error
    }
  }

  async #fence (replaced: string): Promise<void> {
    const { database, sql, idleTimeout } = this.#core
    const { id, token, attempt, lease } = this.#execution
    const wait = String(Math.min(MAX_TIMER, (idleTimeout ?? lease) + FENCE_MARGIN_MS))
    let seen = replaced
    for (let turn = 1; turn <= MAX_TURNS; turn++) {
      try {
        const other = await database.transaction(async tx => {
          const set = await database.query(tx, sql.fence, [id, token, String(attempt), this.#life, wait, seen])
          if (set.length > 0) return undefined
          return String((await database.query(tx, sql.read, [id, '']))[0]?.['token'])
        })
        if (other === undefined) return
        // Set by an execution that is not an earlier one, as far as the attempts tell: a store that lost its keys
        // counts anew.
        if (!await this.#execution.renew()) throw this.#lost()
        seen = other
      } catch (error) {
        const state = sqlStateOf(error)
        // An earlier execution still has a transaction open.
        if (state === '55P03') throw inProgress(this.#execution)
        if (!isSerializationFailure(state)) throw error
        await pause(turn)
      }
    }
    throw this.#lost()
  }

  /** Milliseconds that a row lives. */
  get #life (): string {
    return String(this.#execution.ttl + this.#execution.lease)
  }

  #lost (): IdempotencyError {
    return inProgress(this.#execution)
  }
}

function committedByItself (name: string): IdempotencyError {
  return new IdempotencyError('idempotency_outcome_unknown',
    `The transaction "${name}" was committed by the work itself, so that its result is not known.`)
}

/** Whoever is in the way needs a moment, and those who wait should not come at once. */
async function pause (turn: number): Promise<void> {
  await sleep(randomInt(5 * 2 ** Math.min(turn, 7)))
}
