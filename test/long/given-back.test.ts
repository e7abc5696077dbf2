import { randomUUID } from 'node:crypto'
import t from 'tap'
import { MemoryStore, RedisStore } from '../../lib/index.ts'
import { start, stopRedis, until } from '../fixtures/app.ts'
import { fails, faulty, type Faults } from '../fixtures/faulty.ts'
import { connect, startRedis } from '../fixtures/redis.ts'

/** What the store has not taken at once: claims that are given back, and outcomes. */

t.teardown(stopRedis)

t.test('G6, G10: a claim that nobody uses is given back until the store takes it', async t => {
  for (const tries of [1, 3]) {
    const faults: Faults = {}
    const store = faulty(faults)
    const { claim } = store
    // Granted, and the answer lost.
    store.claim = async (...args) => {
      await claim(...args)
      throw new Error('connection lost')
    }
    let failures = 0
    let runs = 0
    faults.release = () => { if (++failures <= tries) fails() }
    const { post, app } = await start(t, 'memory', {
      options: { store, lease: 300, abandoned: 'reject' },
      routes: app => app.post('/', async request => ({ runs: ++runs, attempt: request.idempotency.attempt }))
    })
    t.equal((await post('k', '{}')).json()['code'], 'idempotency_store_unavailable')
    await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'freed', 'the key is free')
    store.claim = claim
    t.same((await post('k', '{}')).json(), { runs: 1, attempt: 1 })
    t.equal(failures, tries + 1)
  }
})

t.test('G10: ten thousand outcomes that wait for a store that answers at once are written when it is back', async t => {
  const store = new MemoryStore()
  const { complete } = store
  store.complete = () => { throw new Error('the store is down') }
  const { app } = await start(t, 'memory', { options: { store }, routes: app => app.post('/', async () => 'ok') })
  const COUNT = 10_000
  for (let i = 0; i < COUNT; i++) {
    const answer = await app.inject({ method: 'POST', url: '/', headers: { 'idempotency-key': String(i) } })
    if (answer.statusCode !== 200) t.fail('an outcome was not sent')
  }
  store.complete = complete
  const last = { method: 'POST', url: '/', headers: { 'idempotency-key': String(COUNT - 1) } } as const
  await until(async () => (await app.inject(last)).headers['idempotent-replayed'] === 'true', 'the last outcome')
})

t.test('G10: an outcome too long for Redis is known as done; others are kept beside it', async t => {
  const server = await startRedis()
  const redis = connect(server.port)
  t.teardown(async () => {
    redis.disconnect()
    await server.stop()
  })
  await redis.config('SET', 'proto-max-bulk-len', '1048576')
  let runs = 0
  const { post, app } = await start(t, 'memory', {
    options: { store: new RedisStore(redis), maxResponseBytes: 8_388_608, lease: 3_000 },
    routes: app => {
      app.post('/', async () => {
        runs++
        return 'x'.repeat(2_097_152)
      })
      app.post('/small', async () => 'small')
    }
  })
  t.equal((await post('k', '{}')).text.length, 2_097_152, 'it is sent all the same')
  await until(async () => (
    await app.idempotency.inspect({ key: 'k' }).catch(() => undefined)
  )?.state === 'completed', 'what is known of it')
  t.equal((await post('k', '{}')).json()['code'], 'idempotency_response_unavailable')
  t.equal(runs, 1)
  t.equal((await post('s', '{}', { path: '/small' })).text, 'small')
  t.equal((await post('s', '{}', { path: '/small' })).replayed, true)
})

t.test('G1, G6: the new holder\'s waiters are woken, though one of the former\'s has left since', async t => {
  const store = new MemoryStore()
  const claim = { lease: 60_000, ttl: 60_000, takeover: true }
  const key = randomUUID()
  store.claim(key, { ...claim, token: 'a' })
  let woken = 0
  const stop = store.watch(key, () => { woken++ })
  store.release(key, 'a', 60_000, true)
  await new Promise(resolve => setImmediate(resolve))
  store.claim(key, { ...claim, token: 'b' })
  store.watch(key, () => { woken += 10 })
  stop()
  store.release(key, 'b', 60_000, true)
  await new Promise(resolve => setImmediate(resolve))
  t.equal(woken, 11)
})
