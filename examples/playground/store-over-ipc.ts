/** The store contract over IPC: the parent holds the store, its children share it. */
import type { IdempotencyStore } from '../../lib/index.ts'
import type { StoreEvent } from './events.ts'

type Call = (method: string, ...args: unknown[]) => Promise<unknown>
type Told = StoreEvent extends infer E ? E extends unknown ? Omit<E, 'instance'> : never : never

/** A store that keeps steps. */
export type StepStore = IdempotencyStore & Required<Pick<IdempotencyStore, 'record' | 'recorded'>>

export function keepsSteps (store: IdempotencyStore): store is StepStore {
  return store.record !== undefined && store.recorded !== undefined
}

/** In the child: every operation is a call. */
export function storeOverIpc (call: Call): StepStore {
  const method = (name: string) => async (...args: unknown[]): Promise<never> => await call(name, ...args) as never
  return {
    claim: method('claim'),
    renew: method('renew'),
    complete: method('complete'),
    release: method('release'),
    read: method('read'),
    remove: method('remove'),
    record: method('record'),
    recorded: method('recorded')
  }
}

/** In the parent: the same operations, on the store itself; `tell` hears of each that had an effect. */
export function observedStore (store: StepStore, tell: (key: string, event: Told) => void): StepStore {
  return {
    async claim (key, request) {
      const until = performance.now() + request.lease
      const claim = await store.claim(key, request)
      tell(key, { what: 'claimed', outcome: claim.outcome, attempt: claim.attempt, until })
      return claim
    },
    async renew (key, token, lease, ...more) {
      const until = performance.now() + lease
      const renewed = await store.renew(key, token, lease, ...more)
      if (renewed) tell(key, { what: 'renewed', until })
      return renewed
    },
    async complete (key, token, outcome, ttl) {
      const kept = await store.complete(key, token, outcome, ttl)
      if (kept) tell(key, { what: 'kept' })
      return kept
    },
    async release (key, ...more) {
      const freed = await store.release(key, ...more)
      if (freed) tell(key, { what: 'freed' })
      return freed
    },
    async record (key, token, fingerprint, name, result) {
      const recording = await store.record(key, token, fingerprint, name, result)
      if (recording.outcome === 'recorded' && result !== undefined) tell(key, { what: 'recorded', step: name })
      return recording
    },
    async recorded (key) {
      const steps = await store.recorded(key)
      tell(key, { what: 'recalled', steps: steps.map(({ name }) => name) })
      return steps
    },
    read: async key => await store.read(key),
    remove: async key => await store.remove(key)
  }
}
