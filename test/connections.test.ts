import { randomUUID } from 'node:crypto'
import { Redis, type RedisOptions } from 'ioredis'
import t, { type Test } from 'tap'
import { gate, redisServer, start, stopRedis, until, type Answer } from './fixtures/app.ts'
import { listen } from './fixtures/faulty.ts'
import { startProxy, type Proxy } from './fixtures/proxy.ts'

/**
 * What becomes of a key when the connection to Redis is lost with a step of the store under way: with its request, or
 * with its reply.
 */

t.teardown(stopRedis)

interface Cell {
  fault: keyof typeof CLIENTS
  step: 'claim' | 'renew' | 'complete' | 'release'
  lost: Exclude<Proxy['lose'], undefined>
  /** The attempts, as the handler saw them. */
  executions: number[]
  /**
   * To the first client | to a retry: at once, but once the key is settled where that happens in the background | to
   * another.
   */
  answers: string[]
  /** What the operator is told. */
  events: string[]
}

const UNAVAILABLE = '503 idempotency_store_unavailable'
/** The route of the cells of `release` fails the first time. */
const FAILED = ['500 attempt 1', '200 attempt 2', '200 attempt 2 replayed']
const KEPT = ['200 attempt 1', '200 attempt 1 replayed', '200 attempt 1 replayed']
const REFUSED = [UNAVAILABLE, '200 attempt 1', '200 attempt 1 replayed']

const MATRIX: Cell[] = [
  // ioredis' default: what was not answered is sent again on the next connection
  { fault: 'sends again', step: 'claim', lost: 'requests', executions: [1], answers: KEPT, events: [] },
  { fault: 'sends again', step: 'claim', lost: 'replies', executions: [1], answers: KEPT, events: [] },
  { fault: 'sends again', step: 'renew', lost: 'requests', executions: [1], answers: KEPT, events: [] },
  { fault: 'sends again', step: 'renew', lost: 'replies', executions: [1], answers: KEPT, events: [] },
  { fault: 'sends again', step: 'complete', lost: 'requests', executions: [1], answers: KEPT, events: [] },
  { fault: 'sends again', step: 'complete', lost: 'replies', executions: [1], answers: KEPT, events: [] },
  { fault: 'sends again', step: 'release', lost: 'requests', executions: [1, 2], answers: FAILED, events: [] },
  { fault: 'sends again', step: 'release', lost: 'replies', executions: [1, 2], answers: FAILED, events: [] },

  { fault: 'gives up', step: 'claim', lost: 'requests', executions: [1], answers: REFUSED, events: ['store-error'] },
  { fault: 'gives up', step: 'claim', lost: 'replies', executions: [1], answers: REFUSED, events: ['store-error'] },
  { fault: 'gives up', step: 'renew', lost: 'requests', executions: [1], answers: KEPT, events: ['store-error'] },
  { fault: 'gives up', step: 'renew', lost: 'replies', executions: [1], answers: KEPT, events: ['store-error'] },
  { fault: 'gives up', step: 'complete', lost: 'requests', executions: [1], answers: KEPT, events: ['store-error'] },
  { fault: 'gives up', step: 'complete', lost: 'replies', executions: [1], answers: KEPT, events: ['store-error'] },
  {
    fault: 'gives up', step: 'release', lost: 'requests', executions: [1, 2], answers: FAILED, events: ['store-error']
  },
  { fault: 'gives up', step: 'release', lost: 'replies', executions: [1, 2], answers: FAILED, events: ['store-error'] }
]

const CLIENTS = {
  'sends again': { maxRetriesPerRequest: 1 },
  'gives up': { maxRetriesPerRequest: 0, autoResendUnfulfilledCommands: false }
} satisfies Record<string, RedisOptions>

/** Longer than it takes to connect again: a lost renewal is no lost lease. */
const LEASE = 3_000

async function setUp (t: Test, fault: Cell['fault'], failing: boolean) {
  const proxy = await startProxy((await redisServer()).port)
  t.teardown(proxy.stop)
  const client = new Redis(
    proxy.port, '127.0.0.1', { retryStrategy: () => 50, ...CLIENTS[fault] }
  ).on('error', () => {})
  t.teardown(() => client.disconnect())
  const executions: number[] = []
  const entered = gate()
  const finish = gate()
  const { app, post } = await start(t, 'memory', {
    options: { redis: client, keyPrefix: `${randomUUID()}:`, lease: LEASE, storeTimeout: 10_000 },
    routes: app => {
      app.post('/', async (request, reply) => {
        const { attempt = 0 } = request.idempotency ?? {}
        executions.push(attempt)
        entered.open()
        await finish.promise
        return await reply.code(failing && attempt === 1 ? 500 : 200).send({ id: randomUUID(), attempt })
      })
      app.post('/status/:code', async (request, reply) => await reply.code(
        Number((request.params as { code: string }).code)
      ).send())
    }
  })
  // Redis knows the scripts from then on: each step is one request and one reply.
  for (const code of ['200', '500']) await post(code, '{}', { path: `/status/${code}` })
  await app.idempotency.store.renew('none', randomUUID(), 1, 1, '')
  return { proxy, app, post, executions, entered, finish }
}

/** `200 attempt 1`, or status and code of a refusal. */
function describe ({ status, json, replayed }: Answer): string {
  const { code, attempt } = json()
  const what = attempt === undefined ? String(code) : `attempt ${String(attempt)}`
  return `${status} ${what}${replayed ? ' replayed' : ''}`
}

for (const { fault, step, lost, executions, answers, events } of MATRIX) {
  t.test(`G1, G6, G10: the ${lost} of a ${step} are lost, and the client ${fault}`, async t => {
    const { proxy, app, post, executions: ran, entered, finish } = await setUp(t, fault, step === 'release')
    const told = (['store-error', 'lease-lost'] as const).map(name => ({ name, events: listen(t, name) }))
    /** Fails while there is no connection. */
    const state = async (): Promise<string | undefined> => await app.idempotency.inspect({ key: 'k' }).then(
      found => found?.state, () => 'unknown'
    )

    let first
    if (step !== 'claim') {
      first = post('k', '{}')
      await entered.promise
    }
    const loss = proxy.loss()
    proxy.lose = lost
    if (step !== 'renew') finish.open()
    first ??= post('k', '{}')
    await loss
    proxy.lose = undefined
    proxy.cut()
    // Sent again before this is answered.
    if (step === 'renew') await until(async () => await state() === 'held', 'the next connection')
    finish.open()

    const all = [await first]
    if (fault === 'gives up' && step !== 'claim') {
      await until(async () => /freed|completed/.test(String(await state())), 'the outcome is in the store')
    }
    all.push(await post('k', '{}'), await post('k', '{}'))
    t.same(all.map(describe), answers, 'answers')
    t.same(ran, executions, 'executions')
    t.equal(new Set(all.filter(({ status }) => status === 200).map(({ text }) => text)).size, 1, 'one outcome')
    t.same(told.flatMap(({ name, events }) => events.map(() => name)), events, 'events')
  })
}
