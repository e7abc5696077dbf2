/** The store contract over IPC: the parent holds the store, its children share it. */
import type { IdempotencyStore } from '../../lib/index.ts'
import type { StoreStep } from './events.ts'

type Call = (method: string, ...args: unknown[]) => Promise<unknown>
type Told = StoreStep extends infer S ? S extends unknown ? Omit<S, 'instance'> : never : never

/** In the child: every operation is a call. */
export function storeOverIpc (call: Call): IdempotencyStore {
  const method = (name: string) => async (...args: unknown[]): Promise<never> => await call(name, ...args) as never
  return {
    claim: method('claim'),
    renew: method('renew'),
    complete: method('complete'),
    release: method('release'),
    read: method('read'),
    remove: method('remove')
  }
}

/** In the parent: the same operations, on the store itself; `tell` hears of each step that was taken. */
export function observedStore (store: IdempotencyStore, tell: (key: string, step: Told) => void): IdempotencyStore {
  return {
    async claim (key, request) {
      const until = performance.now() + request.lease
      const claim = await store.claim(key, request)
      tell(key, { what: 'claimed', outcome: claim.outcome, attempt: claim.attempt, until })
      return claim
    },
    async renew (key, token, lease, ttl, fingerprint) {
      const until = performance.now() + lease
      const renewed = await store.renew(key, token, lease, ttl, fingerprint)
      if (renewed) tell(key, { what: 'renewed', until })
      return renewed
    },
    async complete (key, token, outcome, ttl) {
      const kept = await store.complete(key, token, outcome, ttl)
      if (kept) tell(key, { what: 'kept' })
      return kept
    },
    async release (key, token, ttl, executed) {
      const freed = await store.release(key, token, ttl, executed)
      if (freed) tell(key, { what: 'freed' })
      return freed
    },
    read: async key => await store.read(key),
    remove: async key => await store.remove(key)
  }
}
