import assert from 'node:assert/strict'
import { acquired, claimOf, count, held, LEASE, result, stampede, token, TTL, type Suite } from './kit.ts'

/** What passing time does to a key: leases, takeovers, attempts and ends. */
export function timeTests ({ check, advance }: Suite): void {
  check('a lease that has passed lets the next claim take over; the late holder is refused', async store => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    await store.renew('k', token('a'), 60, TTL, 'fp')
    await advance(90)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2, true))
    const late = async (): Promise<void> => {
      assert.equal(await store.complete('k', token('a'), { ...result, status: 500 }, TTL), false)
      assert.equal(await store.release('k', token('a'), TTL, true), false)
      assert.equal(await store.renew('k', token('a'), LEASE, TTL, 'fp'), false)
    }
    await late()
    // What the dead holder had read is not the next one's.
    assert.deepEqual(await store.claim('k', claimOf('a')), held(2))
    assert.equal(await store.complete('k', token('b'), result, TTL), true)
    await late()
    assert.deepEqual(await store.claim('k', claimOf('a')), { outcome: 'completed', attempt: 2, result })
    await store.release('k', token('b'), TTL, true)
    await late()
    assert.deepEqual(await store.claim('k', claimOf('c')), acquired(3))
  })

  check('a claim that took over, repeated with its own token, still holds the key', async store => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    await advance(90)
    await store.claim('k', claimOf('b'))
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2))
  })

  check('of many claims at once after a lease has passed, exactly one takes over', async store => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    await advance(90)
    const claims = await stampede(store, 'k')
    assert.deepEqual(claims.filter(({ outcome }) => outcome === 'acquired'), [acquired(2, true)])
    assert.equal(count(claims, 'held'), 49)
    assert.ok(claims.every(({ attempt }) => attempt === 2))
  })

  check('a lease that has passed without a takeover leaves the key to its holder', async store => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    await store.renew('k', token('a'), 60, TTL, 'fp')
    await advance(90)
    const claims = await stampede(store, 'k', { takeover: false })
    for (const claim of claims) assert.deepEqual(claim, { outcome: 'abandoned', attempt: 1, fingerprint: 'fp' })
    assert.equal((await store.read('k'))?.state, 'held')
    assert.equal(await store.renew('k', token('a'), LEASE, TTL, ''), true)
    assert.deepEqual(await store.claim('k', claimOf('b')), held(1, 'fp'))
  })

  check('a holder whose lease has passed, and that nobody has replaced, may take every step', async store => {
    for (const key of ['claim', 'complete', 'release']) await store.claim(key, claimOf('a', { lease: 60 }))
    await advance(90)
    assert.deepEqual(await store.claim('claim', claimOf('a')), acquired(1))
    assert.equal(await store.complete('complete', token('a'), result, TTL), true)
    assert.equal(await store.release('release', token('a'), TTL, true), true)
    assert.deepEqual(await store.claim('claim', claimOf('b')), held(1))
    assert.equal((await store.claim('complete', claimOf('b'))).outcome, 'completed')
    assert.deepEqual(await store.claim('release', claimOf('b')), acquired(2))
  })

  check('a renewal gives the lease anew, and the record\'s ttl with it', async store => {
    await store.claim('k', claimOf('a', { lease: 60, ttl: 1 }))
    assert.equal(await store.renew('k', token('a'), LEASE, TTL, ''), true)
    const entry = await store.read('k')
    // A store may read its clock twice in one step.
    assert.ok(entry !== undefined && entry.until - entry.since >= LEASE - 10)
    await advance(90)
    assert.deepEqual(await store.claim('k', claimOf('b')), held(1))
    await store.renew('k', token('a'), 30, TTL, '')
    await advance(60)
    assert.deepEqual(
      await store.claim('k', claimOf('b', { takeover: false })), { outcome: 'abandoned', attempt: 1, fingerprint: '' }
    )
  })

  check('attempts are counted through takeovers and freed failures, and told with the outcome', async store => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    await advance(90)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2, true))
    await store.release('k', token('b'), TTL, true)
    assert.deepEqual(await store.claim('k', claimOf('c', { lease: 60 })), acquired(3))
    await advance(90)
    assert.deepEqual(await store.claim('k', claimOf('d')), acquired(4, true))
    // Not executed: the next one has its number.
    await store.release('k', token('d'), TTL, false)
    assert.deepEqual(await store.claim('k', claimOf('e')), acquired(4))
    await store.complete('k', token('e'), result, TTL)
    assert.equal((await store.claim('k', claimOf('f'))).attempt, 4)
    assert.equal((await store.read('k'))?.attempt, 4)
  })

  check('the lease rules while held: a short ttl does not free the key', async store => {
    await store.claim('k', claimOf('a', { ttl: 20 }))
    await advance(60)
    assert.deepEqual(await store.claim('k', claimOf('b')), held(1))
  })

  check('a kept outcome ends with its ttl, and the key starts anew', async store => {
    await store.claim('k', claimOf('a'))
    await store.release('k', token('a'), TTL, true)
    await store.claim('k', claimOf('b'))
    await store.complete('k', token('b'), result, 60)
    await advance(90)
    assert.equal(await store.read('k'), undefined)
    assert.equal(await store.complete('k', token('b'), result, TTL), false)
    assert.deepEqual(await store.claim('k', claimOf('c')), acquired(1))
  })

  check('the last ttl rules, whether it is longer or shorter', async store => {
    for (const [key, first, last] of [['longer', 60, TTL], ['shorter', TTL, 60]] as const) {
      await store.claim(key, claimOf('a'))
      await store.complete(key, token('a'), result, first)
      await store.complete(key, token('a'), result, last)
    }
    await advance(90)
    assert.equal((await store.read('longer'))?.state, 'completed')
    assert.equal(await store.read('shorter'), undefined)
  })

  check('the count of a freed key ends with its ttl', async store => {
    await store.claim('k', claimOf('a'))
    await store.release('k', token('a'), 60, true)
    await advance(90)
    assert.equal(await store.read('k'), undefined)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(1))
  })

  check('a dead holder\'s record ends with the ttl after its lease', async store => {
    await store.claim('k', claimOf('a', { lease: 30, ttl: 30, takeover: false }))
    await advance(100)
    assert.equal(await store.read('k'), undefined)
    assert.equal(await store.release('k', token('a'), TTL, true), false)
    assert.deepEqual(await store.claim('k', claimOf('b', { takeover: false })), acquired(1))
  })

  check('the times told are the store\'s, and go with its clock', async store => {
    await store.claim('first', claimOf('a'))
    await advance(60)
    await store.claim('second', claimOf('a'))
    const [first, second] = [await store.read('first'), await store.read('second')]
    assert.ok(first !== undefined && second !== undefined && second.since - first.since >= 50)
  })

  check('this process\' wall clock, set forward or back, does not end a lease or an outcome', async store => {
    await store.claim('held', claimOf('a'))
    await store.claim('kept', claimOf('a'))
    await store.complete('kept', token('a'), result, TTL)
    const { now } = Date
    try {
      for (const day of [86_400_000, -86_400_000]) {
        Date.now = () => now() + day
        assert.deepEqual(await store.claim('held', claimOf('b')), held(1))
        assert.equal((await store.claim('kept', claimOf('b'))).outcome, 'completed')
      }
    } finally {
      Date.now = now
    }
  })
}
