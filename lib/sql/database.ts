/** A row, by the names of its columns. */
export type Row = Record<string, unknown>

/**
 * A PostgreSQL database by way of a client library; what `viaPg` and the others make. One of your own is an object
 * with these two methods.
 */
export interface Database<Tx, Options = never> {
  /**
   * Runs `work` in one transaction on a connection of its own: commits when `work` resolves and rolls back when it
   * rejects. Rejects with what `work` rejects with, or with what the server said.
   */
  transaction<T> (work: (tx: Tx) => Promise<T>, options?: Options): Promise<T>
  /** Runs one statement in the transaction. `values` are for `$1`, `$2`, … */
  query (tx: Tx, text: string, values: string[]): Promise<Row[]>
}

/** By its classes: EPIPE, and Prisma's P2034, have five characters as well. */
const SQLSTATE = /^(?:\d[0-9A-Z]|F0|HV|P0|XX)[0-9A-Z]{3}$/

/** The SQLSTATE of an error, which a library may have wrapped; `undefined` where the server did not say one. */
export function sqlStateOf (error: unknown): string | undefined {
  let at = error as Wrapped | undefined
  let isConflict = false
  for (let depth = 0; at instanceof Object && depth < 5; depth++) {
    for (const state of [at.code, at.originalCode, at.meta?.code]) {
      if (typeof state === 'string' && SQLSTATE.test(state)) return state
    }
    isConflict ||= at.code === PRISMA_CONFLICT
    at = at.cause ?? at.meta?.driverAdapterError
  }
  return isConflict ? '40001' : undefined
}

/** Prisma's one code for serialization failures and deadlocks. Before Prisma 7 no SQLSTATE is beside it. */
const PRISMA_CONFLICT = 'P2034'

/** What libraries put around the server's error; the last three are Prisma's. */
interface Wrapped {
  code?: unknown
  cause?: Wrapped
  originalCode?: unknown
  meta?: { code?: unknown, driverAdapterError?: Wrapped }
}

/** The server has rolled back because of other transactions: the same work may succeed now. */
export function isSerializationFailure (state: string | undefined): boolean {
  return state === '40001' || state === '40P01'
}

/**
 * Whether an error that came in the place of COMMIT's answer says that nothing was committed. The connection may have
 * been lost (08), the server ended (57P), or have failed inside (58, XX), after it had committed.
 */
export function isRolledBack (state: string | undefined): boolean {
  return state !== undefined && !/^(08|57|58|XX|40003)/.test(state)
}
