import { randomUUID } from 'node:crypto'
import t from 'tap'
import { until } from '../fixtures/app.ts'
import { instances, type Instance, type Pair } from '../fixtures/instances.ts'
import { connect, startRedis } from '../fixtures/redis.ts'
import { play, type Cell, type Stopped } from '../fixtures/scene.ts'
import { Provider } from '../fixtures/step-provider.ts'

/** What becomes of steps when the instance that runs them is killed or frozen, or Redis fails, at each point. */

const IN_PROGRESS = '409 idempotency_in_progress'
const BOTH = ['holder 1', 'other 2']
/** The client of the dead one, a retry at once, a retry after the lease, another. */
const TAKEN_OVER = ['none', IN_PROGRESS, '201 other 2', '201 other 2 replayed']

type Fault = keyof typeof FAULTS
type StepCell = Cell<Fault> & { /** How often the provider was asked for what. */ asked: string, path?: string }

const AFTER = ['201 other 2', '201 other 2 replayed']

const once = 'charge 1, mail 1'
const MATRIX: StepCell[] = [
  { fault: 'killed', step: 'before the step', executions: BOTH, answers: TAKEN_OVER, asked: once },
  { fault: 'killed', step: 'in the step', executions: BOTH, answers: TAKEN_OVER, asked: once },
  { fault: 'killed', step: 'done, not recorded', executions: BOTH, answers: TAKEN_OVER, asked: 'charge 2, mail 1' },
  { fault: 'killed', step: 'recorded', executions: BOTH, answers: TAKEN_OVER, asked: once },
  { fault: 'killed', step: 'between two steps', executions: BOTH, answers: TAKEN_OVER, asked: once },
  { fault: 'killed', step: 'after the last step', executions: BOTH, answers: TAKEN_OVER, asked: once },
  { fault: 'killed', step: 'before the keep', executions: BOTH, answers: TAKEN_OVER, asked: once }
]

async function kill ({ scene, first }: Stopped): Promise<string[]> {
  await scene.holder.kill()
  return [await first, await scene.ask(scene.other), await scene.settled(scene.other), await scene.ask(scene.other)]
}

const FAULTS = {
  killed: kill,
  async frozen ({ scene, barrier, first }: Stopped) {
    const { holder, other } = scene
    holder.freeze()
    const winner = await scene.settled(other)
    holder.thaw()
    await barrier.go()
    return [winner, await first, await scene.ask(holder)]
  },
  async flushed ({ scene, barrier, first }: Stopped) {
    await client.flushall()
    await barrier.go()
    return [await first, await scene.settled(scene.other), await scene.ask(scene.holder)]
  },
  async stopped ({ scene, barrier, first }: Stopped) {
    await redis.kill()
    await barrier.go()
    const answer = await first
    redis = await redis.restart()
    return [answer, await scene.settled(scene.other), await scene.ask(scene.holder)]
  }
}

/** The other's client, the late one's, a retry with the late one. */
const LATE = ['201 other 2', '201 other 2 replayed', '201 other 2 replayed']
MATRIX.push(
  { fault: 'frozen', step: 'before the step', executions: BOTH, answers: LATE, asked: once },
  { fault: 'frozen', step: 'in the step', executions: BOTH, answers: LATE, asked: 'charge 2, mail 1' },
  { fault: 'frozen', step: 'done, not recorded', executions: BOTH, answers: LATE, asked: 'charge 2, mail 1' },
  { fault: 'frozen', step: 'recorded', executions: BOTH, answers: LATE, asked: once },
  { fault: 'frozen', step: 'between two steps', executions: BOTH, answers: LATE, asked: once },
  { fault: 'frozen', step: 'after the last step', executions: BOTH, answers: LATE, asked: once },
  // With `interrupted` the provider is asked whether it knows the key.
  {
    fault: 'killed', step: 'before the step', path: '/interrupted', executions: BOTH, answers: TAKEN_OVER, asked: once
  },
  {
    fault: 'killed',
    step: 'in the step',
    path: '/interrupted',
    executions: BOTH,
    answers: TAKEN_OVER,
    asked: 'look-up 1, charge 1, mail 1'
  },
  {
    fault: 'killed',
    step: 'done, not recorded',
    path: '/interrupted',
    executions: BOTH,
    answers: TAKEN_OVER,
    asked: 'charge 1, look-up 1, mail 1'
  },
  {
    fault: 'killed', step: 'between two steps', path: '/interrupted', executions: BOTH, answers: TAKEN_OVER, asked: once
  },
  // The first client, a retry with the other, one with the holder. The execution that lives writes its steps again.
  {
    fault: 'flushed',
    step: 'between two steps',
    executions: BOTH,
    answers: [
      IN_PROGRESS, ...AFTER
    ],
    asked: 'charge 1, mail 2'
  },
  {
    fault: 'stopped',
    step: 'between two steps',
    executions: BOTH,
    answers: [
      '503 idempotency_store_unavailable', ...AFTER
    ],
    asked: 'charge 1, mail 2'
  }
)

const provider = new Provider()
await provider.start(t)
let redis = await startRedis({ durable: true })
const client = connect(redis.port)
t.teardown(async () => {
  client.disconnect()
  await redis.stop()
})
const options = { lease: 1_000, storeTimeout: 30_000, keyPrefix: `${randomUUID()}:` }
const bounded = { ...options, storeTimeout: 500 }
const shared: Pair = await instances(t, ['holder', 'other'], redis.port, options)
const impatient: Pair = await instances(t, ['holder', 'other'], redis.port, bounded)

/** Whoever is killed serves one cell only. */
let killed = false

async function pairFor (fault: Fault): Promise<Pair> {
  if (fault === 'flushed' || fault === 'stopped') return impatient
  if (killed) shared.holder = (await instances(t, ['holder'], redis.port, options)).holder
  killed = fault === 'killed'
  return shared
}

const usable = async ({ holder, other }: Pair): Promise<void> => {
  for (const instance of [holder, other]) {
    await until(async () => await instance.state('none') === 'absent', 'a connection to Redis')
  }
}

for (const cell of MATRIX) {
  const { fault, step, path = '/steps' } = cell
  t.test(`G16: ${fault}, ${step}${path === '/steps' ? '' : ', with interrupted'}: ${cell.asked}`, async t => {
    const pair = await pairFor(fault)
    await usable(pair)
    for (const instance of Object.values(pair) as Instance[]) instance.path = path
    await play(t, pair, cell, FAULTS[fault])
    t.equal(provider.told(), cell.asked)
  })
}

t.test('G16, G17: a provider that eats its answers is asked again with the same key, by any instance', async t => {
  await usable(impatient)
  const { holder, other } = impatient
  const key = randomUUID()
  for (const instance of [holder, other]) instance.path = '/steps'
  provider.eats = 2
  t.equal((await holder.post(key)).status, 500)
  t.equal((await other.post(key)).status, 500)
  t.match((await holder.post(key)).json(), { charge: 'charge 1', mail: 'mail 2', attempt: 3 })
  t.equal((await other.post(key)).replayed, true)
  t.equal(provider.told(), 'charge 3, mail 1')
})
