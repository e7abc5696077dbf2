import assert from 'node:assert/strict'
import { setTimeout as sleep } from 'node:timers/promises'
import type { IdempotencyStore } from '../stores/contract.ts'
import { acquired, claimOf, LEASE, result, token, TTL, type Suite } from './kit.ts'

/** For a call that must not come: long enough for one that comes at once. */
const QUIET_MS = 50

/** Who waits for a key is told once it is no longer held. */
export function watchTests (suite: Suite): void {
  const check = (name: string, run: (store: IdempotencyStore, watchers: Watchers) => Promise<void>): void => {
    suite.check(
      name, async store => { if (store.watch !== undefined) await run(store, new Watchers(store, suite.storeTimeout)) }
    )
  }

  check('watch, where there is one, calls once the key is no longer held, and not after it was ' +
    'stopped', async (store, { called, watch, calls }) => {
    await store.claim('k', claimOf('a'))
    watch('absent', 'absent')
    watch('absent', 'stopped')()
    watch('k', 'completed')
    watch('k', 'stopped')()
    await called('absent')
    await store.complete('k', token('a'), result, TTL)
    await called('completed')
    await store.claim('freed', claimOf('a'))
    watch('freed', 'freed')
    await store.release('freed', token('a'), TTL, true)
    await called('freed')
    await store.claim('removed', claimOf('a'))
    watch('removed', 'removed')
    watch('removed', 'stopped')()
    await store.remove('removed')
    await called('removed')
    assert.deepEqual(calls, ['absent', 'completed', 'freed', 'removed'])
  })

  check('watch, where there is one, calls all who watch a key, each once', async (store, { called, watch, calls }) => {
    for (const [key, end] of [
      ['completed', async () => await store.complete('completed', token('a'), result, TTL)],
      ['freed', async () => await store.release('freed', token('a'), TTL, true)],
      ['removed', async () => await store.remove('removed')]
    ] as const) {
      await store.claim(key, claimOf('a'))
      const names = Array.from({ length: 5 }, (_, i) => `${key} ${i}`)
      const stops = names.map(name => watch(key, name))
      stops[2]?.()
      await end()
      const rest = names.filter((_, i) => i !== 2)
      for (const name of rest) await called(name)
      await sleep(QUIET_MS)
      assert.deepEqual(calls.splice(0).sort(), rest)
    }
  })

  check('watch, where there is one, does not call while the key is held', async (store, { called, watch, calls }) => {
    await store.claim('k', claimOf('a'))
    watch('k', 'held')
    await store.renew('k', token('a'), LEASE, TTL, 'fp')
    await store.claim('k', claimOf('a'))
    await store.claim('k', claimOf('b'))
    await store.complete('k', token('b'), result, TTL)
    await store.release('k', token('b'), TTL, true)
    await store.read('k')
    await store.claim('other', claimOf('a'))
    await store.complete('other', token('a'), result, TTL)
    await sleep(QUIET_MS)
    assert.deepEqual(calls, [])
    await store.complete('k', token('a'), result, TTL)
    await called('held')
  })

  check('watch, where there is one, goes on for who has come since, when one of a former holder is ' +
    'stopped', async (store, { called, watch, calls }) => {
    await store.claim('k', claimOf('a'))
    const stop = watch('k', 'former')
    await store.release('k', token('a'), TTL, true)
    await called('former')
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2))
    watch('k', 'new')
    stop()
    stop()
    await store.complete('k', token('b'), result, TTL)
    await called('new')
    assert.deepEqual(calls, ['former', 'new'])
  })

  check('watch, where there is one, calls who watches a key that a dead holder has ' +
    'lost', async (store, { called, watch }) => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    await suite.advance(90)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2, true))
    watch('k', 'taken over')
    assert.equal(await store.complete('k', token('a'), result, TTL), false)
    await store.complete('k', token('b'), result, TTL)
    await called('taken over')
  })
}

/** Watches keys of one store, and notes the calls. */
class Watchers {
  readonly calls: string[] = []
  readonly #store: IdempotencyStore
  readonly #storeTimeout: number

  constructor (store: IdempotencyStore, storeTimeout: number) {
    this.#store = store
    this.#storeTimeout = storeTimeout
  }

  /** Watches a key, and gives what stops it. */
  watch = (key: string, name: string): (() => void) => {
    const stop = this.#store.watch?.(key, () => { this.calls.push(name) })
    assert.equal(typeof stop, 'function', 'watch must give what stops it, at once')
    return stop as () => void
  }

  /** Settles once `name` was called. */
  called = async (name: string): Promise<void> => {
    for (let i = 0; !this.calls.includes(name); i++) {
      assert.ok(i < this.#storeTimeout * 2, `"${name}" was never called`)
      await sleep(1)
    }
  }
}
