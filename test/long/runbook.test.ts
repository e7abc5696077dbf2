/** Each cause that the runbooks name, provoked, and the symptom that they say it has. */
import { randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import Fastify from 'fastify'
import t from 'tap'
import idempotency, { MemoryStore, RedisStore } from '../../lib/index.ts'
import { gate, start, stopRedis, until } from '../fixtures/app.ts'
import { fails, faulty } from '../fixtures/faulty.ts'
import { connect, startRedis } from '../fixtures/redis.ts'
import { charge, logged, orphaned, section, type Line } from '../fixtures/runbook.ts'

t.teardown(stopRedis)

/* We charged someone twice. */

t.test('charged twice: two keys, each executed with attempt 1', async t => {
  const { post, story } = await logged(t, { routes: charge })
  await post('one', '{}')
  await post('other', '{}')
  t.same([story('one'), story('other')], [['executed 1'], ['executed 1']])
})

t.test('charged twice: no event for a request without a key, of a method or a route that takes no part', async t => {
  const { post, call, lines } = await logged(t, {
    routes: app => {
      charge(app)
      app.put('/', async () => 'put')
      app.post('/out', { config: { idempotency: false } }, async () => 'out')
    }
  })
  await post(undefined, '{}')
  await call({ method: 'PUT', key: 'k', body: '{}' })
  await post('k', '{}', { path: '/out' })
  const narrow = await logged(t, { options: { global: false }, routes: charge })
  await narrow.post('k', '{}')
  t.same([...lines, ...narrow.lines].filter(({ event }) => event !== undefined), [])
})

t.test('charged twice: bypass says so in the log, with an event of its own', async t => {
  const faults = { claim: fails as (() => never) | undefined }
  const { post, story, said } = await logged(
    t, { options: { store: faulty(faults), onStoreError: 'bypass' }, routes: charge }
  )
  await post('k', '{}')
  faults.claim = undefined
  await post('k', '{}')
  t.same(story('k'), ['store-error 0', 'executed 1'])
  t.equal(said('the request is run unprotected').length, 1)
})

t.test('charged twice: a renewed token is another scope; inspect finds the key under either', async t => {
  const { post, story, app } = await logged(t, { routes: charge })
  for (const scope of ['Bearer old', 'Bearer new']) await post('k', '{}', { headers: { authorization: scope } })
  t.same(story('k'), ['executed 1', 'executed 1'])
  for (const scope of ['Bearer old', 'Bearer new']) {
    t.match(await app.idempotency.inspect({ scope, key: 'k' }), {
      state: 'completed', attempt: 1, status: 201, replayable: true
    })
  }
  t.equal(await app.idempotency.inspect({ key: 'k' }), undefined)
})

t.test('charged twice: an expired key runs again with attempt 1', async t => {
  let now = 0
  const { post, story } = await logged(
    t, { options: { store: new MemoryStore({ now: () => now }), ttl: 1_000 }, routes: charge }
  )
  await post('k', '{}')
  now = 999
  await post('k', '{}')
  now = 1_000
  await post('k', '{}')
  t.same(story('k'), ['executed 1', 'replayed 1', 'executed 1'])
})

t.test('charged twice: a lost record runs again with attempt 1: forgotten, pushed out, never shared', async t => {
  const { post, story, app } = await logged(
    t, { options: { store: new MemoryStore({ maxBytes: 1_000 }) }, routes: charge }
  )
  await post('k', '{}')
  t.equal(await app.idempotency.forget({ key: 'k' }), true)
  await post('k', '{}')
  for (let i = 0; i < 5; i++) await post(`other ${i}`, '{}')
  await post('k', '{}')
  t.same(story('k'), ['executed 1', 'executed 1', 'executed 1'])

  const lines: string[] = []
  const apps = await Promise.all(['a', 'b'].map(async () => {
    const app = Fastify({ logger: { level: 'info', stream: { write (line: string) { lines.push(line) } } } })
    await app.register(idempotency)
    charge(app)
    t.teardown(async () => await app.close())
    return app
  }))
  for (const app of apps) await app.inject({ method: 'POST', url: '/', headers: { 'idempotency-key': 'k' } })
  t.equal(lines.filter(line => line.includes('keys are kept in this process only')).length, 2)
  t.equal(lines.filter(line => /"event":"executed","idempotencyId":"\w+","attempt":1/.test(line)).length, 2)

  const one = await logged(t, { mode: 'redis', options: { keyPrefix: `${randomUUID()}:` }, routes: charge })
  const other = await logged(t, { mode: 'redis', options: { keyPrefix: `${randomUUID()}:` }, routes: charge })
  for (const { post, story } of [one, other]) {
    await post('k', '{}')
    t.same(story('k'), ['executed 1'])
  }
})

t.test('charged twice: a full Redis that evicts runs a retry again, with noeviction it answers it', async t => {
  const redis = await startRedis()
  const client = connect(redis.port)
  t.teardown(async () => {
    client.disconnect()
    await redis.stop()
  })
  const { post, story } = await logged(t, { options: { store: new RedisStore(client) }, routes: charge })
  await post('k', '{}')
  await client.config('SET', 'maxmemory-policy', 'noeviction')
  await client.config('SET', 'maxmemory', '1')
  t.match(await post('fresh', '{}'), { status: 503 })
  t.same(story('fresh'), ['store-error 0'])
  t.equal((await post('k', '{}')).replayed, true)
  await client.config('SET', 'maxmemory-policy', 'allkeys-lru')
  await until(async () => {
    await post('more', '{}')
    return await client.dbsize() === 0
  }, 'the key is evicted')
  await client.config('SET', 'maxmemory', '0')
  await post('k', '{}')
  t.same(story('k'), ['executed 1', 'replayed 1', 'executed 1'])
  t.match(await client.info('stats'), /^evicted_keys:[1-9]/m)
  t.match(await client.info('server'), /^uptime_in_seconds:/m)
})

t.test('charged twice: a 5xx or release() after the charge frees the key, and a retry is attempt 2', async t => {
  const { post, story, lines } = await logged(t, {
    routes: app => app.post('/:how', async (request, reply) => {
      if (request.idempotency?.attempt !== 1) return 'again'
      if ((request.params as { how: string }).how === 'throw') throw new Error('after the charge')
      request.idempotency.release()
      return await reply.code(201).send('charged')
    })
  })
  for (const how of ['throw', 'release']) {
    await post(how, '{}', { path: `/${how}` })
    await post(how, '{}', { path: `/${how}` })
    t.same(story(how), ['released 1', 'executed 2'])
  }
  const { reqId } = lines.find(({ event }) => event === 'released') as Line
  t.match(lines.find(line => line.reqId === reqId && line.msg === 'request completed'), { res: { statusCode: 500 } })
})

t.test('charged twice: keep() after the charge, and a 4xx, let no retry run', async t => {
  const { post, story } = await logged(t, {
    routes: app => app.post('/:how', async (request, reply) => {
      if ((request.params as { how: string }).how === '4xx') return await reply.code(422).send('charged')
      request.idempotency?.keep()
      throw new Error('after the charge')
    })
  })
  for (const how of ['keep', '4xx']) {
    await post(how, '{}', { path: `/${how}` })
    t.equal((await post(how, '{}', { path: `/${how}` })).replayed, true)
    t.same(story(how), ['executed 1', 'replayed 1'])
  }
})

t.test('charged twice: after a crash a retry takes the key over, with a warning, as attempt 2', async t => {
  const { key, api } = await orphaned(t, { lease: 300 })
  await until(async () => (await api.post(key, '{}')).status === 201, 'the lease ends')
  t.same(api.story(key).filter(line => !line.startsWith('conflicted')), ['abandoned 2', 'executed 2'])
  t.equal(api.said('the holder had died; its key was taken over').length, 1)
  t.match(await api.app.idempotency.inspect({ key }), { state: 'completed', attempt: 2, status: 201 })
})

t.test('charged twice: a holder that stood still for a lease has lost it; signal and log say so', async t => {
  let now = 0
  const running = gate()
  let first: AbortSignal | undefined
  const { post, story, said } = await logged(t, {
    options: { store: new MemoryStore({ now: () => now }) },
    routes: app => app.post('/', async (request, reply) => {
      const { attempt, signal } = request.idempotency ?? {}
      if (attempt === 1) {
        first = signal
        await running.promise
      }
      return await reply.code(201).send({ attempt })
    })
  })
  const late = post('k', '{}')
  await until(() => first !== undefined, 'the handler runs')
  now = 30_000
  t.match((await post('k', '{}')).json(), { attempt: 2 })
  running.open()
  t.match((await late).json(), { attempt: 2 }, "the late client gets the winner's answer")
  t.same(story('k'), ['abandoned 2', 'executed 2', 'lease-lost 1', 'replayed 1'])
  t.equal(first?.aborted, true)
  t.equal(said('the lease was lost').length, 1)
})

t.test('inspect in any process that has the Redis and the prefix', async t => {
  const prefix = `${randomUUID()}:`
  const { post } = await logged(t, { mode: 'redis', options: { keyPrefix: prefix }, routes: charge })
  await post('k', '{}', { headers: { authorization: 'Bearer t' } })
  const operator = await start(t, 'redis', { options: { keyPrefix: prefix }, routes: () => {} })
  t.match(await operator.app.idempotency.inspect({ scope: 'Bearer t', key: 'k' }), {
    state: 'completed', attempt: 1, since: Date, until: Date, status: 201, replayable: true
  })
})

/* Sizing. */

t.test('the table of memory is what its formula says, and the formula what was measured', async t => {
  const [, memory, redis] = /about (\d+) bytes in the `MemoryStore`, (\d+) in Redis/.exec(section)?.map(Number) as [
    number, number, number
  ]
  const response = Number(/response of (\d+) bytes/.exec(section)?.[1])
  const rows = [...section.matchAll(/^\| ([\d,]+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \|$/gm)].map(
    row => row.slice(1).map(cell => Number(cell.replaceAll(',', '')))
  )
  t.equal(rows.length, 6)
  for (const [keys = 0, days = 0, ...megabytes] of rows) {
    t.same(megabytes, [memory, redis].map(beside => Math.round(keys * days * (response + beside) / 1e6)))
  }
  const measured = [...(await readFile('benchmarks/results/tables.md', 'utf8')).matchAll(
    /^\| (memory|Redis) \| [\d,]+ \| 300 B[^|]*\| \d+ \| \d+ \| (\d+) \|/gm
  )]
  t.equal(measured.length, 6)
  for (const [line, store, beside] of measured) {
    const said = store === 'memory' ? memory : redis
    t.ok(Number(beside) <= said * 1.05 && Number(beside) >= said * 0.8, line)
  }
})
