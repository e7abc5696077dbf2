import { randomInt } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyRequest } from 'fastify'
import { MAX_TIMER } from '../config/durations.ts'
import type { Execution } from '../lifecycle/execution.ts'
import { IdempotencyError } from '../protocol/errors.ts'
import { matches } from '../protocol/fingerprint.ts'
import { inProgress, mismatch } from '../protocol/verdict.ts'
import { fromBase64, toBase64 } from '../util/base64.ts'
import { errorFrom } from '../util/promise.ts'
import { isRolledBack, isSerializationFailure, sqlStateOf, type Database, type Row } from './database.ts'
import type { Statements } from './statements.ts'

/** Of tries that meet other executions; each is another's progress. */
const MAX_TURNS = 10
const MAX_FENCES = 3
/** A session that is ended by its idle timeout takes a moment to go. */
const FENCE_MARGIN_MS = 1_000
/** The server has ended a session that was idle in its transaction. */
const IDLE_SESSION = '25P03'

/** What is known of a request's transactions while it runs. */
export interface Progress {
  names: Set<string>
  /** Names whose transaction has failed without it being known whether it was committed. */
  doubtful: Set<string>
  fence: Promise<void> | undefined
}

export interface Core<Tx, Options> {
  database: Database<Tx, Options>
  sql: Statements
  retries: number
  idleTimeout: number | undefined
}

/** Without a key: retried alike, but what became of a COMMIT without an answer cannot be known. */
export async function plain<Tx, Options> (
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
  /** The work has ended the transaction that OPEN began. */
  ended: boolean
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
 * | another transaction than OPEN's      | RECORD                | mark the row: nobody runs the work again      |
 * | 55P03                                | OPEN                  | another execution has the row: 409            |
 * | 40001, 40P01                         | OPEN                  | again, a few times                            |
 * | 40001, 40P01                         | work, RECORD, COMMIT  | again, `retries` times                        |
 * | no answer                            | COMMIT                | again: OPEN finds the result, or nothing      |
 * | any other error                      | anywhere              | that is the error; nothing was committed      |
 */
export class Once<Tx, Options> {
  readonly #core: Core<Tx, Options>
  readonly #request: FastifyRequest
  readonly #execution: Execution
  readonly #progress: Progress
  readonly #name: string
  readonly #run: (tx: Tx) => Promise<string>
  readonly #options: Options | undefined
  #runs = 0
  /** The error that came in the place of COMMIT's answer, until it is known what became of it. */
  #unanswered: { error: unknown } | undefined

  constructor (
    core: Core<Tx, Options>, request: FastifyRequest, execution: Execution, progress: Progress, name: string,
    run: (tx: Tx) => Promise<string>, options: Options | undefined
  ) {
    this.#core = core
    this.#request = request
    this.#execution = execution
    this.#progress = progress
    this.#name = name
    this.#run = run
    this.#options = options
  }

  /** Whether a COMMIT had no answer, and nobody knows what became of it. */
  get inDoubt (): boolean {
    return this.#unanswered !== undefined
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
    const state: Try = { phase: 'opening', failure: undefined, fencedBy: undefined, ended: false }
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
      if (state.ended) {
        await this.#mark(fingerprint)
        throw this.#endedByWork()
      }
      // That the session was ended says more than that it cannot be used.
      const isOuter = state.failure === undefined || sqlStateOf(error) === IDLE_SESSION
      return this.#failed(state, isOuter ? error : state.failure?.error, turn)
    }
  }

  async #inside (tx: Tx, fingerprint: string, state: Try): Promise<Found> {
    const { database, sql, retries } = this.#core
    const { id, token } = this.#execution
    const opened = await this.#open(tx, fingerprint)
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
    const [{ recorded, ended, fenced }] = await database.query(tx, sql.record, [
      id, token, toBase64(result), opened['place'], this.#name, String(opened['number'])
    ]) as [Row]
    if (recorded !== 'true') {
      state.ended = ended === 'true'
      if (fenced === 'true') state.fencedBy = ''
      throw new Error(`fastify-idempotency/sql: the work of the transaction "${this.#name}" has deleted or changed ` +
        'its own record, and was rolled back; keep it from the table of transactions')
    }
    state.phase = 'committing'
    return { result }
  }

  async #open (tx: Tx, fingerprint: string): Promise<Row> {
    const { database, sql, idleTimeout } = this.#core
    const { id, token, attempt, lease } = this.#execution
    const [opened = {}] = await database.query(tx, sql.open, [
      id, this.#name, token, String(attempt), fingerprint, this.#life, String(idleTimeout ?? lease),
      String(idleTimeout === undefined)
    ])
    return opened
  }

  async #read (tx: Tx, fingerprint: string, locked: boolean): Promise<Found> {
    const { database, sql } = this.#core
    const rows = await database.query(tx, sql.read, [this.#execution.id, this.#name])
    const row = rows.find(({ name }) => name !== '')
    if (row !== undefined) {
      const { fingerprint: known, result, token } = row
      if (!matches(String(known), fingerprint)) throw mismatch(String(known), fingerprint, this.#execution.keyName)
      if (typeof result !== 'string') throw this.#endedByWork()
      const isOwn = token === this.#execution.token
      if (isOwn && !this.inDoubt && !this.#progress.doubtful.has(this.#name)) throw usedBefore(this.#name)
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
    // Whoever has the row open, for longer than the session may wait.
    if (phase === 'opening' && sqlState === '55P03' && !this.inDoubt) throw this.#lost()
    if (phase === 'committing' && !isRolledBack(sqlState)) this.#unanswered ??= { error }
    const mayRunAgain = phase === 'opening' || this.#runs <= this.#core.retries
    if (turn < MAX_TURNS && (this.inDoubt || (isSerializationFailure(sqlState) && mayRunAgain))) return 'again'
    throw this.#unanswered === undefined ? error : this.#unanswered.error
  }

  /**
   * The row is committed without a result: what the work wrote after it had ended its transaction was committed by
   * itself, and must not be written again.
   */
  async #mark (fingerprint: string, turn = 1): Promise<void> {
    try {
      await this.#core.database.transaction(async tx => { await this.#open(tx, fingerprint) })
    } catch (error) {
      if (turn < MAX_TURNS && isSerializationFailure(sqlStateOf(error))) {
        await pause(turn)
        return await this.#mark(fingerprint, turn + 1)
      }
      this.#request.log.error({
        idempotencyId: this.#execution.id, transaction: this.#name, err: errorFrom(error)
      }, 'idempotency: it could not be recorded that a transaction must not run again')
    }
  }

  #endedByWork (): IdempotencyError {
    this.#request.log.error({
      idempotencyId: this.#execution.id, transaction: this.#name
    }, 'idempotency: the work of a transaction has ended it, by a COMMIT or ROLLBACK of its own. What it wrote is ' +
      'not committed together with its result, which is lost, and it does not run again under this key. Neither ' +
      'belongs into the work: throw an error to roll back, return to commit')
    return new IdempotencyError('idempotency_outcome_unknown',
      `The work of the transaction "${this.#name}" has ended it by itself, so that its outcome is not known. ` +
      'Look before you send the request again with a fresh key.')
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

export function usedBefore (name: string): TypeError {
  return new TypeError(`fastify-idempotency/sql: the transaction "${name}" was begun before in this request, be it ` +
    'by another object of the same table; give each a name of its own')
}

/** Whoever is in the way needs a moment, and those who wait should not come at once. */
async function pause (turn: number): Promise<void> {
  await sleep(randomInt(5 * 2 ** Math.min(turn, 7)))
}
