import type { Answer, StoreCalls } from './lease/store-calls.ts'
import { idOf } from './protocol/fingerprint.ts'
import type { IdempotencyStore, StoreEntry, StoreStep } from './stores/contract.ts'

/** A key and whose it is: `scope` as the option `scope` returns it, left out for the anonymous scope; or its `id`. */
export type IdempotencyKeyRef =
  | { scope?: string | undefined, key: string, id?: undefined }
  | { /** As `request.idempotency.id`, events and log lines have it. */ id: string, scope?: undefined, key?: undefined }

/** What an operator may know of a key; never a body, never a result. */
export interface IdempotencyInspection {
  state: StoreEntry['state']
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
  /** Names of the steps whose results are recorded; none once a response is kept, since that drops them. */
  steps: string[]
}

/** `fastify.idempotency`: for operators and tests. */
export interface IdempotencyOperator {
  readonly store: IdempotencyStore
  /**
   * What is known of a key, or `undefined`. Rejects when the store fails, or takes longer than `storeTimeout`.
   * @throws {TypeError} when neither `key` nor `id` is given.
   */
  inspect (key: IdempotencyKeyRef): Promise<IdempotencyInspection | undefined>
  /**
   * Frees a key whatever its state, and forgets its recorded steps; `false` if there was none. A handler that still
   * holds it loses its lease.
   * @throws {TypeError} when neither `key` nor `id` is given.
   */
  forget (key: IdempotencyKeyRef): Promise<boolean>
}

export function createOperator (calls: StoreCalls, prefix: string): IdempotencyOperator {
  const ask = async <T>(operation: (done: Answer<T>) => void): Promise<T> => await new Promise((resolve, reject) => {
    operation((error, value) => {
      if (error instanceof Error) reject(error)
      else resolve(value as T)
    })
  })
  return {
    store: calls.store,
    async inspect (key) {
      const name = prefix + nameOf(key)
      const entry = await ask<StoreEntry | undefined>(done => calls.read(name, done))
      if (entry === undefined) return undefined
      const { state, attempt, since, until, result } = entry
      const recorded = state === 'completed' || !calls.recordsSteps
        ? []
        : await ask<StoreStep[]>(done => calls.recorded(name, done))
      const steps = recorded.filter(({ name, result }) => name !== '' && result !== undefined).map(({ name }) => name)
      return {
        state,
        attempt,
        since: new Date(since),
        until: new Date(until),
        status: result?.status,
        replayable: result?.replayable,
        steps
      }
    },
    async forget (key) {
      const name = prefix + nameOf(key)
      return await ask<boolean>(done => calls.remove(name, done))
    }
  }
}

function nameOf (ref: IdempotencyKeyRef): string {
  // Plain JavaScript may give nothing, or the key itself.
  const { scope, key, id } = (ref ?? {}) as Partial<IdempotencyKeyRef>
  if (typeof id === 'string' && key === undefined) return id
  if (typeof key === 'string' && id === undefined) return idOf(scope, key)
  throw new TypeError(
    'fastify-idempotency: give { key }, with { scope } where there is one, or { id } as log lines have it'
  )
}
