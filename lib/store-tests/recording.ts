import assert from 'node:assert/strict'
import type { StoreBinding, StoreClaim, StoreRecording, StoreStep, IdempotencyStore } from '../stores/contract.ts'
import { acquired, claimOf, held, LEASE, result, token, TTL, type Suite } from './kit.ts'

/** A store that records steps. */
type Recorder = IdempotencyStore & Required<Pick<IdempotencyStore, 'record' | 'recorded'>>

const RECORDED: StoreRecording = { outcome: 'recorded' }
const LOST: StoreRecording = { outcome: 'lost' }
const known = (result: string | undefined): StoreRecording => ({ outcome: 'known', result })
const bound = (
  attempt: number, takeover = false
): StoreClaim => ({ outcome: 'acquired', attempt, takeover, fingerprint: 'fp' })
const step = (name: string, result?: string): StoreStep => ({ name, result })
const BINDING: StoreBinding = { fingerprint: 'fp', steps: [step('one', '"given"'), step('two')] }

/** Steps: what is recorded under a key, for how long, and by whom. A store without them passes. */
export function recordingTests ({ check, advance }: Suite): void {
  const checkSteps = (
    name: string, run: (store: Recorder) => Promise<void>
  ): void => check(`steps, where there are any: ${name}`, async store => {
    assert.equal(store.record === undefined, store.recorded === undefined, 'a store has both of record and ' +
      'recorded, or none')
    if (store.record !== undefined) await run(store as Recorder)
  })

  checkSteps('the first result of a name stands, and whoever comes later is told it', async store => {
    await store.claim('k', claimOf('a'))
    assert.deepEqual(await store.recorded('k'), [])
    assert.deepEqual(await record(store, 'a', 'one', '1'), RECORDED)
    assert.deepEqual(await record(store, 'a', 'one', '2'), known('1'))
    assert.deepEqual(await record(store, 'a', 'two', '3'), RECORDED)
    assert.deepEqual(await record(store, 'a', 'one', '4'), known('1'))
    assert.deepEqual(await all(store), [step('one', '1'), step('two', '3')])
    assert.deepEqual(await store.recorded('other'), [])
  })

  checkSteps('a beginning stands until the result, and is told', async store => {
    await store.claim('k', claimOf('a'))
    assert.deepEqual(await record(store, 'a', 'one'), RECORDED)
    assert.deepEqual(await record(store, 'a', 'other', '0'), RECORDED)
    assert.deepEqual(await record(store, 'a', 'one'), known(undefined))
    assert.deepEqual(await all(store), [step('one'), step('other', '0')])
    assert.deepEqual(await record(store, 'a', 'one', '1'), RECORDED)
    assert.deepEqual(await record(store, 'a', 'one'), known('1'))
    assert.deepEqual(await all(store), [step('one', '1'), step('other', '0')])
  })

  checkSteps('names and results are any text, and as many and as long as may be', async store => {
    await store.claim('k', claimOf('a'))
    const texts = [
      '', 'a', 'A', ' a', 'é', '😀', '__proto__', 'constructor', '\u0000\n":,{}', 'x'.repeat(30_000), 'ü'.repeat(10_000)
    ]
    const steps = [...texts.slice(1), ...Array.from({ length: 240 }, (_, i) => `step ${i}`)].map(
      (name, i) => step(name.slice(0, 1_000), texts[i % texts.length]?.slice(0, i < 22 ? Infinity : 100))
    )
    for (const { name, result } of steps) assert.deepEqual(await record(store, 'a', name, result), RECORDED)
    assert.deepEqual(await all(store), sorted(steps))
    for (const { name, result } of steps) assert.deepEqual(await record(store, 'a', name, 'other'), known(result))
    assert.equal(await store.release('k', token('a'), TTL, true), true)
    assert.deepEqual(await all(store), sorted(steps))
    await store.claim('k', claimOf('b'))
    assert.deepEqual(await all(store), sorted(steps))
    const given = await store.recorded('k')
    given.length = 0
    assert.deepEqual(await all(store), sorted(steps))
  })

  checkSteps('of many results of one step at once exactly one stands, and all are told it', async store => {
    await store.claim('k', claimOf('a'))
    const answers = await Promise.all(
      Array.from({ length: 20 }, async (_, i) => await record(store, 'a', 'one', String(i)))
    )
    const [{ result } = step('none')] = await all(store)
    assert.equal(answers.filter(({ outcome }) => outcome === 'recorded').length, 1)
    answers.forEach((answer, i) => assert.deepEqual(answer, String(i) === result ? RECORDED : known(result)))
  })

  checkSteps('results of many steps at once are all kept', async store => {
    await store.claim('k', claimOf('a'))
    const steps = Array.from({ length: 20 }, (_, i) => step(`step ${i}`, String(i)))
    await Promise.all(steps.map(async ({ name, result }) => await record(store, 'a', name, result)))
    assert.deepEqual(await all(store), sorted(steps))
  })

  checkSteps('they outlive releases and takeovers, and the key stays bound to their request', async store => {
    await store.claim('k', claimOf('a'))
    await record(store, 'a', 'one', '1')
    assert.deepEqual(await store.claim('k', claimOf('a')), bound(1))
    for (let i = 0; i < 2; i++) assert.equal(await store.release('k', token('a'), TTL, true), true)
    assert.deepEqual(await all(store), [step('one', '1')])
    assert.deepEqual(await store.claim('k', claimOf('b', { lease: 60 })), bound(2))
    assert.deepEqual(await store.claim('k', claimOf('x')), held(2, 'fp'))
    assert.deepEqual(await record(store, 'b', 'one', '2'), known('1'))
    await record(store, 'b', 'two')
    await advance(90)
    assert.deepEqual(
      await store.claim('k', claimOf('x', { takeover: false })), { outcome: 'abandoned', attempt: 2, fingerprint: 'fp' }
    )
    assert.deepEqual(await store.claim('k', claimOf('c')), bound(3, true))
    assert.deepEqual(await all(store), [step('one', '1'), step('two')])
    // An execution that was refused for its other body.
    await store.release('k', token('c'), TTL, false)
    assert.deepEqual(await store.claim('k', claimOf('d')), bound(3))
    assert.deepEqual(await all(store), [step('one', '1'), step('two')])
  })

  checkSteps('they end with the outcome, and with the key', async store => {
    await store.claim('k', claimOf('a'))
    await record(store, 'a', 'one', '1')
    await store.complete('k', token('a'), result, TTL)
    assert.deepEqual(await store.recorded('k'), [])
    await store.release('k', token('a'), TTL, true)
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2))
    assert.deepEqual(await store.recorded('k'), [])
    await record(store, 'b', 'one', '2')
    assert.deepEqual(await all(store), [step('one', '2')])
    assert.equal(await store.remove('k'), true)
    assert.deepEqual(await store.recorded('k'), [])
    assert.deepEqual(await store.claim('k', claimOf('c')), acquired(1))
    await record(store, 'c', 'one', '3')
    await store.release('k', token('c'), 60, true)
    await advance(90)
    assert.deepEqual(await store.recorded('k'), [])
    assert.deepEqual(await store.claim('k', claimOf('d')), acquired(1))
  })

  checkSteps('nothing is recorded without a holder, and no key is made or changed', async store => {
    assert.deepEqual(await record(store, 'a', 'one', '1'), LOST)
    assert.equal(await store.read('k'), undefined)
    await store.claim('k', claimOf('a'))
    await store.release('k', token('a'), TTL, true)
    assert.deepEqual(await record(store, 'a', 'one', '1'), LOST)
    assert.deepEqual([(await store.read('k'))?.state, await store.recorded('k')], ['freed', []])
    assert.deepEqual(await store.claim('k', claimOf('b')), acquired(2))
    await store.complete('k', token('b'), result, TTL)
    assert.deepEqual(await record(store, 'b', 'one', '1'), LOST)
    assert.deepEqual(await store.claim('k', claimOf('c')), { outcome: 'completed', attempt: 2, result })
  })

  checkSteps('a late result is taken while another holds the key for the same request, and then the first ' +
    'stands', async store => {
    await dead(store, 'k')
    await store.claim('k', claimOf('b'))
    assert.deepEqual(await record(store, 'a', 'one', '1'), LOST, 'nobody knows yet what the holder was asked')
    await store.renew('k', token('b'), LEASE, TTL, 'fp')
    assert.deepEqual(await record(store, 'a', 'one', '1', 'other'), LOST)
    assert.deepEqual(await record(store, 'a', 'one'), LOST, 'a late execution must not begin a step')
    assert.deepEqual(await record(store, 'a', 'one', '1'), RECORDED)
    assert.deepEqual(await record(store, 'b', 'one', '2'), known('1'))
    assert.deepEqual(await record(store, 'b', 'two', '3'), RECORDED)
    assert.deepEqual(await record(store, 'a', 'two', '4'), known('3'))
    assert.deepEqual(await store.claim('k', claimOf('c')), held(2, 'fp'))
    await store.complete('k', token('b'), result, TTL)
    assert.deepEqual(await record(store, 'a', 'three', '5'), LOST)
  })

  checkSteps('a holder whose lease has passed may record until it is replaced, and its lease does not ' +
    'change', async store => {
    await dead(store, 'k')
    assert.deepEqual(await record(store, 'a', 'one'), RECORDED)
    assert.deepEqual(await record(store, 'a', 'one', '1'), RECORDED)
    assert.deepEqual(await store.claim('k', claimOf('b')), bound(2, true))
    await store.claim('short', claimOf('a', { lease: 60, ttl: 60 }))
    assert.deepEqual(await store.record('short', token('a'), 'fp', 'one', '1'), RECORDED)
    await advance(150)
    assert.deepEqual(await store.claim('short', claimOf('b')), acquired(1))
  })

  checkSteps('a key is bound to one request', async store => {
    await store.claim('k', claimOf('a'))
    await store.renew('k', token('a'), LEASE, TTL, 'before')
    await record(store, 'a', 'one', '1')
    assert.deepEqual(await store.claim('k', claimOf('x')), held(1, 'fp'))
    assert.equal(await store.renew('k', token('a'), LEASE, TTL, 'other', true), true)
    assert.deepEqual(await record(store, 'a', 'two', '2', 'other'), LOST)
    assert.equal(
      await store.release('k', token('a'), TTL, true, { fingerprint: 'other', steps: [step('three', '3')] }), true
    )
    assert.deepEqual(await store.claim('k', claimOf('b')), bound(2))
    assert.deepEqual(await all(store), [step('one', '1')])
  })

  checkSteps('a renewal may bind a key that has no step', async store => {
    await store.claim('k', claimOf('a', { lease: 60 }))
    assert.equal(await store.renew('k', token('a'), 60, TTL, 'fp'), true)
    await advance(90)
    assert.deepEqual(await store.claim('k', claimOf('b', { lease: 60 })), acquired(2, true))
    for (const fingerprint of ['fp', 'other', '']) {
      assert.equal(await store.renew('k', token('b'), 60, TTL, fingerprint, true), true)
    }
    await advance(90)
    assert.deepEqual(await store.claim('k', claimOf('c')), bound(3, true))
    assert.deepEqual(await store.recorded('k'), [])
    await store.release('k', token('c'), TTL, true)
    assert.deepEqual(await store.claim('k', claimOf('d')), bound(4))
  })

  checkSteps('a release may bind a key, and give back the steps of an outcome that is not to stand', async store => {
    await store.claim('k', claimOf('a'))
    assert.equal(await store.release('k', token('a'), TTL, true, { fingerprint: 'fp', steps: [] }), true)
    assert.deepEqual(await store.claim('k', claimOf('b')), bound(2))
    assert.deepEqual(await store.recorded('k'), [])
    await store.complete('k', token('b'), result, TTL)
    assert.equal(await store.release('k', token('b'), TTL, true, BINDING), true)
    assert.deepEqual(await store.claim('k', claimOf('c')), bound(3))
    assert.deepEqual(await all(store), sorted([...BINDING.steps]))
  })

  checkSteps('a step and the outcome at once: the outcome stays', async store => {
    await alive(store, async (key, i) => {
      const [recorded, kept] = await atOnce(i, async () => await store.record(
        key, token('a'), 'fp', 'one', '1'
      ), async () => await store.complete(key, token('a'), result, TTL))
      assert.ok(kept && (recorded.outcome === 'recorded' || recorded.outcome === 'lost'))
      assert.deepEqual(await store.claim(key, claimOf('b')), { outcome: 'completed', attempt: 1, result })
    })
  })

  checkSteps('a step and the release at once: what was recorded is there', async store => {
    await alive(store, async (key, i) => {
      const [recorded] = await atOnce(i, async () => await store.record(
        key, token('a'), 'fp', 'one', '1'
      ), async () => await store.release(key, token('a'), TTL, true))
      const was = recorded.outcome === 'recorded'
      assert.deepEqual(await store.claim(key, claimOf('b')), was ? bound(2) : acquired(2))
      assert.deepEqual(await store.recorded(key), was ? [step('one', '1')] : [])
    })
  })

  checkSteps('a step and a takeover at once: what was recorded is there', async store => {
    const keys = Array.from({ length: 20 }, (_, i) => `k${i}`)
    for (const key of keys) await store.claim(key, claimOf('a', { lease: 60 }))
    await advance(90)
    await Promise.all(keys.map(async (key, i) => {
      const [recorded] = await atOnce(i, async () => await store.record(
        key, token('a'), 'fp', 'one', '1'
      ), async () => await store.claim(key, claimOf('b')))
      assert.deepEqual(await store.recorded(key), recorded.outcome === 'recorded' ? [step('one', '1')] : [])
      assert.equal(await store.complete(key, token('b'), result, TTL), true)
    }))
  })

  /** Leaves a key with a holder `a` whose lease has passed. */
  async function dead (store: IdempotencyStore, key: string): Promise<void> {
    await store.claim(key, claimOf('a', { lease: 60 }))
    await advance(90)
  }

  async function alive (store: IdempotencyStore, race: (key: string, i: number) => Promise<void>): Promise<void> {
    const keys = Array.from({ length: 20 }, (_, i) => `k${i}`)
    for (const key of keys) await store.claim(key, claimOf('a'))
    await Promise.all(keys.map(race))
  }
}

async function record (
  store: Recorder, who: string, name: string, result?: string, fingerprint = 'fp'
): Promise<StoreRecording> {
  return await store.record('k', token(who), fingerprint, name, result)
}

async function all (store: Recorder): Promise<StoreStep[]> {
  return sorted(await store.recorded('k'))
}

function sorted (steps: StoreStep[]): StoreStep[] {
  return steps.map(({ name, result }) => ({ name, result })).sort((a, b) => a.name < b.name ? -1 : 1)
}

/** Starts both, every other time in the other order. */
async function atOnce <A, B> (i: number, one: () => Promise<A>, other: () => Promise<B>): Promise<[A, B]> {
  if (i % 2 === 0) return await Promise.all([one(), other()])
  const second = other()
  const first = one()
  return [await first, await second]
}
