/** Each cause that the runbook names for retries that all get a 409, provoked, and the symptom that it says it has. */
import t from 'tap'
import { MemoryStore, type FastifyIdempotencyOptions } from '../../lib/index.ts'
import { gate, stopRedis, until } from '../fixtures/app.ts'
import { fails, faulty } from '../fixtures/faulty.ts'
import { charge, logged, orphaned } from '../fixtures/runbook.ts'

t.teardown(stopRedis)

t.test('409 in progress: while a handler runs, the lease that inspect tells moves on', async t => {
  const running = gate()
  const { app, post } = await logged(t, {
    options: { lease: 120 },
    routes: app => app.post('/', async () => {
      await running.promise
      return 'done'
    })
  })
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
  const again = await app.idempotency.inspect({ key })
  t.match(again, { state: 'held', attempt: 1, since: held?.since })
  // Redis tells whole milliseconds of what is left.
  t.ok(Math.abs(Number(again?.until) - Number(held?.until)) <= 1, 'nobody renews it')
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
    routes: app => app.post('/', { handlerTimeout: 400 }, async () => {
      await running.promise
      return 'late'
    })
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
