import { randomUUID } from 'node:crypto'
import t from 'tap'
import { MemoryStore, RedisStore, type RedisStoreClient } from '../../lib/index.ts'
import { storeKey } from '../../lib/protocol/fingerprint.ts'
import { gate, redisClient, start, STORES, stopRedis, until } from '../fixtures/app.ts'
import { faulty, listen, type Faults } from '../fixtures/faulty.ts'

t.teardown(stopRedis)

t.test('G1: a request that was frozen after its claim does not run if its key was taken over', async t => {
  for (const taken of [true, false]) {
    const granted = gate()
    const go = gate()
    const store = faulty({})
    const { claim } = store
    store.claim = async (...args) => {
      const answer = await claim(...args)
      granted.open()
      await go.promise
      return answer
    }
    let runs = 0
    const { post } = await start(t, 'memory', {
      options: { store, lease: 120, keyPrefix: '' },
      routes: app => app.post('/', async () => {
        runs++
        return 'late'
      })
    })
    const frozen = post('k')
    await granted.promise
    const key = storeKey('', undefined, 'k')
    const other = { token: 'another', lease: 60_000, ttl: 60_000, takeover: true }
    if (taken) await until(() => store.inner.claim(key, other).outcome === 'acquired', 'the takeover')
    go.open()
    const answer = await frozen
    t.same([runs, answer.status], taken ? [0, 409] : [1, 200])
  }
})

for (const mode of STORES) {
  t.test(`attempt counts executions, and nothing that never ran (${mode})`, async t => {
    const { post, app } = await start(t, mode, {
      routes: app => {
        app.post(
          '/',
          {
            preHandler: async request => { if (request.headers['x-stop'] !== undefined) throw new Error('not today') }
          },
          async (request, reply) => await reply.code(request.headers['x-fail'] === undefined ? 200 : 500).send(
            { attempt: request.idempotency?.attempt }
          )
        )
      }
    })
    const attempt = async (name: string): Promise<unknown> => (
      await post('k', '{}', { headers: { 'content-type': 'application/json', 'idempotency-key': 'k', [name]: 'yes' } })
    ).json()['attempt']
    await attempt('x-stop')
    t.equal((await app.idempotency.inspect({ key: 'k' }))?.attempt, 0)
    t.equal(await attempt('x-fail'), 1)
    await attempt('x-stop')
    await attempt('x-stop')
    t.equal(await attempt('x-fail'), 2)
    t.equal(await attempt('x-work'), 3)
  })

  t.test(`the process that runs the original tells a mismatch at once (${mode})`, async t => {
    const finish = gate()
    const entered = gate()
    const { post } = await start(t, mode, {
      routes: app => app.post('/', async () => {
        entered.open()
        await finish.promise
        return 'ok'
      })
    })
    const first = post('k', '{"a":1}')
    await entered.promise
    t.equal((await post('k', '{"a":2}')).json().code, 'idempotency_key_mismatch')
    t.equal((await post('k', '{"a":1}')).json().code, 'idempotency_in_progress')
    finish.open()
    t.equal((await first).text, 'ok')
  })

  t.test(`G1, G2: of many waiters one runs after a failure, and the others get its replay (${mode})`, async t => {
    let runs = 0
    const entered = gate()
    const finish = gate()
    const { post } = await start(t, mode, {
      options: { inFlight: { wait: 60_000 } },
      routes: app => app.post('/', async (_request, reply) => {
        const run = runs++
        if (run > 0) return { run }
        entered.open()
        await finish.promise
        return await reply.code(503).send({ run })
      })
    })
    const first = post('k', '{}')
    await entered.promise
    const waiters = Array.from({ length: 20 }, async () => await post('k', '{}'))
    finish.open()
    t.equal((await first).status, 503)
    const answers = await Promise.all(waiters)
    t.ok(answers.every(({ status, text }) => status === 200 && text === '{"run":1}'))
    t.equal(answers.filter(({ replayed }) => !replayed).length, 1)
  })
}

t.test('inFlight wait: in process a waiter is woken rather than polling, and its client may leave', async t => {
  const entered = gate()
  const finish = gate()
  const store = new MemoryStore()
  let claims = 0
  const { claim } = store
  store.claim = (...args) => {
    claims++
    return claim.apply(store, args)
  }
  const { post, port, app } = await start(t, 'memory', {
    options: {
      store, inFlight: { wait: 60_000 }
    },
    routes: app => app.post('/', async () => {
      entered.open()
      await finish.promise
      return 'ok'
    })
  })
  const first = post('k', '{}')
  await entered.promise
  const controller = new AbortController()
  const left = fetch(`http://127.0.0.1:${port}/`, {
    method: 'POST',
    headers: {
      'idempotency-key': 'k', 'content-type': 'application/json'
    },
    body: '{}',
    signal: controller.signal
  }).catch(() => 'left')
  const waiter = post('k', '{}')
  await until(() => claims === 3, 'both wait')
  await new Promise(resolve => setTimeout(resolve, 100))
  controller.abort()
  t.equal(await left, 'left')
  await until(async () => await new Promise(
    resolve => app.server.getConnections((_error, count) => resolve(count === 2))
  ), 'the server has seen it')
  finish.open()
  t.equal((await waiter).replayed, true)
  t.equal((await first).text, 'ok')
  t.equal(claims, 4)
  await app.close()
})

t.test('inFlight wait: a waiter asks again after a lease, since a holder that has died wakes nobody', async t => {
  const store = new MemoryStore()
  store.claim(storeKey('', undefined, 'k'), { token: 'dead', lease: 60, ttl: 60_000, takeover: true })
  const { post } = await start(t, 'memory', {
    options: {
      store, keyPrefix: '', lease: 120, inFlight: { wait: 60_000 }
    },
    routes: app => app.post('/', async request => ({ attempt: request.idempotency?.attempt }))
  })
  t.same((await post('k', '{}')).json(), { attempt: 2 })
})

t.test('G2: a holder that alone cannot reach the store shows no outcome once its lease must have passed', async t => {
  const store = new MemoryStore()
  const faults: Faults = {}
  const cutOff = faulty(faults)
  const lost = listen(t, 'lease-lost')
  const entered = gate()
  const finish = gate()
  const aborted = gate()
  const shared = {
    claim: store.claim.bind(store), complete: store.complete.bind(store), renew: store.renew.bind(store)
  }
  const away = async (): Promise<never> => await new Promise(() => {})
  const partitioned = { ...cutOff, ...shared, complete: away, renew: away }
  const one = await start(t, 'memory', {
    options: { store: partitioned, lease: 100, storeTimeout: 80, keyPrefix: '' },
    routes: app => app.post('/', async request => {
      request.idempotency?.signal.addEventListener('abort', aborted.open)
      entered.open()
      await finish.promise
      return { by: 'one' }
    })
  })
  const other = await start(
    t, 'memory', { options: { store, keyPrefix: '' }, routes: app => app.post('/', async () => ({ by: 'other' })) }
  )
  const first = one.post('k', '{}')
  await entered.promise
  await aborted.promise
  await until(async () => (await other.post('k', '{}')).status === 200, 'the takeover')
  finish.open()
  t.equal((await first).json().code, 'idempotency_in_progress')
  t.equal((await other.post('k', '{}')).text, '{"by":"other"}')
  t.equal(lost.length, 1)
})

t.test('G10: an answer that is there already counts, though the process was frozen past the time for it', async t => {
  const client = await redisClient()
  const prefix = `{${randomUUID()}}`
  // Connects to the very server that will hold the key, and gives it the script: one freeze, one answer.
  await new RedisStore(client).claim(prefix, { token: 'x'.repeat(36), lease: 60_000, ttl: 60_000, takeover: true })
  const redis: RedisStoreClient = {
    callBuffer: async (command, ...args) => {
      const answer = client.callBuffer(command, ...args)
      // Stands for a freeze: when it ends, the time is over and the answer is in the socket.
      setImmediate(() => {
        const end = performance.now() + 200
        while (performance.now() < end);
      })
      return await answer
    }
  }
  const { post } = await start(t, 'memory', {
    options: { redis, keyPrefix: prefix, storeTimeout: 50 }, routes: app => app.post('/', async () => 'ok')
  })
  t.equal((await post('k', '{}')).status, 200)
})

t.test('a fingerprint function that throws is the request\'s own error, also when a renewal asks for it', async t => {
  const finish = gate()
  const store = faulty({})
  const { post } = await start(t, 'memory', {
    options: { store, lease: 120, fingerprint: () => { throw new Error('no fingerprint') } },
    before: app => app.addHook('preHandler', async () => await finish.promise),
    routes: app => app.post('/', async () => 'ok')
  })
  const first = post('k', '{}')
  await until(() => store.calls.includes('renew'), 'a renewal')
  t.equal((await post('k', '{}')).json().code, 'idempotency_in_progress')
  finish.open()
  t.match((await first).json(), { statusCode: 500, message: 'no fingerprint' })
})
