import { randomUUID } from 'node:crypto'
import t from 'tap'
import type { FastifyRequest, FastifyServerOptions } from 'fastify'
import { gate, headersOf, redisClient, serversOf, start, stopRedis, STORES, until } from './fixtures/app.ts'
import { cutting, head } from './fixtures/cut.ts'
import { fails, faulty } from './fixtures/faulty.ts'

t.teardown(stopRedis)

for (const mode of STORES) {
  t.test(`inFlight wait: a duplicate gets the replay at the end, or the 409 at the limit (${mode})`, async t => {
    const entered = gate()
    const finish = gate()
    const { app, post } = await start(t, mode, {
      routes: app => {
        app.post('/', { config: { idempotency: { inFlight: { wait: 60_000 } } } }, async () => {
          entered.open()
          await finish.promise
          return { id: randomUUID() }
        })
        app.post('/brief', { config: { idempotency: { inFlight: { wait: 30 } } } }, async () => {
          entered.open()
          await finish.promise
          return 'ok'
        })
      }
    })
    const brief = post('b', '{}', { path: '/brief' })
    await entered.promise
    t.equal((await post('b', '{}', { path: '/brief' })).json().code, 'idempotency_in_progress')
    const answered = new Set<string>()
    const { store } = app.idempotency
    const { claim } = store
    store.claim = async (key, request) => {
      const found = await claim.call(store, key, request)
      answered.add(request.token)
      return found
    }
    const first = post('k', '{}')
    const second = post('k', '{}')
    const other = post('k', '{"other":1}')
    await until(() => answered.size === 3, 'all have claimed the key')
    finish.open()
    const answers = await Promise.all([first, second])
    t.equal(answers[0].text, answers[1].text)
    t.same(answers.map(({ replayed }) => replayed).sort(), [false, true])
    t.equal((await other).json().code, 'idempotency_key_mismatch')
    await brief
  })

  t.test(`inFlight: a route may reject where the others wait (${mode})`, async t => {
    const [entered, finish] = [gate(), gate()]
    const { post } = await start(t, mode, {
      options: { inFlight: { wait: 60_000 } },
      routes: app => app.post('/', { config: { idempotency: { inFlight: 'reject' } } }, async () => {
        entered.open()
        await finish.promise
        return 'ok'
      })
    })
    const holder = post('k', '{}')
    await entered.promise
    t.equal((await post('k', '{}')).json().code, 'idempotency_in_progress')
    finish.open()
    t.equal((await holder).text, 'ok')
  })

  t.test(`inFlight wait: a duplicate runs once the key has come free, with its body (${mode})`, async t => {
    let [runs, claims] = [0, 0]
    let [entered, finish] = [gate(), gate()]
    const hooks = (['onRequest', 'preParsing', 'preValidation', 'preHandler'] as const).filter(
      hook => hook !== 'preHandler' || !mode.endsWith('first')
    )
    const { app, post } = await start(t, mode, {
      options: { inFlight: { wait: 60_000 } },
      before: app => {
        app.addContentTypeParser('text/stream', async (_request: FastifyRequest, payload: AsyncIterable<Buffer>) => {
          let text = ''
          for await (const chunk of payload) text += String(chunk)
          return text
        })
      },
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
    store.claim = (...args) => {
      claims++
      return claim(...args)
    }
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
        t.same(
          (await second).json(), { attempt: 2, body: type === 'text/stream' ? body : { a: 1 } }, `${hook}, ${type}`
        )
        t.equal((await post(key, body, call)).replayed, true)
      }
    }
  })

  t.test(`abandoned: a dead holder's key is taken over, or its outcome is said to be unknown (${mode})`, async t => {
    const { post, app } = await start(t, mode, {
      options: { keyPrefix: 'p:' + mode },
      routes: app => {
        app.post('/retry', {
          config: { idempotency: { scope: () => 'r' } }
        }, async request => ({ attempt: request.idempotency?.attempt }))
        app.post('/reject', { config: { idempotency: { scope: () => 'x', abandoned: 'reject' } } }, async () => 'ok')
      }
    })
    const { storeKey } = await import('../lib/protocol/fingerprint.ts')
    for (const scope of ['r', 'x']) {
      await app.idempotency.store.claim(
        storeKey('p:' + mode, scope, 'k'), { token: 'd'.repeat(36), lease: 1, ttl: 60_000, takeover: true }
      )
    }
    await new Promise(resolve => setTimeout(resolve, 10))
    t.same((await post('k', '{}', { path: '/retry' })).json(), { attempt: 2 })
    const unknown = await post('k', '{}', { path: '/reject' })
    t.same([unknown.status, unknown.json().code], [409, 'idempotency_outcome_unknown'])
  })
}

t.test('G11: a scope that is not a string is an error, not a scope that others share', async t => {
  let runs = 0
  const scopes: Record<string, () => unknown> = {
    '/null': async () => null, '/object': () => ({ id: 1 }), '/number': () => 12
  }
  const { app } = await start(t, 'memory', {
    routes: app => {
      for (const [path, scope] of Object.entries(scopes)) {
        app.post(path, { config: { idempotency: { scope: scope as () => string } } }, async () => ({ runs: ++runs }))
      }
    }
  })
  for (const [path, what] of [['/null', 'null'], ['/object', 'object'], ['/number', 'number']] as const) {
    const answer = await app.inject({ method: 'POST', url: path, headers: { 'idempotency-key': 'k' } })
    t.equal(answer.statusCode, 500)
    t.match(answer.json(), {
      message: new RegExp(`a scope must be a string, or undefined for the anonymous one, got ${what}`)
    })
  }
  t.equal(runs, 0)
  await t.rejects(app.idempotency.inspect({ scope: 5 as unknown as string, key: 'k' }), /a scope must be a string/)
})

t.test('G8: a fingerprint of another type than a string or a Buffer is an error', async t => {
  const { app } = await start(t, 'memory', {
    routes: app => {
      for (const value of [5, null, {}]) {
        app.post(`/${String(value)}`, {
          config: { idempotency: { fingerprint: () => value as unknown as string } }
        }, async () => 'ok')
      }
    }
  })
  for (const [path, what] of [['/5', 'number'], ['/null', 'null'], ['/[object%20Object]', 'object']] as const) {
    const answer = await app.inject({ method: 'POST', url: path, headers: { 'idempotency-key': 'k' } })
    t.match([answer.statusCode, answer.json()], [
      500, { message: `fastify-idempotency: option "fingerprint" must return a string or a Buffer, got ${what}` }
    ])
  }
})

t.test('G8: the URL counts as the client sent it, whatever a handler makes of it, and however long it is', async t => {
  const { app, post } = await start(t, 'memory', {
    fastify: { http: { maxHeaderSize: 65_536 } } as FastifyServerOptions,
    routes: app => app.post('/*', async request => {
      request.raw.url = '/rewritten'
      return 'ok'
    })
  })
  for (const path of ['/short', `/long?q=${'x'.repeat(30_000)}`]) {
    t.equal((await post(path.slice(0, 5), undefined, { path })).text, 'ok')
    t.equal((await post(path.slice(0, 5), undefined, { path })).replayed, true)
  }
  t.equal((await app.idempotency.inspect({ key: '/shor' }))?.state, 'completed')
})

t.test('G11: no credential, key or body is readable in the store; a fingerprint differs from key to key', async t => {
  const client = await redisClient()
  const prefix = `${randomUUID()}:`
  const { post } = await start(t, 'redis', {
    options: { redis: client, keyPrefix: prefix },
    routes: app => app.post('/', async (_request, reply) => { await reply.code(204).send() })
  })
  const secret = { authorization: 'Bearer sk_live_51H' }
  for (const key of ['order-9000', 'order-9001']) {
    await post(key, '{"card":"4242424242424242"}', { headers: { ...headersOf({ key, body: '' }), ...secret } })
  }
  const keys = (await Promise.all(serversOf(client).map(async server => await server.keys(`${prefix}*`)))).flat()
  t.equal(keys.length, 2)
  const values = await Promise.all(keys.map(async key => await client.getBuffer(key)))
  const dump = keys.join() + values.map(String).join()
  const encoded = Buffer.from('4242424242424242').toString('base64').slice(0, 12)
  for (const word of ['order-900', 'sk_live', '42424242', encoded]) t.notOk(dump.includes(word), word)
  const fingerprints = values.map(value => /[\w-]{32}\.POST/.exec(String(value))?.[0])
  t.ok(fingerprints[0])
  t.not(fingerprints[0], fingerprints[1])
})

for (const which of ['the first', 'a waiter']) {
  t.test(`G6: a client that leaves while its key is asked for leaves nothing behind: ${which}, no body`, async t => {
    const [entered, finish, asking, go, left] = [gate(), gate(), gate(), gate(), gate()]
    const waits = which === 'a waiter'
    let [runs, claims] = [0, 0]
    const store = faulty({
      async claim () {
        // A waiter's own question is the third: it has been told before that the key is held.
        if (++claims !== (waits ? 3 : 1)) return
        asking.open()
        await go.promise
      }
    })
    const { post, port } = await start(t, 'memory', {
      options: { store, inFlight: { wait: 60_000 } },
      before: app => app.addHook('onRequest', async (request, reply) => {
        if (request.headers['x-leaves'] === '1') reply.raw.once('close', left.open)
      }),
      routes: app => app.post('/', async (_request, reply) => {
        runs++
        entered.open()
        await finish.promise
        return await reply.code(500).send('failed')
      })
    })
    const holder = waits ? post('k') : undefined
    if (waits) await entered.promise
    const leaves = await cutting(port, head('/', 'k', 'X-Leaves: 1\r\n'))
    await asking.promise
    finish.open()
    await holder
    leaves.destroy()
    await left.promise
    go.open()
    await until(() => store.calls.filter(call => call === 'release').length === (waits ? 2 : 1), 'the key given back')
    // Its own answer, which nobody gets, comes at once.
    await new Promise(resolve => setImmediate(resolve))
    t.notOk(store.calls.includes('complete'))
    t.equal(runs, waits ? 1 : 0)
    t.match(await post('k'), { text: 'failed', replayed: false })
  })
}

t.test('G1: a waiter that a store which is away may have granted the key gives it back at its limit', async t => {
  const [entered, finish] = [gate(), gate()]
  let [runs, claims] = [0, 0]
  const store = faulty({ claim: () => { if (++claims > 2) fails() } })
  const { post } = await start(t, 'memory', {
    options: { store, onStoreError: 'bypass', inFlight: { wait: 200 } },
    routes: app => app.post('/', async () => {
      runs++
      entered.open()
      await finish.promise
      return 'ok'
    })
  })
  const holder = post('k')
  await entered.promise
  t.equal((await post('k')).json().code, 'idempotency_in_progress')
  t.ok(store.calls.includes('release'), 'given back')
  finish.open()
  t.equal((await holder).text, 'ok')
  t.equal(runs, 1)
})
