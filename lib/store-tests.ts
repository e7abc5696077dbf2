import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ClaimRequest, Outcome, Store } from './store.ts'

export interface StoreTestOptions {
  /** A store with nothing in it; called once for each test. */
  createStore: () => Store | Promise<Store>
  /** Registers one test: `test` of node:test, tap's `t.test`, vitest's `test`, … */
  test: (name: string, run: () => Promise<void>) => unknown
  /** Lets `ms` pass for the store. Default: waits for real. */
  advance?: (ms: number) => Promise<void>
}

const claimOf = (token: string, more: Partial<ClaimRequest> = {}): ClaimRequest => ({ token: token.padEnd(36, '.'), lease: 10_000, ttl: 60_000, takeover: true, ...more })
const token = (name: string): string => name.padEnd(36, '.')
const result: Outcome = {
  fingerprint: 'digest.POST.hint',
  status: 201,
  replayable: true,
  headers: [['content-type', 'application/octet-stream'], ['x-several', ['a', 'b']], ['x-latin1', 'é']],
  body: Buffer.from([0, 255, 10, 13, 128]),
  text: false
}

/** Runs a store through the whole store contract; each test names what it proves. */
export function storeTests ({ createStore, test, advance = async ms => { await sleep(ms) } }: StoreTestOptions): void {
  const check = (name: string, run: (store: Store) => Promise<void>): void => {
    test(name, async () => {
      const store = await createStore()
      try {
        await run(store)
      } finally {
        await store.close?.()
      }
    })
  }
  const acquired = (attempt: number, takeover = false) => ({ outcome: 'acquired', attempt, takeover })

  check('the first claim holds the key, the second is told so', async store => {
    assert.deepEqual(await store.claim('k', claimOf('a')), acquired(1))
    assert.deepEqual(await store.claim('k', claimOf('b')), { outcome: 'held', attempt: 1, fingerprint: '' })
    assert.deepEqual(await store.claim('other', claimOf('b')), acquired(1))
  })

  check('of many claims at once, exactly one holds the key', async store => {
    const claims = await Promise.all(Array.from({ length: 50 }, async (_, i) => await store.claim('k', claimOf(`t${i}`))))
    assert.equal(claims.filter(({ outcome }) => outcome === 'acquired').length, 1)
    assert.equal(claims.filter(({ outcome }) => outcome === 'held').length, 49)
  })

  check('a claim repeated with its own token still holds the key', async store => {
    await store.claim('k', claimOf('a'))
    assert.deepEqual(await store.claim('k', claimOf('a')), acquired(1))
  })

  check('a completed key answers every claim with the outcome, exactly', async store => {
    await store.claim('k', claimOf('a'))
    assert.equal(await store.complete('k', token('a'), result, 60_000), true)
    const claim = await store.claim('k', claimOf('b'))
    assert.equal(claim.outcome, 'completed')
    assert.deepEqual((claim as { result: Outcome }).result, result)
    assert.equal(claim.attempt, 1)
  })

  check('a string body comes back as a string', async store => {
    await store.claim('k', claimOf('a'))
    await store.complete('k', token('a'), { ...result, body: 'häß €', text: true }, 60_000)
    const claim = await store.claim('k', claimOf('b')) as { result: Outcome }
    assert.deepEqual([String(claim.result.body), claim.result.text], ['häß €', true])
  })

  check('an outcome that cannot be replayed, and an empty one, are kept as such', async store => {
    await store.claim('k', claimOf('a'))
    const empty: Outcome = { fingerprint: 'f', status: 204, replayable: false, headers: [], body: '', text: true }
    await store.complete('k', token('a'), empty, 60_000)
    const claim = await store.claim('k', claimOf('b')) as { result: Outcome }
    assert.deepEqual(claim.result, empty)
  })

  check('the kept body does not change with the caller\'s buffer', async store => {
    await store.claim('k', claimOf('a'))
    const body = Buffer.from('before')
    await store.complete('k', token('a'), { ...result, body }, 60_000)
    body.write('AFTER!')
    const claim = await store.claim('k', claimOf('b')) as { result: Outcome }
    assert.equal(String(claim.result.body), 'before')
  })

  check('completing again with the same token replaces the outcome', async store => {
    await store.claim('k', claimOf('a'))
    await store.complete('k', token('a'), result, 60_000)
    assert.equal(await store.complete('k', token('a'), { ...result, status: 202 }, 60_000), true)
    const claim = await store.claim('k', claimOf('b')) as { result: Outcome }
    assert.equal(claim.result.status, 202)
  })

  check('a freed key can be claimed again, as the next attempt', async store => {
    await store.claim('k', claimOf('a'))
    assert.equal(await store.release('k', token('a'), 60_000, true), true)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2))
  })

  check('every step after the claim is refused without the token', async store => {
    assert.equal(await store.complete('k', token('a'), result, 60_000), false)
    assert.equal(await store.release('k', token('a'), 60_000, true), false)
    assert.equal(await store.renew('k', token('a'), 10_000, 60_000, ''), false)
    await store.claim('k', claimOf('a'))
    assert.equal(await store.complete('k', token('b'), result, 60_000), false)
    assert.equal(await store.release('k', token('b'), 60_000, true), false)
    assert.equal(await store.renew('k', token('b'), 10_000, 60_000, ''), false)
    assert.equal((await store.claim('k', claimOf('c'))).outcome, 'held')
  })

  check('a renewal keeps the fingerprint for duplicates, and is refused once the key is completed', async store => {
    await store.claim('k', claimOf('a'))
    assert.equal(await store.renew('k', token('a'), 10_000, 60_000, 'fp'), true)
    assert.equal(await store.renew('k', token('a'), 10_000, 60_000, ''), true)
    assert.deepEqual(await store.claim('k', claimOf('b')), { outcome: 'held', attempt: 1, fingerprint: 'fp' })
    await store.complete('k', token('a'), result, 60_000)
    assert.equal(await store.renew('k', token('a'), 10_000, 60_000, ''), false)
  })

  check('a lease that has passed lets the next claim take over; the late holder is refused', async store => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    await advance(90)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2, true))
    assert.equal(await store.complete('k', token('a'), result, 60_000), false)
    assert.equal(await store.complete('k', token('b'), result, 60_000), true)
  })

  check('a lease that has passed without a takeover leaves the key to its holder', async store => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    await advance(90)
    assert.deepEqual(await store.claim('k', claimOf('b', { takeover: false })), { outcome: 'abandoned', attempt: 1, fingerprint: '' })
    assert.equal(await store.renew('k', token('a'), 10_000, 60_000, ''), true)
    assert.equal((await store.claim('k', claimOf('b'))).outcome, 'held')
  })

  check('a claim that was never executed does not count, however often it is released', async store => {
    await store.claim('k', claimOf('a'))
    for (let i = 0; i < 3; i++) assert.equal(await store.release('k', token('a'), 60_000, false), true)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(1))
    await store.release('k', token('b'), 60_000, true)
    assert.deepEqual(await store.claim('k', claimOf('c')), acquired(2))
  })

  check('watch, where there is one, calls once the key is no longer held, and not after it was stopped', async store => {
    if (store.watch === undefined) return
    const changes: string[] = []
    const watch = (key: string, name: string) => store.watch?.(key, () => { changes.push(name) }) as () => void
    const soon = async (name: string): Promise<void> => { while (!changes.includes(name)) await sleep(1) }
    await store.claim('k', claimOf('a'))
    watch('absent', 'absent')
    watch('absent', 'stopped')()
    watch('k', 'completed')
    watch('k', 'stopped')()
    await soon('absent')
    await store.complete('k', token('a'), result, 60_000)
    await soon('completed')
    await store.claim('freed', claimOf('a'))
    watch('freed', 'freed')
    await store.release('freed', token('a'), 60_000, true)
    await soon('freed')
    await store.claim('removed', claimOf('a'))
    watch('removed', 'removed')
    watch('removed', 'stopped')()
    await store.remove('removed')
    await soon('removed')
    assert.deepEqual(changes, ['absent', 'completed', 'freed', 'removed'])
  })

  check('the lease rules while held: a short ttl does not free the key', async store => {
    await store.claim('k', claimOf('a', { ttl: 20 }))
    await advance(60)
    assert.equal((await store.claim('k', claimOf('b'))).outcome, 'held')
  })

  check('a kept outcome ends with its ttl, and the key starts anew', async store => {
    await store.claim('k', claimOf('a'))
    await store.complete('k', token('a'), result, 60)
    await advance(90)
    assert.equal(await store.read('k'), undefined)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(1))
  })

  check('a dead holder\'s record ends with the ttl after its lease', async store => {
    await store.claim('k', claimOf('a', { lease: 30, ttl: 30, takeover: false }))
    await advance(100)
    assert.equal(await store.read('k'), undefined)
    assert.deepEqual(await store.claim('k', claimOf('b', { takeover: false })), acquired(1))
  })

  check('read tells state, attempt, times and outcome; remove forgets', async store => {
    assert.equal(await store.read('k'), undefined)
    assert.equal(await store.remove('k'), false)
    await store.claim('k', claimOf('a'))
    const held = await store.read('k')
    assert.deepEqual([held?.state, held?.attempt, held?.result], ['held', 1, undefined])
    assert.equal(held !== undefined && held.until - held.since, 10_000)
    await store.release('k', token('a'), 60_000, true)
    assert.equal((await store.read('k'))?.state, 'freed')
    await store.claim('k', claimOf('b'))
    await store.complete('k', token('b'), result, 60_000)
    const completed = await store.read('k')
    assert.deepEqual([completed?.state, completed?.attempt, completed?.result?.status], ['completed', 2, 201])
    assert.ok(completed !== undefined && Math.abs(completed.until - completed.since - 60_000) < 5_000)
    assert.equal(await store.remove('k'), true)
    assert.equal(await store.read('k'), undefined)
    await store.claim('k', claimOf('c'))
    assert.equal(await store.remove('k'), true)
    assert.deepEqual(await store.claim('k', claimOf('d')), acquired(1))
  })
}
