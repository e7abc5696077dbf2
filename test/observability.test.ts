import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { connect } from 'node:net'
import * as diagnostics from 'node:diagnostics_channel'
import t, { type Test } from 'tap'
import { IDEMPOTENCY_EVENTS, RedisStore, type IdempotencyEvent, type IdempotencyStore } from '../lib/index.ts'
import { gate, headersOf, redisClient, send, serversOf, start, STORES, stopRedis, until } from './fixtures/app.ts'
import { faulty, hangs } from './fixtures/faulty.ts'
import { breakable, dieHolding, routes } from './fixtures/events.ts'

t.teardown(stopRedis)

t.test('an upload that is cut off is told once', async t => {
  const { port } = await start(t, 'memory', {
    routes: app => {
      app.post('/', async () => 'ok')
      app.get('/', async () => 'ok')
    }
  })
  const events: IdempotencyEvent[] = []
  listen(t, 'released', event => { events.push(event) })
  const socket = connect(port, '127.0.0.1')
  const answered = once(socket, 'close')
  socket.end(
    'POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nidempotency-key: k\r\ncontent-length: 100\r\n\r\n{'
  )
  socket.resume()
  await answered
  await until(() => events.length > 0, 'the event')
  // Whatever else belongs to that request has happened before another one is answered.
  await send(port, { method: 'GET' })
  t.same(events.map(({ key, attempt }) => [key, attempt]), [['k', 1]])
})

function listen (t: Test, name: string, listener: (event: IdempotencyEvent) => void): void {
  const subscriber = (message: unknown): void => { listener(message as IdempotencyEvent) }
  diagnostics.subscribe(`fastify-idempotency:${name}`, subscriber)
  t.teardown(() => diagnostics.unsubscribe(`fastify-idempotency:${name}`, subscriber))
}

t.test('events tell what happened, with the key, and never a body or a credential', async t => {
  const events: Array<[string, IdempotencyEvent]> = []
  const names = ['executed', 'replayed', 'mismatched', 'conflicted', 'invalid', 'released', 'unreplayable']
  for (const name of names) listen(t, name, event => { events.push([name, event]) })
  const log: string[] = []
  const entered = gate()
  const finish = gate()
  const { post } = await start(t, 'memory', {
    fastify: { logger: { level: 'debug', stream: { write: (line: string) => { log.push(line) } } } },
    options: { maxResponseBytes: 500 },
    routes: app => {
      app.post('/', async () => 'a kept body')
      app.post('/slow', async () => {
        entered.open()
        await finish.promise
        return 'ok'
      })
      app.post('/fail', async (_request, reply) => await reply.code(500).send('x'))
      app.post('/large', async () => 'x'.repeat(501))
      app.post('/required', { config: { idempotency: { required: true } } }, async () => 'ok')
    }
  })
  const auth = { headers: { ...headersOf({ key: 'k', body: '' }), authorization: 'Bearer secret-token' } }
  await post('k', '{"card":"4242424242424242"}', auth)
  await post('k', '{"card":"4242424242424242"}', auth)
  await post('k', '{"card":"4343434343434343"}', auth)
  await post('', '{}')
  const slow = post('s', '{}', { path: '/slow' })
  await entered.promise
  await post('s', '{}', { path: '/slow' })
  finish.open()
  await slow
  await post('f', '{}', { path: '/fail' })
  await post('l', '{}', { path: '/large' })
  await post(undefined, '{}', { path: '/required' })
  t.same(events.map(([name, { key, status, attempt }]) => [name, key, status, attempt]), [
    ['executed', 'k', 200, 1], ['replayed', 'k', 200, 1], ['mismatched', 'k', 409, 1], ['invalid', '', 400, 0],
    ['conflicted', 's', 409, 1], ['executed', 's', 200, 1], ['released', 'f', 500, 1], ['unreplayable', 'l', 200, 1],
    ['invalid', '', 400, 0]
  ])
  t.ok(events.every(([, { request }]) => request.method === 'POST'))
  t.match(log.join(''), 'idempotency: replayed')
  t.match(log.join(''), 'cannot be kept')
  t.notMatch(log.join(''), /secret-token|4242424242424242|a kept body/)
})

for (const mode of STORES) {
  t.test(`each event fires once for what it names, with its fields (${mode})`, async t => {
    const told: Array<[string, IdempotencyEvent]> = []
    for (const name of IDEMPOTENCY_EVENTS) listen(t, name, event => { told.push([name, event]) })
    const { store, fail } = await breakable(mode)
    const [entered, finish, lateEntered, lateFinish] = [gate(), gate(), gate(), gate()]
    const prefix = `${randomUUID()}:`
    const api = await start(t, 'memory', {
      options: { store, keyPrefix: prefix, maxResponseBytes: 500 },
      routes: app => {
        routes(app, entered, finish)
        app.post('/late', async () => {
          lateEntered.open()
          await lateFinish.promise
          return 'ok'
        })
        app.post('/hijack', async (_request, reply) => {
          reply.hijack()
          reply.raw.statusCode = 500
          reply.raw.end('x')
        })
      }
    })
    const { app, post } = api
    const happens = async (what: string, expected: unknown[], run: () => Promise<unknown>): Promise<void> => {
      told.length = 0
      await run()
      t.same(told.map(([name, { key, attempt, status, code }]) => [name, key, attempt, status, code]), expected, what)
      for (const [name, event] of told) {
        t.equal(event.request.server, app, what)
        t.equal(event.error instanceof Error, name === 'store-error', what)
        const took = name === 'lease-lost' || (event.attempt > 0 && event.code === undefined && name !== 'replayed')
        t.equal(event.heldFor !== undefined && event.heldFor >= 0, took, `${what}: heldFor`)
      }
    }
    const none = undefined

    await happens('execution', [['executed', 'k', 1, 201, none]], async () => await post('k', '{}'))
    await happens('replay', [['replayed', 'k', 1, 201, none]], async () => await post('k', '{}'))
    await happens(
      'other body', [['mismatched', 'k', 1, 409, 'idempotency_key_mismatch']], async () => await post('k', '[]')
    )
    await happens('other URL', [['mismatched', 'k', 1, 409, 'idempotency_key_mismatch']], async () => await post(
      'k', '{}', { path: '/items/1' }
    ))
    await happens('bad key', [['invalid', '', 0, 400, 'idempotency_key_invalid']], async () => await post(' ', '{}'))
    await happens('no key', [['invalid', '', 0, 400, 'idempotency_key_missing']], async () => await post(
      undefined, '{}', { path: '/required' }
    ))
    await happens('no key where none is required', [], async () => await post(undefined, '{}'))
    await happens('failure', [['released', 'f', 1, 500, none]], async () => await post('f', '{}', { path: '/fail' }))
    await happens(
      'a failure again', [['released', 'f', 2, 500, none]], async () => await post('f', '{}', { path: '/fail' })
    )
    await happens('hijacked failure', [['released', 'h', 1, 500, none]], async () => {
      await post('h', undefined, { path: '/hijack' })
      await until(() => told.length > 0, 'the close')
    })
    await happens(
      'too large', [['unreplayable', 'l', 1, 200, none]], async () => await post('l', '{}', { path: '/large' })
    )
    await happens('a retry of it', [
      ['unreplayable', 'l', 1, 409, 'idempotency_response_unavailable']
    ], async () => await post('l', '{}', { path: '/large' }))
    await happens('duplicate', [
      ['conflicted', 's', 1, 409, 'idempotency_in_progress'], ['executed', 's', 1, 200, none]
    ], async () => {
      const first = post('s', '{}', { path: '/slow' })
      await entered.promise
      await post('s', '{}', { path: '/slow' })
      finish.open()
      await first
    })
    await happens('lost lease', [
      ['lease-lost', 'late', 1, none, none], ['executed', 'late', 1, 200, none]
    ], async () => {
      const first = post('late', '{}', { path: '/late' })
      await lateEntered.promise
      await app.idempotency.forget({ key: 'late' })
      lateFinish.open()
      await first
    })

    await dieHolding(api, store, prefix, 'dead')
    await happens('takeover', [
      ['abandoned', 'dead', 2, none, none], ['executed', 'dead', 2, 201, none]
    ], async () => await post('dead', '{}'))
    await dieHolding(api, store, prefix, 'unknown')
    await happens('outcome unknown', [
      ['abandoned', 'unknown', 1, 409, 'idempotency_outcome_unknown']
    ], async () => await post('unknown', '{}', { path: '/reject' }))

    fail('claim')
    await happens(
      'no claim', [['store-error', 'c', 0, 503, 'idempotency_store_unavailable']], async () => await post('c', '{}')
    )
    await happens(
      'no claim, bypass', [['store-error', 'c', 0, none, none]], async () => await post('c', '{}', { path: '/bypass' })
    )
    fail('complete', 1)
    await happens('kept late', [['store-error', 'b', 1, none, none], ['executed', 'b', 1, 201, none]], async () => {
      await post('b', '{}')
      await until(() => told.length > 1, 'the response is kept')
    })
    fail('release', 1)
    await happens('freed late', [['store-error', 'r', 1, none, none], ['released', 'r', 1, 500, none]], async () => {
      await post('r', '{}', { path: '/fail' })
      await until(() => told.length > 1, 'the key is freed')
    })
  })

  t.test(`G3, G4: executed and released are told before the reply leaves (${mode})`, async t => {
    const told: unknown[] = []
    for (const name of ['executed', 'released']) listen(t, name, ({ key }) => { told.push([name, key]) })
    const { post } = await start(t, mode, {
      before: app => {
        app.addHook('onResponse', async ({ idempotency }) => { told.push(['onResponse', idempotency?.key]) })
      },
      routes
    })
    await post('k', '{}')
    await post('f', '{}', { path: '/fail' })
    await until(() => told.length === 4, 'both responses are over')
    t.same(told, [['executed', 'k'], ['onResponse', 'k'], ['released', 'f'], ['onResponse', 'f']])
  })
}

t.test('an event of the ietf profile has the status of that profile', async t => {
  const statuses: unknown[] = []
  listen(t, 'mismatched', ({ status }) => { statuses.push(status) })
  const { post } = await start(t, 'memory', { options: { profile: 'ietf' }, routes })
  await post('"k"', '{}')
  t.equal((await post('"k"', '[]')).status, 422)
  t.same(statuses, [422])
})

t.test('a subscriber that throws does not break the request: Node.js reports it as an uncaught exception', async t => {
  const caught: unknown[] = []
  const done = gate()
  process.setUncaughtExceptionCaptureCallback(error => {
    caught.push(error)
    done.open()
  })
  t.teardown(() => { process.setUncaughtExceptionCaptureCallback(null) })
  const fault = new Error('in a subscriber')
  const others: string[] = []
  listen(t, 'executed', () => { throw fault })
  listen(t, 'executed', ({ key }) => { others.push(key) })
  const { post } = await start(t, 'memory', { routes })
  t.equal((await post('k', '{}')).status, 201)
  t.equal((await post('k', '{}')).replayed, true)
  await done.promise
  t.same([caught, others], [[fault], ['k']])
})

t.test('the log has no body and no credential, whatever a store puts on its errors', async t => {
  const log: string[] = []
  const logger = { level: 'debug', stream: { write: (line: string) => { log.push(line) } } }
  const headers = { 'content-type': 'application/json', 'idempotency-key': 'k', authorization: 'Bearer secret-token' }
  await t.test('an error of ioredis has the arguments of its command', async t => {
    const redis = await redisClient()
    const limit = async (bytes: number): Promise<void> => {
      for (const server of serversOf(redis)) await server.config('SET', 'maxmemory', bytes)
    }
    const errors: unknown[] = []
    listen(t, 'store-error', ({ error }) => { errors.push(error) })
    const { app, post } = await start(t, 'memory', {
      fastify: { logger },
      options: { store: new RedisStore(redis) },
      routes: app => app.post('/', async () => {
        await limit(1)
        return 'a kept body'
      })
    })
    t.equal((await post('k', '{"card":"4242424242424242"}', { headers })).text, 'a kept body')
    await limit(0)
    await until(async () => (
      await app.idempotency.inspect({ scope: 'Bearer secret-token', key: 'k' })
    )?.state === 'completed', 'the response is kept')
    t.match(errors[0], { command: { name: String } }, 'what makes the difference')
    t.match(log.join(''), /"message":"OOM .*"name":"ReplyError".* response could not be kept/)
  })
  await t.test('and what else a store may throw', async t => {
    const thrown = [Object.assign(new TypeError('the store is down'), {
      code: 'E_DOWN', body: 'a kept body'
    }), new DOMException('aborted', 'AbortError'), 'down']
    const store = faulty({ claim: () => { throw thrown.shift() } })
    const { post } = await start(t, 'memory', { fastify: { logger }, options: { store }, routes })
    for (let i = 0; i < 3; i++) t.equal((await post('k', '{}', { headers })).status, 503)
    t.match(log.join(''), /"message":"the store is down","stack":"TypeError: .*"name":"TypeError","code":"E_DOWN"/)
    t.match(log.join(''), /"message":"aborted","stack":"AbortError: .*"name":"AbortError"/)
    t.match(log.join(''), /"message":"Something was thrown that is no Error: down"/)
  })
  t.notMatch(log.join(''), /secret-token|4242424242424242|a kept body/)
  t.notMatch(log.join(''), [...Buffer.from('a kept body')].join(), 'nor as numbers')
})

t.test('G10: inspect and forget are bounded by storeTimeout', async t => {
  const store = Object.assign(faulty({}), { read: hangs, remove: hangs })
  const { app } = await start(
    t, 'memory', { options: { store: store as unknown as IdempotencyStore, storeTimeout: 20 }, routes }
  )
  await t.rejects(app.idempotency.inspect({ key: 'k' }), { name: 'StoreTimeout' })
  await t.rejects(app.idempotency.forget({ key: 'k' }), { name: 'StoreTimeout' })
})
