import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { IdempotencyError } from '../lib/index.ts'
import { gate, headersOf, MODES, start, stopRedis, STORES } from './fixtures/app.ts'
import * as http from 'node:http'

t.teardown(stopRedis)

for (const mode of MODES) {
  t.test(`a request without a key runs, whichever stage the key would be taken in (${mode})`, async t => {
    let runs = 0
    const stages = ['onRequest', 'preParsing', 'preValidation', 'preHandler'] as const
    // Routes that were declared first cannot be served as late as that.
    const served = stages.filter(hook => hook !== 'preHandler' || !mode.endsWith('first'))
    const { post } = await start(t, mode, {
      routes: app => {
        for (const hook of served) app.post(`/${hook}`, { config: { idempotency: { hook } } }, async () => ++runs)
      }
    })
    for (const hook of [...served, ...served]) t.equal((await post(undefined, '{}', { path: `/${hook}` })).status, 200)
    t.equal(runs, 2 * served.length)
  })
}

for (const mode of STORES) {
  t.test(`a route may require a key, and be tuned in every way (${mode})`, async t => {
    let runs = 0
    const handler = async (_request: FastifyRequest, reply: FastifyReply) => reply.code(202).send({ runs: ++runs })
    const { post, call } = await start(t, mode, {
      options: {
        global: false,
        headerName: 'X-Idem',
        replayedHeaderName: 'X-Again',
        methods: ['post', 'PUT'],
        docsUrl: 'https://docs.example.com/errors'
      },
      routes: app => {
        app.post('/needs', { config: { idempotency: { required: true } } }, handler)
        app.post('/short', { config: { idempotency: { maxKeyLength: 3 } } }, handler)
        app.post('/never', { config: { idempotency: { cacheable: () => false } } }, handler)
        app.put('/in', { config: { idempotency: true } }, handler)
        app.post('/not-in', handler)
        app.post('/event', {
          config: { idempotency: { hook: 'preHandler', key: request => (request.body as { id?: string }).id } }
        }, handler)
        app.post('/late-key', {
          config: { idempotency: { key: async request => String(request.headers['x-event']) } }
        }, handler)
        app.post('/wrong-key', { config: { idempotency: { key: () => 5 as unknown as string } } }, handler)
        app.post('/narrow', {
          config: { idempotency: { fingerprint: (_request, body) => (JSON.parse(String(body)) as { a: string }).a } }
        }, handler)
        app.post('/narrow-bytes', {
          config: { idempotency: { fingerprint: (_request, body) => body.subarray(0, 2) } }
        }, handler)
        app.post('/narrow-broken', {
          config: { idempotency: { fingerprint: () => { throw new Error('no fingerprint') } } }
        }, handler)
        let calls = 0
        app.post('/narrow-later', {
          config: {
            idempotency: {
              fingerprint: () => {
                if (calls++ > 0) throw new Error('no fingerprint')
                return 'same'
              }
            }
          }
        }, () => ({ sync: true }))
        app.post('/needs-event', { config: { idempotency: { required: true, key: () => undefined } } }, handler)
        app.post(
          '/scope-broken', { config: { idempotency: { scope: () => { throw new Error('no scope') } } } }, handler
        )
        app.post('/scope-broken-later', {
          config: { idempotency: { scope: async () => { throw new Error('no scope') } } }
        }, handler)
      }
    })
    const idem = (key: string) => ({ headers: { 'x-idem': key } })
    const missing = await post(undefined, '{}', { path: '/needs' })
    t.same([missing.status, missing.json().code, missing.json().type], [
      400, 'idempotency_key_missing', 'https://docs.example.com/errors#idempotency_key_missing'
    ])
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
    const header = await post(
      undefined, '{}', { path: '/late-key', headers: { 'content-type': 'application/json', 'x-event': 'e' } }
    )
    t.equal((await post(
      undefined, '{}', { path: '/late-key', headers: { 'content-type': 'application/json', 'x-event': 'e' } }
    )).text, header.text)
    t.match((await post(undefined, '{}', { path: '/wrong-key' })).json().message, /option "key" must return a string/)

    for (const path of ['/narrow', '/narrow-bytes']) {
      const first = await post(
        undefined, '{"a":"1","noise":1}', { path, headers: { ...headersOf({ body: '' }), 'x-idem': path } }
      )
      t.equal((
        await post(undefined, '{"a":"1","noise":2}', { path, headers: { ...headersOf({ body: '' }), 'x-idem': path } })
      ).text, first.text)
    }
    t.equal((await post(undefined, '{"a":"2"}', {
      path: '/narrow', headers: { ...headersOf({ body: '' }), 'x-idem': '/narrow' }
    })).json().code, 'idempotency_key_mismatch')
    t.equal((await post(undefined, '{"a":"1"}', {
      path: '/narrow-bytes', headers: { ...headersOf({ body: '' }), 'x-idem': '/narrow' }
    })).json().code, 'idempotency_key_mismatch')
    const later = { path: '/narrow-later', headers: { ...headersOf({ body: '' }), 'x-idem': 'l' } }
    t.same((await post(undefined, '{}', later)).json(), { sync: true })
    t.match((await post(undefined, '{}', later)).json(), { statusCode: 500, message: 'no fingerprint' })
    t.equal((await post(undefined, '{}', { path: '/needs-event' })).json().code, 'idempotency_key_missing')
    for (const path of ['/narrow-broken', '/scope-broken', '/scope-broken-later']) {
      for (let i = 0; i < 2; i++) {
        t.match((
          await post(undefined, '{}', { path, headers: { ...headersOf({ body: '' }), 'x-idem': 'b' } })
        ).json(), { statusCode: 500, message: /no (fingerprint|scope)/ })
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
        app.post('/custom', {
          config: { idempotency: { errors: (error, request) => ({ oops: error.code, id: request.id }) } }
        }, handler)
        app.post('/text', { config: { idempotency: { errors: error => `oops ${error.code}` } } }, handler)
      }
    })
    const problem = await post('', '{}', { path: '/problem' })
    t.equal(problem.headers['content-type'], 'application/problem+json')
    t.match(
      problem.json(),
      {
        type: 'urn:problem-type:idempotency_key_invalid',
        title: 'Idempotency key invalid',
        status: 400,
        detail: /must not be empty/,
        code: 'idempotency_key_invalid',
        request_id: /req-/
      }
    )
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
    const as = async (
      headers: http.OutgoingHttpHeaders
    ) => (await post('k', '{}', { headers: { ...headersOf({ key: 'k', body: '' }), ...headers } })).text
    const callers: http.OutgoingHttpHeaders[] = [{}, { authorization: 'Bearer a' }, {
      authorization: 'Bearer b'
    }, { 'x-api-key': 'a' }, { 'x-api-key': 'b' }, { authorization: 'Bearer a ' + 'x' }, {
      authorization: 'Bearer a', 'x-api-key': 'b'
    },
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
    const as = async (tenant: string) => (
      await post('k', '{}', { headers: { ...headersOf({ key: 'k', body: '' }), 'x-tenant': tenant } })
    ).text
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
          return await reply.code(503).send({
            key: request.idempotency?.key,
            replayed: request.idempotency?.replayed,
            aborted: request.idempotency?.signal.aborted,
            run: ++runs
          })
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
        app.post('/slow', async () => {
          entered.open()
          await finish.promise
          return 'ok'
        })
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
}
