import { randomUUID } from 'node:crypto'
import t, { type Test } from 'tap'
import { storeKey } from '../../lib/protocol/fingerprint.ts'
import { lines, until, type Answer } from '../fixtures/app.ts'
import { buildAll, NOTE, type Release } from '../fixtures/builds.ts'
import { Instance } from '../fixtures/instances.ts'
import { connect, startRedis } from '../fixtures/redis.ts'
import { Provider } from '../fixtures/step-provider.ts'

/** Releases side by side on one Redis, as in a rolling deployment: processes of builds whose records differ. */

const builds = await buildAll()
t.teardown(builds.remove)
const redis = await startRedis()
t.teardown(redis.stop)
const client = connect(redis.port)
t.teardown(() => { client.disconnect() })
const provider = new Provider()
await provider.start(t)

const keyPrefix = 'releases:'
/** Bypassed where the store does not answer: what cannot be read must be refused all the same. */
const OPTIONS = { keyPrefix, lease: 2_000, storeTimeout: 30_000, onStoreError: 'bypass' } as const

async function start (release: Release): Promise<Instance> {
  return await new Instance(t, release, redis.port, OPTIONS, builds.entries[release]).listening()
}

const running = Object.fromEntries(await Promise.all(
  (['current', 'reader', 'writer', 'version 2'] as const).map(async release => [release, await start(release)] as const)
)) as Record<Release, Instance>

const recordOf = async (key: string): Promise<Buffer> => (
  await client.getBuffer(storeKey(keyPrefix, undefined, key)) ?? Buffer.alloc(0)
)
const codeOf = (answer: Answer): string => `${answer.status} ${String(answer.json()['code'])}`
const UNREADABLE = '503 idempotency_store_unavailable'

function sameBytes (t: Test, replay: Answer, first: Answer): void {
  t.same([replay.status, replay.body, lines(replay)], [first.status, first.body, lines(first)], 'byte for byte')
  t.equal(replay.replayed, true)
}

/** A key whose first step is recorded, and whose second fails: it is freed, and stays bound to its request. */
async function freedAfterAStep (t: Test, instance: Instance, key: string): Promise<void> {
  instance.path = '/steps'
  const barrier = await instance.stopAt('between two steps', key)
  const first = instance.post(key)
  await barrier.reached
  provider.eats = 1
  await barrier.go()
  t.equal((await first).status, 500)
}

/** What the one has written, the other goes on with. The last passes over a release: it reads all the same. */
const READ: Array<[by: Release, other: Release]> = [
  ['current', 'reader'], ['reader', 'current'], ['reader', 'writer'], ['writer', 'reader'], ['current', 'writer']
]

for (const [by, name] of READ) {
  t.test(`two builds on one Redis: what "${by}" has written, "${name}" goes on with`, async t => {
    const holder = await start(by)
    const other = running[name]
    t.beforeEach(() => { holder.path = other.path = '/' })

    await t.test('G2, G3: a kept response is replayed, and another body refused', async t => {
      const key = randomUUID()
      const first = await holder.post(key, '{"amount":1}')
      t.equal(first.status, 201)
      sameBytes(t, await other.post(key, '{"amount":1}'), first)
      t.equal(codeOf(await other.post(key, '{"amount":2}')), '409 idempotency_key_mismatch')
      t.same(await other.executionsOf(key), [])
    })

    await t.test('G1, G2: a key that is held is refused, and then replayed', async t => {
      const key = randomUUID()
      const barrier = await holder.stopAt('in the handler', key)
      const first = holder.post(key)
      await barrier.reached
      t.equal(codeOf(await other.post(key)), '409 idempotency_in_progress')
      await barrier.go()
      const kept = await first
      sameBytes(t, await other.post(key), kept)
      t.same(await other.executionsOf(key), [])
    })

    await t.test('G16: a key that was freed after a step stays bound, and the step does not run again', async t => {
      const key = randomUUID()
      await freedAfterAStep(t, holder, key)
      t.equal((await recordOf(key)).includes(NOTE), by === 'writer', 'the new section')
      other.path = '/steps'
      t.equal(codeOf(await other.post(key, '{"other":1}')), '409 idempotency_key_mismatch')
      const barrier = await other.stopAt('between two steps', key)
      const answer = other.post(key)
      await barrier.reached
      t.equal((await recordOf(key)).includes(NOTE), by === 'writer', 'stays')
      await barrier.go()
      t.match((await answer).json(), { attempt: 2, pid: other.pid })
      t.equal(provider.told(), 'charge 1, mail 2')
      sameBytes(t, await holder.post(key), await answer)
    })

    await t.test('G5, G16: a holder that is killed between two steps is taken over', async t => {
      const key = randomUUID()
      holder.path = other.path = '/steps'
      const barrier = await holder.stopAt('between two steps', key)
      const first = t.rejects(holder.post(key))
      await barrier.reached
      t.equal(codeOf(await other.post(key)), '409 idempotency_in_progress')
      await holder.kill()
      await first
      let answer: Answer | undefined
      await until(async () => (answer = await other.post(key)).status !== 409, 'the end of the lease')
      t.match(answer?.json(), { attempt: 2, pid: other.pid })
      t.equal(provider.told(), 'charge 1, mail 1')
    })
  })
}

for (const [by, name] of [['version 2', 'current'], ['current', 'version 2']] as const) {
  t.test(`two builds on one Redis: the version that "${by}" writes, "${name}" refuses, and nothing runs`, async t => {
    const [holder, other] = [running[by], running[name]]
    holder.path = other.path = '/'
    const key = randomUUID()
    const barrier = await holder.stopAt('in the handler', key)
    const first = holder.post(key)
    await barrier.reached
    t.equal(codeOf(await other.post(key)), UNREADABLE, 'held')
    await barrier.go()
    t.equal((await first).status, 201)

    const record = await recordOf(key)
    t.equal(codeOf(await other.post(key)), UNREADABLE, 'kept')
    t.same(await recordOf(key), record, 'the record stays as it is')
    sameBytes(t, await holder.post(key), await first)

    const freed = randomUUID()
    await freedAfterAStep(t, holder, freed)
    other.path = '/steps'
    t.equal(codeOf(await other.post(freed)), UNREADABLE, 'freed')
    t.same([await other.executionsOf(key), await other.executionsOf(freed)], [[], []])
    t.equal(provider.told(), 'charge 1, mail 1')
  })
}

t.test('two builds on one Redis: a section that "current" does not know is refused, and nothing runs', async t => {
  const { writer, current } = running
  const key = randomUUID()
  await freedAfterAStep(t, writer, key)
  current.path = '/steps'
  const record = await recordOf(key)
  t.equal(codeOf(await current.post(key)), UNREADABLE, 'freed')
  t.same(await recordOf(key), record, 'the record stays as it is')

  const barrier = await writer.stopAt('between two steps', key)
  const answer = writer.post(key)
  await barrier.reached
  t.equal(codeOf(await current.post(key)), UNREADABLE, 'held')
  await barrier.go()
  t.match((await answer).json(), { attempt: 2 })
  t.equal(provider.told(), 'charge 1, mail 2')

  sameBytes(t, await current.post(key), await answer)
  t.same(await current.executionsOf(key), [])
})
