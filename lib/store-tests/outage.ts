import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import type { StoreAnswer, IdempotencyStore } from '../stores/contract.ts'
import { acquired, claimOf, held, LEASE, result, token, TTL, type Suite } from './kit.ts'

type Operation = (store: IdempotencyStore) => StoreAnswer<unknown>

/** A store that is cut off does not answer; what it knew it still knows when it is back. */
export function outageTests ({ check, advance, outage, storeTimeout }: Suite): void {
  if (outage === undefined) return

  /** Asks `operations` while the store is cut off: none may answer, and all must have ended soon after it is back. */
  async function cutOff (store: IdempotencyStore, operations: Operation[], meanwhile = async () => {}): Promise<void> {
    const { begin, end } = outage as NonNullable<typeof outage>
    const asked: Array<Promise<unknown>> = []
    await begin()
    try {
      await Promise.all(operations.map(async operation => {
        const answer = (async () => await operation(store))()
        asked.push(answer)
        const answered = await Promise.race(
          [answer.then(value => inspect(value), () => 'nothing'), sleep(storeTimeout, 'nothing')]
        )
        assert.equal(answered, 'nothing', `${String(operation)} answered while the store was cut off`)
      }))
      await meanwhile()
    } finally {
      await end()
    }
    const ended = await Promise.race([Promise.allSettled(asked), sleep(storeTimeout)])
    assert.ok(
      ended,
      `an operation has not ended ${storeTimeout} ms after the store was back: it would count as under way for ever`
    )
  }

  check('cut off, no operation answers, and what was held or kept is so afterwards', async store => {
    await store.claim('held', claimOf('a'))
    await store.claim('kept', claimOf('a'))
    await store.complete('kept', token('a'), result, TTL)
    await cutOff(store, [
      store => store.claim('held', claimOf('b')),
      store => store.read('held'),
      store => store.renew('held', token('b'), LEASE, TTL, ''),
      store => store.claim('kept', claimOf('b')),
      store => store.complete('kept', token('b'), { ...result, status: 500 }, TTL),
      store => store.release('kept', token('b'), TTL, true),
      store => store.read('kept'),
      store => store.read('absent'),
      store => store.remove('absent')
    ])
    assert.deepEqual(await store.claim('held', claimOf('b')), held(1))
    assert.equal(await store.renew('held', token('a'), LEASE, TTL, ''), true)
    assert.equal(await store.complete('held', token('a'), result, TTL), true)
    assert.deepEqual(await store.claim('kept', claimOf('b')), { outcome: 'completed', attempt: 1, result })
    assert.equal(await store.read('absent'), undefined)
  })

  check('a step that was cut off can be repeated, whether or not it was done', async store => {
    for (const key of ['renew', 'complete', 'release', 'remove']) await store.claim(key, claimOf('a'))
    await cutOff(store, [
      store => store.claim('claim', claimOf('a')),
      store => store.renew('renew', token('a'), LEASE, TTL, 'fp'),
      store => store.complete('complete', token('a'), result, TTL),
      store => store.release('release', token('a'), TTL, true),
      store => store.remove('remove')
    ])
    assert.deepEqual(await store.claim('claim', claimOf('a')), acquired(1))
    assert.equal(await store.complete('claim', token('a'), result, TTL), true)
    assert.equal(await store.renew('renew', token('a'), LEASE, TTL, 'fp'), true)
    assert.deepEqual(await store.claim('renew', claimOf('b')), held(1, 'fp'))
    assert.equal(await store.complete('complete', token('a'), result, TTL), true)
    assert.deepEqual(await store.claim('complete', claimOf('b')), { outcome: 'completed', attempt: 1, result })
    assert.equal(await store.release('release', token('a'), TTL, true), true)
    assert.deepEqual(await store.claim('release', claimOf('b')), acquired(2))
    await store.remove('remove')
    assert.deepEqual(await store.claim('remove', claimOf('b')), acquired(1))
  })

  check('a claim that was cut off can be given back, whether or not it was granted', async store => {
    await cutOff(store, [store => store.claim('k', claimOf('a'))])
    await store.release('k', token('a'), TTL, false)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(1))
  })

  check('a lease goes on while the store is cut off', async store => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    await cutOff(store, [store => store.read('k')], async () => await advance(90))
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2, true))
    assert.equal(await store.complete('k', token('a'), result, TTL), false)
  })
}
