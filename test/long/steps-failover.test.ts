import { randomUUID } from 'node:crypto'
import t from 'tap'
import { start, until } from '../fixtures/app.ts'
import { instances, type Instance, type Pair } from '../fixtures/instances.ts'
import { startProxy } from '../fixtures/proxy.ts'
import { connect } from '../fixtures/redis.ts'
import { replicaOf, startReplicated } from '../fixtures/replicas.ts'
import { Scene } from '../fixtures/scene.ts'
import { Provider } from '../fixtures/step-provider.ts'

/**
 * Redis fails over between two steps, `charge` and `mail`: the primary is killed, and its replica, which may lack the
 * last writes, promoted. What a step has lost is asked again with the same derived key, so that it has one effect.
 */

const provider = new Provider()
await provider.start(t)
const way = await startProxy(0)
t.teardown(way.stop)
const options = { lease: 2_000, storeTimeout: 1_000, keyPrefix: `${randomUUID()}:` }
const shared: Pair = await instances(t, ['holder', 'other'], way.port, options)
for (const instance of [shared.holder, shared.other]) instance.path = '/steps'

/** The first write that does not get to the replica. */
type Lost = 'nothing' | 'the record' | 'the claim'

/** The client of the first execution, a retry with the other, one more. */
const FINISHED = ['201 holder 1', '201 holder 1 replayed', '201 holder 1 replayed']
const TAKEN_OVER = ['none', '201 other 2', '201 other 2 replayed']
const ANEW = ['none', '201 other 1', '201 other 1 replayed']
const RUN_AGAIN = ['409 idempotency_in_progress', '201 other 2', '201 other 2 replayed']

for (const [lost, dies, executions, answers, asked] of [
  ['nothing', true, ['holder 1', 'other 2'], TAKEN_OVER, 'charge 1, mail 1'],
  ['the record', true, ['holder 1', 'other 2'], TAKEN_OVER, 'charge 2, mail 1'],
  ['the claim', true, ['holder 1', 'other 1'], ANEW, 'charge 2, mail 1'],
  ['nothing', false, ['holder 1'], FINISHED, 'charge 1, mail 1'],
  ['the record', false, ['holder 1'], FINISHED, 'charge 1, mail 1'],
  ['the claim', false, ['holder 1', 'other 2'], RUN_AGAIN, 'charge 1, mail 1']
] satisfies Array<[Lost, boolean, string[], string[], string]>) {
  const ends = dies ? 'dies too' : 'lives'
  t.test(`G16, G17: a failover between two steps that loses ${lost}; the process ${ends}: ${asked}`, async t => {
    const { link, replica, failOver } = await startReplicated(t, way)
    const pair = { ...shared }
    if (dies) pair.holder = (await instances(t, ['holder'], way.port, options)).holder
    pair.holder.path = '/steps'
    const usable = async (...all: Instance[]): Promise<void> => {
      for (const instance of all) {
        await until(async () => await instance.state('none') === 'absent', 'a connection to Redis')
      }
    }
    await usable(pair.holder, pair.other)
    const scene = new Scene(pair)
    const { holder, other, key } = scene
    const claimed = await holder.stopAt('before the step', key)
    const recorded = await holder.stopAt('between two steps', key)
    if (lost === 'the claim') link.lose = 'replies'
    const first = scene.ask(holder)
    await claimed.reached
    if (lost === 'the record') {
      await until(replica.isLinked, 'the replica has the claim')
      link.lose = 'replies'
    }
    await claimed.go()
    await recorded.reached
    if (lost === 'nothing') await until(replica.isLinked, 'the replica has the record')
    if (dies) await holder.kill()
    await failOver()
    await usable(...dies ? [other] : [holder, other])
    if (!dies) {
      // It has renewed its lease there, or knows that it has lost it.
      await holder.executionsOf(key)
      const { length } = holder.renewals
      await until(() => holder.renewals.length > length, 'a renewal')
      await recorded.go()
    }
    const seen = [await first, await scene.settled(other), await scene.ask(other)]
    t.same(seen, answers, 'answers')
    t.same(await scene.executions(), executions, 'executions')
    // It would tell of two effects of one step.
    t.equal(provider.told(), asked)
  })
}

t.test('G16, G17: with minReplicas a step that a failover could lose does not count; the next has its key', async t => {
  const { link, replica, way, failOver } = await startReplicated(t)
  const client = connect(way.port)
  t.teardown(() => client.disconnect())
  const keys: string[] = []
  const mails: string[] = []
  const { post } = await start(t, 'memory', {
    options: { redis: client, minReplicas: 1, lease: 2_000 },
    routes: app => app.post('/', async request => {
      const { step } = request.idempotency
      const charge = await step('charge', ({ key }) => {
        // The first time, the record does not get to the replica.
        if (keys.push(key) === 1) link.lose = 'replies'
        return `charge ${new Set(keys).size}`
      })
      await step('mail', ({ key }) => { mails.push(key) })
      return { charge }
    })
  })
  const refused = await post('k', '{}')
  t.same([refused.status, refused.json()['code'], mails], [503, 'idempotency_store_unavailable', []], 'nothing goes on')
  await failOver()
  await replicaOf(t, replica.port)
  let answer = refused
  await until(async () => (answer = await post('k', '{}')).status === 200, 'the step counts')
  t.same(answer.json(), { charge: 'charge 1' })
  // Asked again, unless the key was freed, with what is known of it, only after the failover.
  t.same([new Set(keys).size, mails.length], [1, 1], 'one key, however often it was asked')
  t.equal((await post('k', '{}')).replayed, true)
})
