import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { FastifyReply, FastifyRequest, FastifyServerOptions } from 'fastify'
import type { IdempotencyError } from '../lib/index.ts'
import { gate, headersOf, MODES, receive, redisClient, serversOf, start, stopRedis, STORES, until } from './fixtures/app.ts'
import * as http from 'node:http'
import { once } from 'node:events'

t.teardown(stopRedis)

for (const mode of MODES) {
  t.test(`G1: a retry gets the first response, and the handler has run once (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      routes: app => app.post('/', async (request, reply) => reply.code(201).header('x-run', ++runs).send({ runs, body: request.body, id: randomUUID() }))
    })
    const first = await post('k', '{"amount":1}')
    const retry = await post('k', '{"amount":1}')
    t.equal(first.status, 201)
    t.equal(first.headers['idempotent-replayed'], undefined)
    t.equal(retry.headers['idempotent-replayed'], 'true')
    t.same([retry.status, retry.text, retry.headers['content-type'], retry.headers['x-run']], [201, first.text, first.headers['content-type'], '1'])
    t.equal(runs, 1)
    t.equal((await post('other', '{"amount":1}')).json().runs, 2)
    t.equal((await post(undefined, '{"amount":1}')).json().runs, 3)
  })

  t.test(`G1: of fifty at once one runs; the others get 409 with Retry-After, and then the replay (${mode})`, async t => {
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
    t.match((await call({ method: 'PATCH', path: '/a?x=1', key: 'k', body: '{"amount":1}' })).json().message, /different method/)
    t.match((await post('k', undefined, { path: '/a?x=1' })).json().message, /different request body/)
    t.equal((await post('k', '{"amount":1}', { path: '/a?x=1' })).replayed, true)
    t.equal(runs, 1)
  })

  t.test(`a bad key is refused before the body is read (${mode})`, async t => {
    let parsed = 0
    const { call, port } = await start(t, mode, {
      before: app => app.addContentTypeParser('text/slow', (_request, payload, done) => { parsed++; payload.resume(); done(null, 'body') }),
      routes: app => app.post('/', async () => 'ok')
    })
    const bad = async (headers: http.OutgoingHttpHeaders) => await call({ headers: { 'content-type': 'text/slow', ...headers }, body: 'x' })
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
    const request = http.request({ port, host: '127.0.0.1', method: 'POST', headers: { 'content-type': 'text/slow', 'content-length': 100, 'idempotency-key': '' } })
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
    for (const [method, path] of [['GET', '/'], ['PUT', '/'], ['DELETE', '/'], ['OPTIONS', '/'], ['POST', '/out']] as const) {
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

for (const mode of STORES) {
  t.test(`a route may require a key, and be tuned in every way (${mode})`, async t => {
    let runs = 0
    const handler = async (_request: FastifyRequest, reply: FastifyReply) => reply.code(202).send({ runs: ++runs })
    const { post, call } = await start(t, mode, {
      options: { global: false, headerName: 'X-Idem', replayedHeaderName: 'X-Again', methods: ['post', 'PUT'], docsUrl: 'https://docs.example.com/errors' },
      routes: app => {
        app.post('/needs', { config: { idempotency: { required: true } } }, handler)
        app.post('/short', { config: { idempotency: { maxKeyLength: 3 } } }, handler)
        app.post('/never', { config: { idempotency: { cacheable: () => false } } }, handler)
        app.put('/in', { config: { idempotency: true } }, handler)
        app.post('/not-in', handler)
        app.post('/event', { config: { idempotency: { hook: 'preHandler', key: request => (request.body as { id?: string }).id } } }, handler)
        app.post('/late-key', { config: { idempotency: { key: async request => String(request.headers['x-event']) } } }, handler)
        app.post('/wrong-key', { config: { idempotency: { key: () => 5 as unknown as string } } }, handler)
        app.post('/narrow', { config: { idempotency: { fingerprint: (_request, body) => (JSON.parse(String(body)) as { a: string }).a } } }, handler)
        app.post('/narrow-bytes', { config: { idempotency: { fingerprint: (_request, body) => body.subarray(0, 2) } } }, handler)
        app.post('/narrow-broken', { config: { idempotency: { fingerprint: () => { throw new Error('no fingerprint') } } } }, handler)
        let calls = 0
        app.post('/narrow-later', { config: { idempotency: { fingerprint: () => { if (calls++ > 0) throw new Error('no fingerprint'); return 'same' } } } }, () => ({ sync: true }))
        app.post('/needs-event', { config: { idempotency: { required: true, key: () => undefined } } }, handler)
        app.post('/scope-broken', { config: { idempotency: { scope: () => { throw new Error('no scope') } } } }, handler)
        app.post('/scope-broken-later', { config: { idempotency: { scope: async () => { throw new Error('no scope') } } } }, handler)
      }
    })
    const idem = (key: string) => ({ headers: { 'x-idem': key } })
    const missing = await post(undefined, '{}', { path: '/needs' })
    t.same([missing.status, missing.json().code, missing.json().type], [400, 'idempotency_key_missing', 'https://docs.example.com/errors#idempotency_key_missing'])
    t.equal((await post(undefined, '{}', { path: '/short', ...idem('abcd') })).json().code, 'idempotency_key_invalid')
    t.equal((await post(undefined, undefined, { path: '/short', ...idem('abc') })).status, 202)
    t.equal((await post(undefined, undefined, { path: '/short', ...idem('abc') })).headers['x-again'], 'true')
    for (const path of ['/never', '/not-in']) {
      await post(undefined, undefined, { path, ...idem('n') })
      t.equal((await post(undefined, undefined, { path, ...idem('n') })).headers['x-again'], undefined, path)
    }
    await call({ method: 'PUT', path: '/in', ...idem('p') })
    t.equal((await call({ method: 'PUT', path: '/in', ...idem('p') })).headers['x-again'], 'true')

    const event = await post(undefined, '{"id":"evt_1"}', { path: '/event' })
    t.equal((await post(undefined, '{"id":"evt_1"}', { path: '/event' })).text, event.text)
    t.equal((await post(undefined, '{}', { path: '/event' })).headers['x-again'], undefined)
    t.equal((await post(undefined, '{"id":""}', { path: '/event' })).json().code, 'idempotency_key_invalid')
    const header = await post(undefined, '{}', { path: '/late-key', headers: { 'content-type': 'application/json', 'x-event': 'e' } })
    t.equal((await post(undefined, '{}', { path: '/late-key', headers: { 'content-type': 'application/json', 'x-event': 'e' } })).text, header.text)
    t.match((await post(undefined, '{}', { path: '/wrong-key' })).json().message, /option "key" must return a string/)

    for (const path of ['/narrow', '/narrow-bytes']) {
      const first = await post(undefined, '{"a":"1","noise":1}', { path, headers: { ...headersOf({ body: '' }), 'x-idem': path } })
      t.equal((await post(undefined, '{"a":"1","noise":2}', { path, headers: { ...headersOf({ body: '' }), 'x-idem': path } })).text, first.text)
    }
    t.equal((await post(undefined, '{"a":"2"}', { path: '/narrow', headers: { ...headersOf({ body: '' }), 'x-idem': '/narrow' } })).json().code, 'idempotency_key_mismatch')
    t.equal((await post(undefined, '{"a":"1"}', { path: '/narrow-bytes', headers: { ...headersOf({ body: '' }), 'x-idem': '/narrow' } })).json().code, 'idempotency_key_mismatch')
    const later = { path: '/narrow-later', headers: { ...headersOf({ body: '' }), 'x-idem': 'l' } }
    t.same((await post(undefined, '{}', later)).json(), { sync: true })
    t.match((await post(undefined, '{}', later)).json(), { statusCode: 500, message: 'no fingerprint' })
    t.equal((await post(undefined, '{}', { path: '/needs-event' })).json().code, 'idempotency_key_missing')
    for (const path of ['/narrow-broken', '/scope-broken', '/scope-broken-later']) {
      for (let i = 0; i < 2; i++) {
        t.match((await post(undefined, '{}', { path, headers: { ...headersOf({ body: '' }), 'x-idem': 'b' } })).json(), { statusCode: 500, message: /no (fingerprint|scope)/ })
      }
    }
  })

  t.test(`the answers come in the form that is asked for (${mode})`, async t => {
    const seen: unknown[] = []
    const { post } = await start(t, mode, {
      before: app => {
        app.setErrorHandler(async (error: IdempotencyError, _request, reply) => {
          seen.push(error.code, error.title, error.statusCode)
          return await reply.code(418).send({ mine: error.message })
        })
      },
      routes: app => {
        const schema = { response: { '4xx': { type: 'object', properties: { only: { type: 'string' } } } } }
        const handler = async () => 'ok'
        app.post('/envelope', { schema }, handler)
        app.post('/problem', { schema, config: { idempotency: { errors: 'problem' } } }, handler)
        app.post('/throw', { config: { idempotency: { errors: 'throw' } } }, handler)
        app.post('/custom', { config: { idempotency: { errors: (error, request) => ({ oops: error.code, id: request.id }) } } }, handler)
        app.post('/text', { config: { idempotency: { errors: error => `oops ${error.code}` } } }, handler)
      }
    })
    const problem = await post('', '{}', { path: '/problem' })
    t.equal(problem.headers['content-type'], 'application/problem+json')
    t.match(problem.json(), { type: 'urn:problem-type:idempotency_key_invalid', title: 'Idempotency key invalid', status: 400, detail: /must not be empty/, code: 'idempotency_key_invalid', request_id: /req-/ })
    t.equal((await post('', '{}', { path: '/envelope' })).json().title, 'Idempotency key invalid')
    const thrown = await post('', '{}', { path: '/throw' })
    t.equal(thrown.status, 418)
    t.match(thrown.json(), { mine: /must not be empty/ })
    t.same(seen, ['idempotency_key_invalid', 'Idempotency key invalid', 400])
    const custom = await post('', '{}', { path: '/custom' })
    t.match(custom.json(), { oops: 'idempotency_key_invalid', id: /req-/ })
    t.equal(custom.status, 400)
    t.equal((await post('', '{}', { path: '/text' })).text, 'oops idempotency_key_invalid')
  })

  t.test(`G11: one credential never gets another's response (${mode})`, async t => {
    const { post } = await start(t, mode, { routes: app => app.post('/', async () => ({ id: randomUUID() })) })
    const as = async (headers: http.OutgoingHttpHeaders) => (await post('k', '{}', { headers: { ...headersOf({ key: 'k', body: '' }), ...headers } })).text
    const callers: http.OutgoingHttpHeaders[] = [{}, { authorization: 'Bearer a' }, { authorization: 'Bearer b' }, { 'x-api-key': 'a' }, { 'x-api-key': 'b' }, { authorization: 'Bearer a ' + 'x' }, { authorization: 'Bearer a', 'x-api-key': 'b' },
      { authorization: 'a' }]
    const first = await Promise.all(callers.map(as))
    t.equal(new Set(first).size, callers.length)
    t.same(await Promise.all(callers.map(as)), first)
    t.equal(await as({ authorization: '', 'x-api-key': 'b' }), first[4])
  })

  t.test(`G11: a scope of the app's own, sync or async (${mode})`, async t => {
    const { post, app } = await start(t, mode, {
      options: { scope: async request => String(request.headers['x-tenant']) },
      routes: app => app.post('/', async () => ({ id: randomUUID() }))
    })
    const as = async (tenant: string) => (await post('k', '{}', { headers: { ...headersOf({ key: 'k', body: '' }), 'x-tenant': tenant } })).text
    const one = await as('1')
    t.not(await as('2'), one)
    t.equal(await as('1'), one)
    t.match(await app.idempotency.inspect({ scope: '1', key: 'k' }), { state: 'completed' })
    t.equal(await app.idempotency.inspect({ key: 'k' }), undefined)
    // Neither can borrow characters of the other.
    t.equal(await app.idempotency.inspect({ scope: '', key: '1k' }), undefined)
  })

  t.test(`request.idempotency: key, attempt, keep, release (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      routes: app => {
        app.post('/keep', async (request, reply) => {
          request.idempotency?.keep()
          return await reply.code(503).send({ key: request.idempotency?.key, replayed: request.idempotency?.replayed, aborted: request.idempotency?.signal.aborted, run: ++runs })
        })
        app.post('/release', async request => {
          request.idempotency?.release()
          return { attempt: request.idempotency?.attempt }
        })
      }
    })
    const kept = await post('my key', '{}', { path: '/keep' })
    t.match(kept.json(), { key: 'my key', replayed: false, aborted: false })
    const again = await post('my key', '{}', { path: '/keep' })
    t.same([again.status, again.text, again.replayed], [503, kept.text, true])
    t.same((await post('r', '{}', { path: '/release' })).json(), { attempt: 1 })
    t.same((await post('r', '{}', { path: '/release' })).json(), { attempt: 2 })
  })

  t.test(`fastify.idempotency: inspect and forget (${mode})`, async t => {
    const entered = gate()
    const finish = gate()
    const { post, app } = await start(t, mode, {
      routes: app => {
        app.post('/', async (_request, reply) => await reply.code(201).send('secret body'))
        app.post('/slow', async () => { entered.open(); await finish.promise; return 'ok' })
        app.post('/fail', async () => { throw new Error('fails') })
      }
    })
    const auth = { headers: { ...headersOf({ key: 'k' }), authorization: 'Bearer t' } }
    t.equal(await app.idempotency.inspect({ key: 'k' }), undefined)
    await post('k', undefined, auth)
    const found = await app.idempotency.inspect({ scope: 'Bearer t', key: 'k' })
    t.match(found, { state: 'completed', attempt: 1, status: 201, replayable: true })
    t.notMatch(JSON.stringify(found), 'secret')
    t.ok(found !== undefined && found.until.getTime() - found.since.getTime() > 86_000_000)
    t.equal(await app.idempotency.forget({ scope: 'Bearer t', key: 'k' }), true)
    t.equal(await app.idempotency.forget({ scope: 'Bearer t', key: 'k' }), false)
    t.equal((await post('k', undefined, auth)).replayed, false)

    await post('f', undefined, { path: '/fail' })
    t.match(await app.idempotency.inspect({ key: 'f' }), { state: 'freed', attempt: 1, status: undefined })
    const slow = post('s', undefined, { path: '/slow' })
    await entered.promise
    t.match(await app.idempotency.inspect({ key: 's' }), { state: 'held', attempt: 1 })
    finish.open()
    await slow
    t.equal(typeof app.idempotency.store.claim, 'function')
  })

  t.test(`inFlight wait: a duplicate gets the replay at the end, or the 409 at the limit (${mode})`, async t => {
    const entered = gate()
    const finish = gate()
    const { post } = await start(t, mode, {
      routes: app => {
        app.post('/', { config: { idempotency: { inFlight: { wait: 60_000 } } } }, async () => { entered.open(); await finish.promise; return { id: randomUUID() } })
        app.post('/brief', { config: { idempotency: { inFlight: { wait: 30 } } } }, async () => { entered.open(); await finish.promise; return 'ok' })
      }
    })
    const brief = post('b', '{}', { path: '/brief' })
    await entered.promise
    t.equal((await post('b', '{}', { path: '/brief' })).json().code, 'idempotency_in_progress')
    const first = post('k', '{}')
    const second = post('k', '{}')
    const other = post('k', '{"other":1}')
    await new Promise(resolve => setTimeout(resolve, 60))
    finish.open()
    const answers = await Promise.all([first, second])
    t.equal(answers[0].text, answers[1].text)
    t.same(answers.map(({ replayed }) => replayed).sort(), [false, true])
    t.equal((await other).json().code, 'idempotency_key_mismatch')
    await brief
  })

  t.test(`inFlight wait: a duplicate runs once the key has come free, with its body (${mode})`, async t => {
    let [runs, claims] = [0, 0]
    let [entered, finish] = [gate(), gate()]
    const hooks = (['onRequest', 'preParsing', 'preValidation', 'preHandler'] as const).filter(hook => hook !== 'preHandler' || !mode.endsWith('first'))
    const { app, post } = await start(t, mode, {
      options: { inFlight: { wait: 60_000 } },
      before: app => { app.addContentTypeParser('text/stream', async (_request: FastifyRequest, payload: AsyncIterable<Buffer>) => { let text = ''; for await (const chunk of payload) text += String(chunk); return text }) },
      routes: app => {
        for (const hook of hooks) {
          app.post(`/${hook}`, { config: { idempotency: { hook } } }, async (request, reply) => {
            if (++runs === 1) {
              entered.open()
              await finish.promise
              return await reply.code(503).send('busy')
            }
            return { attempt: request.idempotency?.attempt, body: request.body }
          })
        }
      }
    })
    const { store } = app.idempotency
    const claim = store.claim.bind(store)
    store.claim = (...args) => { claims++; return claim(...args) }
    for (const hook of hooks) {
      for (const [type, body] of [['application/json', '{"a":1}'], ['text/stream', 'x'.repeat(200_000)]] as const) {
        [runs, claims, entered, finish] = [0, 0, gate(), gate()]
        const key = `${hook} ${type}`
        const call = { path: `/${hook}`, headers: { 'content-type': type, 'idempotency-key': key } }
        const first = post(key, body, call)
        await entered.promise
        const second = post(key, body, call)
        await until(() => claims === 2, 'the second claim')
        finish.open()
        t.equal((await first).status, 503)
        t.same((await second).json(), { attempt: 2, body: type === 'text/stream' ? body : { a: 1 } }, `${hook}, ${type}`)
        t.equal((await post(key, body, call)).replayed, true)
      }
    }
  })

  t.test(`abandoned: a dead holder's key is taken over, or its outcome is said to be unknown (${mode})`, async t => {
    const { post, app } = await start(t, mode, {
      options: { keyPrefix: 'p:' + mode },
      routes: app => {
        app.post('/retry', { config: { idempotency: { scope: () => 'r' } } }, async request => ({ attempt: request.idempotency?.attempt }))
        app.post('/reject', { config: { idempotency: { scope: () => 'x', abandoned: 'reject' } } }, async () => 'ok')
      }
    })
    const { storeKey } = await import('../lib/protocol/fingerprint.ts')
    for (const scope of ['r', 'x']) await app.idempotency.store.claim(storeKey('p:' + mode, scope, 'k'), { token: 'd'.repeat(36), lease: 1, ttl: 60_000, takeover: true })
    await new Promise(resolve => setTimeout(resolve, 10))
    t.same((await post('k', '{}', { path: '/retry' })).json(), { attempt: 2 })
    const unknown = await post('k', '{}', { path: '/reject' })
    t.same([unknown.status, unknown.json().code], [409, 'idempotency_outcome_unknown'])
  })
}

t.test('G11: a scope that is not a string is an error, not a scope that others share', async t => {
  let runs = 0
  const scopes: Record<string, () => unknown> = { '/null': async () => null, '/object': () => ({ id: 1 }), '/number': () => 12 }
  const { app } = await start(t, 'memory', {
    routes: app => { for (const [path, scope] of Object.entries(scopes)) app.post(path, { config: { idempotency: { scope: scope as () => string } } }, async () => ({ runs: ++runs })) }
  })
  for (const [path, what] of [['/null', 'null'], ['/object', 'object'], ['/number', 'number']] as const) {
    const answer = await app.inject({ method: 'POST', url: path, headers: { 'idempotency-key': 'k' } })
    t.equal(answer.statusCode, 500)
    t.match(answer.json(), { message: new RegExp(`a scope must be a string, or undefined for the anonymous one, got ${what}`) })
  }
  t.equal(runs, 0)
  await t.rejects(app.idempotency.inspect({ scope: 5 as unknown as string, key: 'k' }), /a scope must be a string/)
})

t.test('G8: a fingerprint of another type than a string or a Buffer is an error', async t => {
  const { app } = await start(t, 'memory', {
    routes: app => { for (const value of [5, null, {}]) app.post(`/${String(value)}`, { config: { idempotency: { fingerprint: () => value as unknown as string } } }, async () => 'ok') }
  })
  for (const [path, what] of [['/5', 'number'], ['/null', 'null'], ['/[object%20Object]', 'object']] as const) {
    const answer = await app.inject({ method: 'POST', url: path, headers: { 'idempotency-key': 'k' } })
    t.match([answer.statusCode, answer.json()], [500, { message: `fastify-idempotency: option "fingerprint" must return a string or a Buffer, got ${what}` }])
  }
})

t.test('G8: the URL counts as the client sent it, whatever a handler makes of it, and however long it is', async t => {
  const { app, post } = await start(t, 'memory', {
    fastify: { http: { maxHeaderSize: 65_536 } } as FastifyServerOptions,
    routes: app => app.post('/*', async request => { request.raw.url = '/rewritten'; return 'ok' })
  })
  for (const path of ['/short', `/long?q=${'x'.repeat(30_000)}`]) {
    t.equal((await post(path.slice(0, 5), undefined, { path })).text, 'ok')
    t.equal((await post(path.slice(0, 5), undefined, { path })).replayed, true)
  }
  t.equal((await app.idempotency.inspect({ key: '/shor' }))?.state, 'completed')
})

t.test('G11: no credential, key or body is readable in the store, and the fingerprint of one body differs from key to key', async t => {
  const client = await redisClient()
  const prefix = `${randomUUID()}:`
  const { post } = await start(t, 'redis', {
    options: { redis: client, keyPrefix: prefix },
    routes: app => app.post('/', async (_request, reply) => { await reply.code(204).send() })
  })
  const secret = { authorization: 'Bearer sk_live_51H' }
  for (const key of ['order-9000', 'order-9001']) await post(key, '{"card":"4242424242424242"}', { headers: { ...headersOf({ key, body: '' }), ...secret } })
  const keys = (await Promise.all(serversOf(client).map(async server => await server.keys(`${prefix}*`)))).flat()
  t.equal(keys.length, 2)
  const values = await Promise.all(keys.map(async key => await client.getBuffer(key)))
  const dump = keys.join() + values.map(String).join()
  for (const word of ['order-900', 'sk_live', '42424242', Buffer.from('4242424242424242').toString('base64').slice(0, 12)]) t.notOk(dump.includes(word), word)
  const fingerprints = values.map(value => /[\w-]{32}\.POST/.exec(String(value))?.[0])
  t.ok(fingerprints[0])
  t.not(fingerprints[0], fingerprints[1])
})
