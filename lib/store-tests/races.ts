import assert from 'node:assert/strict'
import type { StoreClaim, IdempotencyStore } from '../stores/contract.ts'
import { acquired, claimOf, held, LEASE, result, token, TTL, type Suite } from './kit.ts'

type Step = (store: IdempotencyStore, key: string) => Promise<unknown>

const KEYS = Array.from({ length: 20 }, (_, i) => `k${i}`)
const COMPLETED: StoreClaim = { outcome: 'completed', attempt: 1, result }

const takeOver = async (
  store: IdempotencyStore, key: string
): Promise<StoreClaim> => await store.claim(key, claimOf('b'))
const complete = async (store: IdempotencyStore, key: string): Promise<boolean> => await store.complete(
  key, token('a'), result, TTL
)
const release = async (store: IdempotencyStore, key: string): Promise<boolean> => await store.release(
  key, token('a'), TTL, true
)
const renew = async (store: IdempotencyStore, key: string): Promise<boolean> => await store.renew(
  key, token('a'), LEASE, TTL, 'fp'
)

/** Two steps of one key that are under way together: each is atomic, so that the one or the other comes first. */
export function raceTests ({ check, advance }: Suite): void {
  check('a takeover and the late holder\'s outcome at once: the one or the other', async store => {
    await dead(store, async (key, i) => {
      const [taken, kept] = await atOnce(i, store, key, takeOver, complete)
      assert.deepEqual(taken, kept ? COMPLETED : acquired(2, true))
      assert.deepEqual(await store.claim(key, claimOf('c')), kept ? COMPLETED : held(2))
    })
  })

  check('a takeover and the late holder\'s renewal at once: the one or the other', async store => {
    await dead(store, async (key, i) => {
      const [taken, renewed] = await atOnce(i, store, key, takeOver, renew)
      assert.deepEqual(taken, renewed ? held(1, 'fp') : acquired(2, true))
      assert.deepEqual(await store.claim(key, claimOf('c')), renewed ? held(1, 'fp') : held(2))
      assert.equal(await store.complete(key, token(renewed ? 'b' : 'a'), result, TTL), false)
      assert.equal(await store.complete(key, token(renewed ? 'a' : 'b'), result, TTL), true)
    })
  })

  check('a takeover and the late holder\'s release at once: the one or the other', async store => {
    await dead(store, async (key, i) => {
      const [taken, released] = await atOnce(i, store, key, takeOver, release)
      assert.deepEqual(taken, released ? acquired(2) : acquired(2, true))
      assert.deepEqual(await store.claim(key, claimOf('c')), held(2), 'the key is no longer held by who took it over')
      assert.equal(await store.complete(key, token('b'), result, TTL), true)
    })
  })

  check('a renewal and the outcome at once: the outcome stays', async store => {
    await alive(store, async (key, i) => {
      const [kept] = await atOnce(i, store, key, complete, renew)
      assert.equal(kept, true)
      assert.deepEqual(await store.claim(key, claimOf('b')), COMPLETED)
      assert.equal((await store.read(key))?.state, 'completed')
    })
  })

  check('a renewal and the release at once: the key is free', async store => {
    await alive(store, async (key, i) => {
      const [released] = await atOnce(i, store, key, release, renew)
      assert.equal(released, true)
      assert.deepEqual(await store.claim(key, claimOf('b')), acquired(2))
    })
  })

  /** Runs `race` on keys whose holder's lease has passed. */
  async function dead (store: IdempotencyStore, race: (key: string, i: number) => Promise<void>): Promise<void> {
    for (const key of KEYS) await store.claim(key, claimOf('a', { lease: 60 }))
    await advance(90)
    await Promise.all(KEYS.map(race))
  }

  /** Runs `race` on keys that are held. */
  async function alive (store: IdempotencyStore, race: (key: string, i: number) => Promise<void>): Promise<void> {
    for (const key of KEYS) await store.claim(key, claimOf('a'))
    await Promise.all(KEYS.map(race))
  }
}

/** Starts both steps, for every other key in the other order. */
async function atOnce <One extends Step, Other extends Step> (
  i: number, store: IdempotencyStore, key: string, one: One, other: Other
): Promise<[Awaited<ReturnType<One>>, Awaited<ReturnType<Other>>]> {
  const both = i % 2 === 0
    ? await Promise.all([one(store, key), other(store, key)])
    : (await Promise.all([other(store, key), one(store, key)])).reverse()
  return both as [Awaited<ReturnType<One>>, Awaited<ReturnType<Other>>]
}
