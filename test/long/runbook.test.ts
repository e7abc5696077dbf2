/** Each cause that the runbooks name, provoked, and the symptom that they say it has. */
import { randomUUID } from 'node:crypto'
import { subscribe } from 'node:diagnostics_channel'
import { readFile } from 'node:fs/promises'
import type { FastifyInstance } from 'fastify'
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import idempotency, {
  IDEMPOTENCY_EVENTS, MemoryStore, RedisStore, type FastifyIdempotencyOptions, type IdempotencyEvent
} from '../../lib/index.ts'
import { gate, redisServer, start, stopRedis, until, type Mode, type TestApp } from '../fixtures/app.ts'
import { fails, faulty } from '../fixtures/faulty.ts'
import { Instance } from '../fixtures/instances.ts'
import { connect, startRedis } from '../fixtures/redis.ts'

t.teardown(stopRedis)

const section = await readFile('docs/operations.md', 'utf8')

// The page's own lines log the events from here on.
const snippet = /```js\n(import \{ subscribe \}.*?)```/s.exec(section)?.[1]
await import(`data:text/javascript,${encodeURIComponent(String(snippet))}`)

/** What the log does not tell. */
const keys = new Map<unknown, string>()
for (const name of IDEMPOTENCY_EVENTS) {
  subscribe(`fastify-idempotency:${name}`, event => {
    const { id, key } = event as IdempotencyEvent
    keys.set(id, key)
  })
}

interface Line { level: number, msg: string, event?: string, idempotencyId?: string, attempt?: number, reqId?: string }
interface Logged extends TestApp {
  /** The events of a key in the log: `executed 1`, … */
  story: (key: string) => string[]
  /** Lines with this text, from level warn on. */
  said: (text: string) => Line[]
  lines: Line[]
}

async function logged (t: Test, { mode = 'memory', options = {}, routes }: {
  mode?: Mode, options?: FastifyIdempotencyOptions, routes: (app: FastifyInstance) => unknown
}): Promise<Logged> {
  const lines: Line[] = []
  const logger = { level: 'debug', stream: { write (line: string) { lines.push(JSON.parse(line) as Line) } } }
  const app = await start(t, mode, { fastify: { logger }, options, routes })
  return {
    ...app,
    lines,
    story: key => lines.filter(
      ({ event, idempotencyId }) => event !== undefined && keys.get(idempotencyId) === key
    ).map(({ event, attempt }) => `${String(event)} ${String(attempt)}`),
    said: text => lines.filter(({ level, msg }) => level >= 40 && msg.includes(text))
  }
}

const charge = (app: FastifyInstance): unknown => app.post(
  '/', async (_request, reply) => await reply.code(201).send({ charge: randomUUID() })
)

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
  t.teardown(async () => { client.disconnect(); await redis.stop() })
  const { post, story } = await logged(t, { options: { store: new RedisStore(client) }, routes: charge })
  await post('k', '{}')
  await client.config('SET', 'maxmemory-policy', 'noeviction')
  await client.config('SET', 'maxmemory', '1')
  t.match(await post('fresh', '{}'), { status: 503 })
  t.same(story('fresh'), ['store-error 0'])
  t.equal((await post('k', '{}')).replayed, true)
  await client.config('SET', 'maxmemory-policy', 'allkeys-lru')
  await until(async () => { await post('more', '{}'); return await client.dbsize() === 0 }, 'the key is evicted')
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

/** A key whose holder, another process, has been killed in its handler; and an API that shares it. */
async function orphaned (t: Test, options: FastifyIdempotencyOptions): Promise<{ key: string, api: Logged }> {
  const { port } = await redisServer()
  const all = { keyPrefix: `${randomUUID()}:`, ...options }
  const instance = await new Instance(t, 'holder', port, all).listening()
  const api = await logged(t, { mode: 'redis', options: all, routes: charge })
  const key = randomUUID()
  const barrier = await instance.stopAt('in the handler', key)
  instance.post(key).catch(() => {})
  await barrier.reached
  await instance.kill()
  return { key, api }
}

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

/* Every retry gets a 409. */

t.test('409 in progress: while a handler runs, the lease that inspect tells moves on', async t => {
  const running = gate()
  const { app, post } = await logged(
    t, { options: { lease: 120 }, routes: app => app.post('/', async () => { await running.promise; return 'done' }) }
  )
  const first = post('k', '{}')
  await until(async () => await app.idempotency.inspect({ key: 'k' }) !== undefined, 'the key is held')
  const then = await app.idempotency.inspect({ key: 'k' })
  await until(async () => Number((
    await app.idempotency.inspect({ key: 'k' })
  )?.until) > Number(then?.until), 'the lease is renewed')
  t.match(
    await app.idempotency.inspect({ key: 'k' }), { state: 'held', attempt: 1, since: then?.since, status: undefined }
  )
  t.match((await post('k', '{}')).json(), { code: 'idempotency_in_progress' })
  running.open()
  t.equal((await first).text, 'done')
})

t.test('409 in progress: while a response waits for the store, the log has an error', async t => {
  const faults = { complete: fails as (() => never) | undefined }
  const { app, post, said, story } = await logged(t, { options: { store: faulty(faults) }, routes: charge })
  t.equal((await post('k', '{}')).status, 201)
  t.match((await post('k', '{}')).json(), { code: 'idempotency_in_progress' })
  t.match(await app.idempotency.inspect({ key: 'k' }), { state: 'held' })
  t.ok(said('the response could not be kept').length > 0)
  t.ok(story('k').includes('store-error 1'))
  faults.complete = undefined
  await until(async () => (await post('k', '{}')).replayed, 'the response is kept')
})

t.test('409 in progress: after a crash retries are refused until the lease ends or is forgotten', async t => {
  const { key, api: { app, post } } = await orphaned(t, { lease: 3_600_000 })
  const held = await app.idempotency.inspect({ key })
  t.match(held, { state: 'held', attempt: 1 })
  t.ok(Number(held?.until) > Date.now())
  t.match((await post(key, '{}')).json(), { code: 'idempotency_in_progress' })
  t.same(await app.idempotency.inspect({ key }), held, 'nobody renews it')
  t.equal(await app.idempotency.forget({ key }), true)
  t.equal((await post(key, '{}')).status, 201)
  t.match(await app.idempotency.inspect({ key }), { attempt: 1 }, 'counted anew')
})

t.test('409 mismatch: the message says what differs; a multipart boundary does not count', async t => {
  const { app, post, call, story } = await logged(t, {
    routes: app => {
      app.addContentTypeParser('multipart/form-data', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))
      charge(app)
      app.patch('/', async () => 'patched')
    }
  })
  await post('k', '{"a":1,"b":2}')
  for (const [what, more] of [
    ['request body', { body: '{"b":2,"a":1}' }],
    ['request body', { body: '{"a":1,"b":2,"at":1700000000}' }],
    ['URL', { body: '{"a":1,"b":2}', path: '/?nonce=1' }],
    ['method', { body: '{"a":1,"b":2}', method: 'PATCH' }]
  ] as const) {
    const answer = await call({ key: 'k', ...more })
    t.match([answer.status, answer.json()], [409, { code: 'idempotency_key_mismatch', message: `different ${what}` }])
  }
  t.same(story('k'), ['executed 1', 'mismatched 1', 'mismatched 1', 'mismatched 1', 'mismatched 1'])
  t.match(await app.idempotency.inspect({ key: 'k' }), { state: 'completed', attempt: 1 })

  const form = async (boundary: string): Promise<boolean> => (
    await post('form', `--${boundary}\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n--${boundary}--\r\n`, {
      headers: { 'content-type': `multipart/form-data; boundary=${boundary}` }
    })
  ).replayed
  t.same([await form('one'), await form('other')], [false, true])

  await app.idempotency.forget({ key: 'k' })
  t.match(await post('k', '{"b":2,"a":1}'), { status: 201, replayed: false }, 'forget would run it again')
})

t.test('409 outcome unknown: held, its lease past; once forgotten the next retry runs', async t => {
  const { key, api: { app, post, story } } = await orphaned(t, { lease: 300, abandoned: 'reject' })
  await until(async () => (await post(key, '{}')).json()['code'] === 'idempotency_outcome_unknown', 'the lease ends')
  t.ok(story(key).includes('abandoned 1'))
  const held = await app.idempotency.inspect({ key })
  t.equal(held?.state, 'held')
  t.ok(Number(held?.until) <= Date.now())
  t.equal(await app.idempotency.forget({ key }), true)
  t.equal((await post(key, '{}')).status, 201)
})

t.test('409 response unavailable: completed, not replayable, whatever kept it from being kept', async t => {
  const causes: Record<string, FastifyIdempotencyOptions> = {
    'larger than maxResponseBytes': { maxResponseBytes: 10 },
    'larger than the MemoryStore': { store: new MemoryStore({ maxBytes: 1_000 }) },
    hijack: {},
    raw: {}
  }
  for (const [cause, options] of Object.entries(causes)) {
    const { app, post, story, said } = await logged(t, {
      options,
      routes: app => app.post('/', async (_request, reply) => {
        if (cause === 'hijack') reply.hijack()
        if (cause !== 'hijack' && cause !== 'raw') return await reply.code(201).send('x'.repeat(2_000))
        reply.raw.writeHead(201).end('past Fastify')
        return reply
      })
    })
    t.equal((await post('k', '{}')).status, 201, cause)
    await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state !== 'held', 'it is settled')
    const inspected = await app.idempotency.inspect({ key: 'k' })
    const answer = await post('k', '{}')
    t.match(inspected, { state: 'completed', attempt: 1, status: 201, replayable: false }, cause)
    t.match(answer.json(), { code: 'idempotency_response_unavailable', message: /status 201/ }, cause)
    t.ok(story('k').includes('unreplayable 1'), cause)
    t.equal(said('the response cannot be kept').length, cause === 'larger than the MemoryStore' ? 0 : 1, cause)
  }
})

t.test('409 response unavailable: a handler that ends after its handlerTimeout', async t => {
  // Without a body: Fastify's timer does not outlive the reading of one.
  const running = gate()
  const { app, post } = await logged(t, {
    routes: app => app.post('/', { handlerTimeout: 400 }, async () => { await running.promise; return 'late' })
  })
  t.equal((await post('k')).status, 503)
  t.match((await post('k')).json(), { code: 'idempotency_in_progress' })
  running.open()
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'completed', 'the handler has ended')
  t.match((await post('k')).json(), { code: 'idempotency_response_unavailable' })
  t.match(await app.idempotency.inspect({ key: 'k' }), { replayable: false })
})

t.test('forget while a handler runs: a retry runs beside it, and both clients get its answer', async t => {
  const running = gate()
  const signals: Array<AbortSignal | undefined> = []
  const { app, post, said } = await logged(t, {
    options: { lease: 120 },
    routes: app => app.post('/', async request => {
      const run = signals.push(request.idempotency?.signal)
      if (run === 1) await running.promise
      return { run, attempt: request.idempotency?.attempt }
    })
  })
  const first = post('k', '{}')
  await until(() => signals.length === 1, 'the handler runs')
  t.equal(await app.idempotency.forget({ key: 'k' }), true)
  t.same((await post('k', '{}')).json(), { run: 2, attempt: 1 })
  await until(() => signals[0]?.aborted === true, 'the next renewal notices')
  running.open()
  t.same((await first).json(), { run: 2, attempt: 1 })
  t.equal(said('the lease was lost').length, 1)
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
