import { setTimeout as sleep } from 'node:timers/promises'
import type { StoreAnswer, StoreClaim, StoreClaimRequest, StoreOutcome, IdempotencyStore } from '../stores/contract.ts'

export interface StoreTestOptions {
  /** A store with nothing in it; called once for each test. */
  createStore: () => StoreAnswer<IdempotencyStore>
  /**
   * Registers one test: `test` of node:test, tap's `t.test`, vitest's `test`, … Tests must run one after the other.
   */
  test: (name: string, run: () => Promise<void>) => unknown
  /** Lets `ms` pass for the store. Default: waits for real. */
  advance?: (ms: number) => Promise<void>
  /** Cuts off what the store talks to, for the tests of an outage. Without it there are none. */
  outage?: Outage
  /**
   * Milliseconds that an operation is given while the store is cut off, as by the plugin's option of this name;
   * `watch` is given twice as long to call. Default 1,000.
   */
  storeTimeout?: number
}

export interface Outage {
  /** From now on nothing reaches the last created store's server, or nothing comes back. */
  begin: () => StoreAnswer<void>
  /** Settles when the store can be reached again. Called once for each `begin`, also where a test fails. */
  end: () => StoreAnswer<void>
}

export interface Suite {
  /** One test, with a store of its own, which is closed after it. */
  check: (name: string, run: (store: IdempotencyStore) => Promise<void>) => void
  advance: (ms: number) => Promise<void>
  outage: Outage | undefined
  storeTimeout: number
}

export function suiteOf (
  { createStore, test, advance = async ms => { await sleep(ms) }, outage, storeTimeout = 1_000 }: StoreTestOptions
): Suite {
  const check: Suite['check'] = (name, run) => {
    test(name, async () => {
      const store = await createStore()
      try {
        await run(store)
      } finally {
        await store.close?.()
      }
    })
  }
  return { check, advance, outage, storeTimeout }
}

export const TTL = 60_000
/** Long enough for whatever a test does meanwhile. */
export const LEASE = 10_000

export const token = (name: string): string => name.padEnd(36, '.')
export const claimOf = (
  name: string, more: Partial<StoreClaimRequest> = {}
): StoreClaimRequest => ({ token: token(name), lease: LEASE, ttl: TTL, takeover: true, ...more })

export const acquired = (attempt: number, takeover = false): StoreClaim => ({ outcome: 'acquired', attempt, takeover })
export const held = (attempt: number, fingerprint = ''): StoreClaim => ({ outcome: 'held', attempt, fingerprint })

export const result: StoreOutcome = {
  fingerprint: 'digest.POST.hint',
  status: 201,
  replayable: true,
  headers: [['content-type', 'application/octet-stream'], ['x-several', ['a', 'b']], ['x-latin1', 'é']],
  body: Buffer.from([0, 255, 10, 13, 128]),
  text: false
}

/** Fifty claims of one key that are under way together. */
export async function stampede (
  store: IdempotencyStore, key: string, more: Partial<StoreClaimRequest> = {}
): Promise<StoreClaim[]> {
  return await Promise.all(
    Array.from({ length: 50 }, async (_, i) => await store.claim(key, claimOf(`stampede ${i}`, more)))
  )
}

export const count = (claims: StoreClaim[], outcome: StoreClaim['outcome']): number => claims.filter(
  claim => claim.outcome === outcome
).length
