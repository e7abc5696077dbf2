import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { FastifyRequest } from 'fastify'
import { gate, MODES, receive, start, stopRedis } from './fixtures/app.ts'
import * as http from 'node:http'
import { once } from 'node:events'

t.teardown(stopRedis)

for (const mode of MODES) {
  t.test(`G1: a retry gets the first response, and the handler has run once (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      routes: app => app.post('/', async (request, reply) => reply.code(201).header('x-run', ++runs).send(
        { runs, body: request.body, id: randomUUID() }
      ))
    })
    const first = await post('k', '{"amount":1}')
    const retry = await post('k', '{"amount":1}')
    t.equal(first.status, 201)
    t.equal(first.headers['idempotent-replayed'], undefined)
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.same([retry.status, retry.text, retry.headers['content-type'], retry.headers['x-run']], [
      201, first.text, first.headers['content-type'], '1'
    ])
    t.equal(runs, 1)
    t.equal((await post('other', '{"amount":1}')).json().runs, 2)
    t.equal((await post(undefined, '{"amount":1}')).json().runs, 3)
  })

  t.test(`G1: of fifty at once one runs; the others get 409 with Retry-After, then the replay (${mode})`, async t => {
    let runs = 0
    const entered = gate()
    const finish = gate()
    const { post } = await start(t, mode, {
      options: { retryAfter: '3s' },
      routes: app => app.post('/', async () => {
        runs++
        entered.open()
        await finish.promise
        return { id: randomUUID() }
      })
    })
    const first = post('k', '{}')
    await entered.promise
    const others = await Promise.all(Array.from({ length: 49 }, async () => await post('k', '{}')))
    for (const other of others) {
      t.same([other.status, other.json().code, other.headers['retry-after']], [409, 'idempotency_in_progress', '3'])
    }
    finish.open()
    const { text } = await first
    t.equal((await post('k', '{}')).text, text)
    t.equal(runs, 1)
  })

  t.test(`a key reused for a different body, method or URL is a mismatch that says what differs (${mode})`, async t => {
    let runs = 0
    const { post, call } = await start(t, mode, {
      routes: app => app.route({ method: ['POST', 'PATCH'], url: '/*', handler: async () => ({ runs: ++runs }) })
    })
    await post('k', '{"amount":1}', { path: '/a?x=1' })
    const body = await post('k', '{"amount":2}', { path: '/a?x=1' })
    t.same(body.json(), {
      status: 'error',
      code: 'idempotency_key_mismatch',
      title: 'Idempotency key mismatch',
      message: 'The Idempotency-Key was reused with a different request body. Use a fresh key for distinct requests.',
      type: 'urn:problem-type:idempotency_key_mismatch',
      request_id: body.json().request_id
    })
    t.equal(body.status, 409)
    t.equal(body.headers['content-type'], 'application/json; charset=utf-8')
    t.match((await post('k', '{"amount":1}', { path: '/a?x=2' })).json().message, /different URL/)
    t.match((
      await call({ method: 'PATCH', path: '/a?x=1', key: 'k', body: '{"amount":1}' })
    ).json().message, /different method/)
    t.match((await post('k', undefined, { path: '/a?x=1' })).json().message, /different request body/)
    t.equal((await post('k', '{"amount":1}', { path: '/a?x=1' })).replayed, true)
    t.equal(runs, 1)
  })

  t.test(`a bad key is refused before the body is read (${mode})`, async t => {
    let parsed = 0
    const { call, port } = await start(t, mode, {
      before: app => app.addContentTypeParser('text/slow', (_request, payload, done) => {
        parsed++
        payload.resume()
        done(null, 'body')
      }),
      routes: app => app.post('/', async () => 'ok')
    })
    const bad = async (headers: http.OutgoingHttpHeaders) => await call(
      { headers: { 'content-type': 'text/slow', ...headers }, body: 'x' }
    )
    for (const key of ['', '   ', 'a'.repeat(256)]) {
      const answer = await bad({ 'idempotency-key': key })
      t.same([answer.status, answer.json().code], [400, 'idempotency_key_invalid'])
    }
    const twice = await bad({ 'idempotency-key': ['a', 'b'] as unknown as string })
    t.match(twice.json().message, 'The Idempotency-Key header must be sent once')
    t.equal(parsed, 0)
    t.equal((await bad({ 'idempotency-key': 'a'.repeat(255) })).status, 200)
    t.equal((await bad({ 'idempotency-key': 'a, b' })).status, 200)

    // The answer does not wait for a body that never comes.
    const request = http.request({
      port,
      host: '127.0.0.1',
      method: 'POST',
      headers: {
        'content-type': 'text/slow', 'content-length': 100, 'idempotency-key': ''
      }
    })
    request.flushHeaders()
    const [response] = await once(request, 'response') as [http.IncomingMessage]
    t.equal((await receive(response)).status, 400)
    request.on('error', () => {}).destroy()
  })

  t.test(`G4: 5xx and 429 are not kept, every other outcome is (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      routes: app => app.post('/:status', async (request, reply) => {
        const attempt = request.idempotency?.attempt
        return await reply.code(Number((request.params as { status: string }).status)).send({ run: ++runs, attempt })
      })
    })
    for (const status of [200, 201, 202, 301, 303, 400, 401, 404, 409, 410, 422, 499]) {
      const first = await post(`k${status}`, '{}', { path: `/${status}` })
      const retry = await post(`k${status}`, '{}', { path: `/${status}` })
      t.same([retry.status, retry.text, retry.replayed], [status, first.text, true], `${status} is kept`)
    }
    for (const status of [429, 500, 502, 503, 504]) {
      const first = await post(`k${status}`, '{}', { path: `/${status}` })
      const retry = await post(`k${status}`, '{}', { path: `/${status}` })
      t.same([first.json().attempt, retry.json().attempt, retry.replayed], [1, 2, false], `${status} runs again`)
    }
  })

  t.test(`what takes no part is not looked at: other methods, opted-out routes, 404 (${mode})`, async t => {
    let runs = 0
    const nothing = { id: null, attempt: 1, replayed: false }
    const handler = async (request: FastifyRequest) => ({ runs: ++runs, idempotency: request.idempotency })
    const { call } = await start(t, mode, {
      routes: app => {
        app.route({ method: ['GET', 'PUT', 'DELETE', 'OPTIONS'], url: '/', handler })
        app.post('/out', { config: { idempotency: false } }, handler)
      }
    })
    for (const [method, path] of [
      ['GET', '/'], ['PUT', '/'], ['DELETE', '/'], ['OPTIONS', '/'], ['POST', '/out']
    ] as const) {
      for (const key of ['k', 'k', '']) {
        const before = runs
        const answer = await call({ method, path, key })
        t.same(answer.json(), { runs: before + 1, idempotency: nothing }, `${method} ${path}`)
      }
    }
    t.equal((await call({ method: 'HEAD', key: '' })).status, 200)
    t.equal((await call({ path: '/nowhere', key: '' })).status, 404)
    t.equal((await call({ path: '/nowhere', key: 'k' })).replayed, false)
  })
}
