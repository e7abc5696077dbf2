import assert from 'node:assert/strict'
import { acquired, claimOf, count, held, LEASE, result, stampede, token, TTL, type Suite } from './kit.ts'

/** Who holds a key, and what its token may do. */
export function stepTests ({ check, advance }: Suite): void {
  check('the first claim holds the key, the second is told so', async store => {
    assert.deepEqual(await store.claim('k', claimOf('a')), acquired(1))
    assert.deepEqual(await store.claim('k', claimOf('b')), held(1))
    assert.deepEqual(await store.claim('other', claimOf('b')), acquired(1))
  })

  check('of many claims at once, exactly one holds the key', async store => {
    const claims = await stampede(store, 'k')
    assert.deepEqual([count(claims, 'acquired'), count(claims, 'held')], [1, 49])
  })

  check('of many claims of a freed key at once, exactly one holds it', async store => {
    await store.claim('k', claimOf('a'))
    await store.release('k', token('a'), TTL, true)
    const claims = await stampede(store, 'k')
    assert.deepEqual([count(claims, 'acquired'), count(claims, 'held')], [1, 49])
    assert.ok(claims.every(({ attempt }) => attempt === 2))
  })

  check('a claim repeated with its own token still holds the key, and the lease starts anew', async store => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    assert.deepEqual(await store.claim('k', claimOf('a')), acquired(1))
    await advance(90)
    assert.deepEqual(await store.claim('k', claimOf('b')), held(1))
  })

  check('a renewal that is repeated is accepted again', async store => {
    await store.claim('k', claimOf('a'))
    for (let i = 0; i < 3; i++) assert.equal(await store.renew('k', token('a'), LEASE, TTL, 'fp'), true)
    assert.deepEqual(await store.claim('k', claimOf('b')), held(1, 'fp'))
  })

  check('an outcome that is given again is accepted again, and replaces the first', async store => {
    await store.claim('k', claimOf('a'))
    for (const status of [201, 201, 202]) {
      assert.equal(await store.complete('k', token('a'), { ...result, status }, TTL), true)
      assert.deepEqual(
        await store.claim('k', claimOf('b')), { outcome: 'completed', attempt: 1, result: { ...result, status } }
      )
    }
  })

  check('a release that is repeated is accepted again, and counts once', async store => {
    await store.claim('k', claimOf('a'))
    for (let i = 0; i < 3; i++) assert.equal(await store.release('k', token('a'), TTL, true), true)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2))
  })

  check('a claim that was never executed does not count, however often it is released', async store => {
    await store.claim('k', claimOf('a'))
    for (let i = 0; i < 3; i++) assert.equal(await store.release('k', token('a'), TTL, false), true)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(1))
    await store.release('k', token('b'), TTL, true)
    assert.deepEqual(await store.claim('k', claimOf('c')), acquired(2))
  })

  check('the same token may free what it completed, and complete what it freed', async store => {
    await store.claim('k', claimOf('a'))
    assert.equal(await store.complete('k', token('a'), result, TTL), true)
    assert.equal(await store.release('k', token('a'), TTL, true), true)
    assert.equal((await store.read('k'))?.state, 'freed')
    assert.equal(await store.complete('k', token('a'), result, TTL), true)
    assert.deepEqual(await store.claim('k', claimOf('b')), { outcome: 'completed', attempt: 1, result })
  })

  check('a holder that claims again learns what became of the key', async store => {
    await store.claim('k', claimOf('a'))
    await store.complete('k', token('a'), result, TTL)
    assert.deepEqual(await store.claim('k', claimOf('a')), { outcome: 'completed', attempt: 1, result })
    await store.release('k', token('a'), TTL, true)
    assert.deepEqual(await store.claim('k', claimOf('a')), acquired(2))
    await store.remove('k')
    assert.deepEqual(await store.claim('k', claimOf('a')), acquired(1))
  })

  check('every step after the claim is refused without the token', async store => {
    const refused = async (who: string): Promise<void> => {
      assert.equal(await store.complete('k', token(who), result, TTL), false)
      assert.equal(await store.release('k', token(who), TTL, true), false)
      assert.equal(await store.renew('k', token(who), LEASE, TTL, 'fp'), false)
    }
    await refused('a')
    await store.claim('k', claimOf('a'))
    await refused('b')
    assert.deepEqual(await store.claim('k', claimOf('c')), held(1))
    // Completed, freed, claimed by another: each time all but the token of the record.
    await store.complete('k', token('a'), { ...result, status: 299 }, TTL)
    await refused('b')
    assert.equal((await store.read('k'))?.result?.status, 299)
    await store.release('k', token('a'), TTL, true)
    await refused('b')
    assert.equal((await store.read('k'))?.state, 'freed')
    await store.claim('k', claimOf('b'))
    await refused('a')
    assert.deepEqual(await store.claim('k', claimOf('c')), held(2))
  })

  check('a renewal keeps the fingerprint for duplicates until the next holder, and is refused once the key is ' +
    'completed or freed', async store => {
    await store.claim('k', claimOf('a'))
    assert.equal(await store.renew('k', token('a'), LEASE, TTL, 'fp'), true)
    assert.equal(await store.renew('k', token('a'), LEASE, TTL, ''), true)
    assert.deepEqual(await store.claim('k', claimOf('b')), held(1, 'fp'))
    await store.complete('k', token('a'), result, TTL)
    assert.equal(await store.renew('k', token('a'), LEASE, TTL, 'fp'), false)
    assert.deepEqual(await store.claim('k', claimOf('b')), { outcome: 'completed', attempt: 1, result })
    await store.release('k', token('a'), TTL, true)
    assert.equal(await store.renew('k', token('a'), LEASE, TTL, 'fp'), false)
    assert.equal((await store.read('k'))?.state, 'freed')
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2))
    assert.deepEqual(await store.claim('k', claimOf('c')), held(2))
  })

  check('a removed key is absent: its late holder is refused, and may claim it anew', async store => {
    for (const end of [async () => {}, async () => await store.complete(
      'k', token('a'), result, TTL
    ), async () => await store.release('k', token('a'), TTL, true)]) {
      await store.claim('k', claimOf('a'))
      await end()
      assert.equal(await store.remove('k'), true)
      assert.equal(await store.remove('k'), false)
      assert.equal(await store.complete('k', token('a'), result, TTL), false)
      assert.equal(await store.release('k', token('a'), TTL, true), false)
      assert.equal(await store.renew('k', token('a'), LEASE, TTL, ''), false)
      assert.equal(await store.read('k'), undefined)
      assert.deepEqual(await store.claim('k', claimOf('a')), acquired(1))
      await store.remove('k')
    }
  })

  check('keys that differ in one character, or hold any byte, are different keys', async store => {
    const ascii = Array.from({ length: 128 }, (_, code) => `k${String.fromCharCode(code)}`)
    const long = 'l'.repeat(1_000)
    const keys = [
      ...ascii, '', 'k', ' k', '\u00e9', 'e\u0301', '\u{1f511}', '__proto__', 'constructor', '../k', 'k/../k', '%6b',
      `${long}1`, `${long}2`
    ]
    for (const [i, key] of keys.entries()) {
      assert.deepEqual(await store.claim(key, claimOf(`t${i}`)), acquired(1), JSON.stringify(key))
    }
    for (const [i, key] of keys.entries()) {
      assert.equal(
        await store.complete(key, token(`t${i}`), { ...result, body: Buffer.from(key) }, TTL), true, JSON.stringify(key)
      )
    }
    for (const key of keys) {
      assert.equal(String((await store.read(key))?.result?.body), key)
      assert.equal(await store.remove(key), true)
    }
  })

  check('read tells state, attempt, times and outcome; remove forgets', async store => {
    assert.equal(await store.read('k'), undefined)
    assert.equal(await store.remove('k'), false)
    await store.claim('k', claimOf('a'))
    const first = await store.read('k')
    assert.deepEqual([first?.state, first?.attempt, first?.result], ['held', 1, undefined])
    // A store may read its clock twice in one step.
    assert.ok(first !== undefined && Math.abs(first.until - first.since - LEASE) <= 10)
    await store.release('k', token('a'), TTL, true)
    const freed = await store.read('k')
    assert.deepEqual([freed?.state, freed?.attempt, freed?.result], ['freed', 1, undefined])
    await store.claim('k', claimOf('b'))
    await store.complete('k', token('b'), result, TTL)
    const completed = await store.read('k')
    assert.deepEqual([completed?.state, completed?.attempt, completed?.result], ['completed', 2, result])
    assert.ok(completed !== undefined && Math.abs(completed.until - completed.since - TTL) < 5_000)
    assert.equal(await store.remove('k'), true)
    assert.equal(await store.read('k'), undefined)
  })
}
