import type { Core } from './core.ts'
import { storeKey } from './fingerprint.ts'
import type { Awaitable, Entry, Store } from './store.ts'

/** A key and whose it is: `scope` as the option `scope` returns it, left out for the anonymous scope. */
export interface KeyOf {
  scope?: string | undefined
  key: string
}

/** What an operator may know of a key; never the body. */
export interface Inspection {
  state: Entry['state']
  /** Executions of this key so far. */
  attempt: number
  /** When this state began. */
  since: Date
  /** When the lease (held) or the record ends. */
  until: Date
  /** The status of the kept response. */
  status: number | undefined
  /** Whether the kept response can be sent again. */
  replayable: boolean | undefined
}

/** `fastify.idempotency`: for operators and tests. */
export interface Operator {
  readonly store: Store
  /** What is known of a key, or `undefined`. Rejects when the store fails, or takes longer than `storeTimeout`. */
  inspect (key: KeyOf): Promise<Inspection | undefined>
  /** Frees a key whatever its state; `false` if there was none. A handler that still holds it loses its lease. */
  forget (key: KeyOf): Promise<boolean>
}

export function createOperator ({ config, store, bounded }: Core): Operator {
  const ask = async <T>(operation: () => Awaitable<T>): Promise<T> => {
    const [error, value] = await new Promise<[error: unknown, value?: T | undefined]>(resolve => bounded(operation, (...answer) => resolve(answer)))
    if (error !== null) throw error
    return value as T
  }
  return {
    store,
    async inspect ({ scope, key }) {
      const entry = await ask(() => store.read(storeKey(config.prefix, scope, key)))
      if (entry === undefined) return undefined
      const { state, attempt, since, until, result } = entry
      return { state, attempt, since: new Date(since), until: new Date(until), status: result?.status, replayable: result?.replayable }
    },
    async forget ({ scope, key }) {
      return await ask(() => store.remove(storeKey(config.prefix, scope, key)))
    }
  }
}
