import { inspect } from 'node:util'
import type {
  IdempotencyStore, StoreBinding, StoreClaim, StoreClaimRequest, StoreEntry, StoreOutcome, StoreRecording, StoreStep
} from '../contract.ts'
import { fromBase64, toBase64 } from '../../util/base64.ts'
import { checkNames } from '../../util/option-names.ts'
import { decodeOutcome, encodeOutcome, UnreadableRecordError } from '../record.ts'
import { statementsFor, type Statements } from './statements.ts'

/** The part of a pool that is used: that of the package `pg` fits. */
export interface PostgresStorePool {
  /** A pool emits `error` for connections that end while they are idle, and ends the process where nobody listens. */
  on? (event: 'error', listener: (error: Error) => void): unknown
  query (query: { text: string, values: unknown[], name?: string }): Promise<{ rows: unknown[] }>
}

export interface PostgresStoreOptions {
  /** The table, with a schema and a dot before it if need be. Default `'idempotency_keys'`. */
  table?: string
  /**
   * Whether each connection prepares the statements once, which spares the server their planning. Not behind a pooler
   * that gives each transaction another connection, unless it knows of prepared statements. Default false.
   */
  prepare?: boolean
}

type Row = Record<string, string | null>

const TABLE = 'idempotency_keys'
/** Somebody else was quicker; a session above READ COMMITTED was in somebody's way (40001, 40P01). */
const MAX_ROUNDS = 10
const CONFLICTS: ReadonlySet<unknown> = new Set(['40001', '40P01'])
/** Keys that end between two looks for expired ones, and keys that are looked at: each is looked at in time. */
const SWEEP_EVERY = 100
const SWEEP_PAGE = 400

/**
 * Keeps everything in one table of PostgreSQL (15 or later): one statement a step, and none that writes for a replay.
 * The pool stays the caller's: it is never closed here. Give it one of its own, so that transactions of the
 * application cannot keep renewals waiting. Expired rows are deleted a few at a time, as keys end.
 */
export class PostgresStore implements IdempotencyStore {
  /** The table's DDL, for the application's migrations. */
  static readonly schema = PostgresStore.schemaFor(TABLE)

  readonly #pool: PostgresStorePool
  readonly #sql: Statements
  readonly #prepare: boolean
  #ended = 0
  /** The last key that was looked at for its expiry. */
  #swept = ''

  /** The DDL of a table of another name. @throws {TypeError} when `table` is not the name of a table. */
  static schemaFor (table: string): string {
    return statementsFor(table).schema
  }

  /** @throws {TypeError} when `pool` has no method `query`, or an option is unknown or wrong. */
  constructor (pool: PostgresStorePool, options: PostgresStoreOptions = {}) {
    if (typeof (pool as Partial<PostgresStorePool> | null)?.query !== 'function') {
      throw new TypeError('PostgresStore: give a pool of the package "pg"; what was given has no method "query"')
    }
    checkNames(options, ['table', 'prepare'], 'fastify-idempotency: the options of PostgresStore')
    const { table = TABLE, prepare = false } = options
    if (typeof prepare !== 'boolean') throw new TypeError('PostgresStore: option "prepare" must be true or false')
    this.#pool = pool
    // A database that restarts ends no process; the next statement says what is wrong.
    pool.on?.('error', () => {})
    this.#sql = statementsFor(table)
    this.#prepare = prepare
  }

  async claim (key: string, { token, lease, ttl, takeover }: StoreClaimRequest): Promise<StoreClaim> {
    for (let round = 0; round < MAX_ROUNDS; round++) {
      const row = await this.#run('claim', [stored(key), token, lease, ttl, takeover])
      if (row !== undefined) return claimOf(row)
    }
    throw new Error(`PostgresStore: others were quicker ${MAX_ROUNDS} times`)
  }

  async renew (
    key: string, token: string, lease: number, ttl: number, fingerprint: string, bind = false
  ): Promise<boolean> {
    return await this.#run('renew', [stored(key), token, lease, ttl, fingerprint, bind]) !== undefined
  }

  async complete (key: string, token: string, outcome: StoreOutcome, ttl: number): Promise<boolean> {
    const done = await this.#run('complete', [stored(key), token, ttl, encodeOutcome(outcome)]) !== undefined
    this.#noteEnd()
    return done
  }

  async release (key: string, token: string, ttl: number, executed: boolean, binding?: StoreBinding): Promise<boolean> {
    const steps = binding === undefined ? '' : JSON.stringify(Object.fromEntries(binding.steps.map(entryOf)))
    const done = await this.#run(
      'release', [stored(key), token, ttl, executed, binding?.fingerprint ?? '', steps]
    ) !== undefined
    this.#noteEnd()
    return done
  }

  async record (
    key: string, token: string, fingerprint: string, name: string, result: string | undefined
  ): Promise<StoreRecording> {
    const [encoded, standing] = entryOf({ name, result })
    const row = await this.#run('record', [stored(key), token, fingerprint, encoded, JSON.stringify(standing)])
    if (row === undefined) return { outcome: 'lost' }
    if (row['changed'] === 'true') return { outcome: 'recorded' }
    return { outcome: 'known', result: resultOf(JSON.parse(String(row['known']))) }
  }

  async recorded (key: string): Promise<StoreStep[]> {
    const row = await this.#run('recorded', [stored(key)])
    const steps = Object.entries(JSON.parse(row?.['steps'] ?? '{}') as Record<string, unknown>)
    return steps.map(([name, standing]) => ({ name: fromBase64(name), result: resultOf(standing) }))
  }

  async read (key: string): Promise<StoreEntry | undefined> {
    const row = await this.#run('read', [stored(key)])
    if (row === undefined) return undefined
    const numbers = { attempt: Number(row['attempt']), since: Number(row['since']), until: Number(row['until']) }
    switch (row['state']) {
      case 'h': return { state: 'held', ...numbers, result: undefined }
      case 'f': return { state: 'freed', ...numbers, result: undefined }
      case 'c': return { state: 'completed', ...numbers, result: outcomeOf(row) }
      default: throw unknownState(row['state'])
    }
  }

  async remove (key: string): Promise<boolean> {
    return (await this.#run('remove', [stored(key)]))?.['live'] === 'true'
  }

  /**
   * Looks at the next `limit` keys and deletes those that have expired; returns how many. The store does so by itself
   * as keys end: for a job of the application's where few do.
   * @throws {TypeError} when `limit` is no whole number, at least 1.
   */
  async sweep (limit = 1_000): Promise<number> {
    if (!Number.isSafeInteger(limit) || limit < 1) {
      throw new TypeError('PostgresStore: the limit of a sweep must be a whole number, at least 1, ' +
        `got ${inspect(limit, { depth: -1 })}`)
    }
    const row = await this.#run('sweep', [this.#swept, limit])
    this.#swept = Number(row?.['seen']) < limit ? '' : String(row?.['last'])
    return Number(row?.['gone'])
  }

  #noteEnd (): void {
    if (++this.#ended % SWEEP_EVERY !== 0) return
    // What is not swept now will be later.
    this.sweep(SWEEP_PAGE).catch(() => {})
  }

  async #run (name: keyof Statements, values: Array<string | number | boolean | Buffer>): Promise<Row | undefined> {
    const text = this.#sql[name]
    const parameters = values.map(value => Buffer.isBuffer(value) ? value : String(value))
    const query = { text, values: parameters, ...(this.#prepare ? { name: `idempotency ${name}` } : {}) }
    for (let round = 1; round < MAX_ROUNDS; round++) {
      try {
        return await this.#first(query)
      } catch (error) {
        if (!CONFLICTS.has((error as { code?: unknown } | null)?.code)) throw error
      }
    }
    return await this.#first(query)
  }

  async #first (query: Parameters<PostgresStorePool['query']>[0]): Promise<Row | undefined> {
    return (await this.#pool.query(query)).rows[0] as Row | undefined
  }
}

function claimOf (row: Row): StoreClaim {
  const attempt = Number(row['attempt'])
  const fingerprint = String(row['fingerprint'])
  const bound = fingerprint === '' ? {} : { fingerprint }
  switch (row['answer']) {
    case 'a': return { outcome: 'acquired', attempt, takeover: false, ...bound }
    case 't': return { outcome: 'acquired', attempt, takeover: true, ...bound }
    case 'h': return { outcome: 'held', attempt, fingerprint }
    case 'x': return { outcome: 'abandoned', attempt, fingerprint }
    case 'c': return { outcome: 'completed', attempt, result: outcomeOf(row) }
    default: throw unknownState(String(row['answer']).slice(1))
  }
}

/** @throws {UnreadableRecordError} when it is of another version, or damaged. */
function outcomeOf (row: Row): StoreOutcome {
  return decodeOutcome(Buffer.from(row['outcome'] ?? '', 'base64'))
}

/** PostgreSQL's text holds every character but NUL, which a key prefix may have. */
function stored (key: string): string {
  return key.replace(/[\\\0]/g, character => character === '\0' ? '\\0' : '\\\\')
}

/** A step as it stands in the row. Base64, since jsonb cannot hold every text. */
function entryOf ({ name, result }: StoreStep): [name: string, standing: string[]] {
  return [toBase64(name), result === undefined ? [] : [toBase64(result)]]
}

function resultOf (standing: unknown): string | undefined {
  if (!Array.isArray(standing)) throw damagedSteps()
  const [result] = standing as unknown[]
  return result === undefined ? undefined : fromBase64(String(result))
}

function unknownState (state: unknown): Error {
  return new UnreadableRecordError(`The row in PostgreSQL has the unknown state ${JSON.stringify(state)}. ` +
    'Remove the key, or let it expire, before mixing releases.')
}

function damagedSteps (): Error {
  return new UnreadableRecordError('The steps recorded under the key are damaged. Remove the key, or let it expire.')
}
