import t from 'tap'
import { until } from '../fixtures/app.ts'
import { instances, type Pair } from '../fixtures/instances.ts'
import { connect, startRedis, type RedisServer } from '../fixtures/redis.ts'
import { play, type Cell, type Scene, type Stopped } from '../fixtures/scene.ts'

/** What becomes of a key when Redis dies, freezes or forgets, at each step of the request that holds it. */

const UNAVAILABLE = '503 idempotency_store_unavailable'
const ONCE = ['holder 1']
const KEPT = '201 holder 1 replayed'

type Fault = keyof typeof FAULTS

const MATRIX: Array<Cell<Fault>> = [
  // the first client | a retry with the other while Redis is down | once it is back | with the holder
  {
    fault: 'dies, and comes back with its data',
    step: 'before the claim',
    executions: ['other 1'],
    answers: [
      UNAVAILABLE, UNAVAILABLE, '201 other 1', '201 other 1 replayed'
    ]
  },
  {
    fault: 'dies, and comes back with its data',
    step: 'after the claim',
    executions: ONCE,
    answers: [
      '201 holder 1', UNAVAILABLE, KEPT, KEPT
    ]
  },
  {
    fault: 'dies, and comes back with its data',
    step: 'in the handler',
    executions: ONCE,
    answers: [
      '201 holder 1', UNAVAILABLE, KEPT, KEPT
    ]
  },
  {
    fault: 'dies, and comes back with its data',
    step: 'before the keep',
    executions: ONCE,
    answers: [
      '201 holder 1', UNAVAILABLE, KEPT, KEPT
    ]
  },
  {
    fault: 'dies, and comes back with its data',
    step: 'after the keep',
    executions: ONCE,
    answers: [
      '201 holder 1', UNAVAILABLE, KEPT, KEPT
    ]
  },

  // the first client | a retry with the other | with the holder
  { fault: 'comes back empty', step: 'before the claim', executions: ONCE, answers: ['201 holder 1', KEPT, KEPT] },
  { fault: 'comes back empty', step: 'after the claim', executions: ONCE, answers: ['201 holder 1', KEPT, KEPT] },
  { fault: 'comes back empty', step: 'in the handler', executions: ONCE, answers: ['201 holder 1', KEPT, KEPT] },
  { fault: 'comes back empty', step: 'before the keep', executions: ONCE, answers: ['201 holder 1', KEPT, KEPT] },
  // What a Redis without persistence loses: the key starts anew.
  {
    fault: 'comes back empty',
    step: 'after the keep',
    executions: ['holder 1', 'other 1'],
    answers: [
      '201 holder 1', '201 other 1', '201 other 1 replayed'
    ]
  },

  // the same; Redis is down until the first client has its answer, and a retry comes once the holder has written it
  // anew
  {
    fault: 'comes back empty after the reply',
    step: 'after the claim',
    executions: ONCE,
    answers: [
      '201 holder 1', KEPT, KEPT
    ]
  },
  {
    fault: 'comes back empty after the reply',
    step: 'in the handler',
    executions: ONCE,
    answers: [
      '201 holder 1', KEPT, KEPT
    ]
  },
  {
    fault: 'comes back empty after the reply',
    step: 'before the keep',
    executions: ONCE,
    answers: [
      '201 holder 1', KEPT, KEPT
    ]
  },

  // the first client | a retry with the other | with the holder
  { fault: 'is flushed', step: 'after the claim', executions: ONCE, answers: ['201 holder 1', KEPT, KEPT] },
  { fault: 'is flushed', step: 'in the handler', executions: ONCE, answers: ['201 holder 1', KEPT, KEPT] },
  { fault: 'is flushed', step: 'before the keep', executions: ONCE, answers: ['201 holder 1', KEPT, KEPT] },
  {
    fault: 'is flushed',
    step: 'after the keep',
    executions: ['holder 1', 'other 1'],
    answers: [
      '201 holder 1', '201 other 1', '201 other 1 replayed'
    ]
  },

  // the first client | a retry with the other while Redis is frozen | once what came late is settled | with the holder
  {
    fault: 'freezes for longer than storeTimeout',
    step: 'before the claim',
    executions: ['other 1'],
    answers: [
      UNAVAILABLE, UNAVAILABLE, '201 other 1', '201 other 1 replayed'
    ]
  },
  {
    fault: 'freezes for longer than storeTimeout',
    step: 'after the claim',
    executions: ONCE,
    answers: [
      '201 holder 1', UNAVAILABLE, KEPT, KEPT
    ]
  },
  {
    fault: 'freezes for longer than storeTimeout',
    step: 'in the handler',
    executions: ONCE,
    answers: [
      '201 holder 1', UNAVAILABLE, KEPT, KEPT
    ]
  },
  {
    fault: 'freezes for longer than storeTimeout',
    step: 'before the keep',
    executions: ONCE,
    answers: [
      '201 holder 1', UNAVAILABLE, KEPT, KEPT
    ]
  },
  {
    fault: 'freezes for longer than storeTimeout',
    step: 'after the keep',
    executions: ONCE,
    answers: [
      '201 holder 1', UNAVAILABLE, KEPT, KEPT
    ]
  }
]

interface Struck extends Stopped { redis: RedisServer }

/** Both instances are connected: none meets the end of an attempt that was made before Redis was up. */
async function connected ({ holder, other, key }: Scene): Promise<void> {
  for (const instance of [holder, other]) {
    await until(async () => /^(absent|held|freed|completed)$/.test(await instance.state(key)), 'a connection to Redis')
  }
}

const PROMISES: Record<Fault, string> = {
  'dies, and comes back with its data': 'G1, G10',
  'comes back empty': 'G2, G10',
  'comes back empty after the reply': 'G2, G10',
  'is flushed': 'G2, G10',
  'freezes for longer than storeTimeout': 'G1, G10'
}

const FAULTS = {
  async 'dies, and comes back with its data' ({ scene, barrier, first, redis }: Struck) {
    const { holder, other } = scene
    await redis.kill()
    await barrier.go()
    const answers = [await first, await scene.ask(other)]
    await restart(redis)
    return [...answers, await scene.settled(other), await scene.ask(holder)]
  },
  async 'comes back empty' ({ scene, barrier, first, redis }: Struck) {
    await restart(redis)
    await connected(scene)
    await barrier.go()
    return [await first, await scene.ask(scene.other), await scene.ask(scene.holder)]
  },
  async 'comes back empty after the reply' ({ scene, barrier, first, redis }: Struck) {
    const { holder, other, key } = scene
    await redis.kill()
    await barrier.go()
    const answer = await first
    await restart(redis)
    await until(async () => await other.state(key) === 'completed', 'the outcome is written anew')
    return [answer, await scene.ask(other), await scene.ask(holder)]
  },
  async 'is flushed' ({ scene, barrier, first, redis }: Struck) {
    const client = connect(redis.port)
    await client.flushall()
    client.disconnect()
    await barrier.go()
    return [await first, await scene.ask(scene.other), await scene.ask(scene.holder)]
  },
  async 'freezes for longer than storeTimeout' ({ scene, barrier, first, redis }: Struck) {
    const { holder, other, key } = scene
    redis.process.kill('SIGSTOP')
    await barrier.go()
    const answers = [await first, await scene.ask(other)]
    redis.process.kill('SIGCONT')
    // Nothing is left held: a claim that was granted late is given back, an outcome kept.
    await until(async () => /freed|completed/.test(await other.state(key)), 'the key is settled')
    return [...answers, await scene.ask(other), await scene.ask(holder)]
  }
}

/**
 * A server per kind, and two instances on it. The barriers stand inside the store's operations, whose time matters only
 * in the last.
 */
interface Stage { redis: RedisServer, pair: Pair }
const stage = async (durable: boolean, storeTimeout: number): Promise<Stage> => {
  const redis = await startRedis({ durable })
  return { redis, pair: await instances(t, ['holder', 'other'], redis.port, { storeTimeout }) }
}
const [durable, volatile, impatient] = await Promise.all([stage(true, 30_000), stage(false, 30_000), stage(false, 300)])
const stageOf = (fault: Fault): Stage => fault.startsWith('dies')
  ? durable
  : fault.startsWith('freezes')
    ? impatient
    : volatile
t.teardown(async () => { for (const { redis } of [durable, volatile, impatient]) await redis.stop() })

async function restart (redis: RedisServer): Promise<void> {
  for (const stage of [durable, volatile]) if (stage.redis === redis) stage.redis = await redis.restart()
}

for (const cell of MATRIX) {
  const { fault, step } = cell
  t.test(`${PROMISES[fault]}: Redis ${fault}, ${step}`, async t => {
    const { redis, pair } = stageOf(fault)
    await play(t, pair, cell, async stopped => await FAULTS[fault]({ ...stopped, redis }))
  })
}
