import { spawn } from 'node:child_process'
import { once } from 'node:events'
import redis, { type FastifyRedis } from '@fastify/redis'
import Fastify, { type FastifyReply, type FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import t from 'tap'
import idempotency, { fastifyIdempotency, MemoryStore, RedisStore } from '../lib/index.ts'
import { gate, MODES, redisClient, redisServer, send, start, stopRedis, STORES } from './fixtures/app.ts'
import { loader } from './fixtures/loader.ts'

t.teardown(stopRedis)

const handler = async (): Promise<string> => 'ok'

t.test('a wrong option of a route declared before the plugin is told when it is used', async t => {
  const { post, call } = await start(t, 'memory, routes declared first', {
    routes: app => {
      app.post('/wrong', { config: { idempotency: { ttl: -1 } } }, handler)
      app.post('/late', { config: { idempotency: { hook: 'preHandler' } } }, handler)
      app.post('/required', { config: { idempotency: { required: true } } }, handler)
      app.get('/get', handler)
    }
  })
  t.match(
    (await post('k', '{}', { path: '/wrong' })).json(), { statusCode: 500, message: /POST \/wrong: option "ttl"/ }
  )
  t.match((await post('k', '{}', { path: '/late' })).json(), {
    statusCode: 500, message: /POST \/late was declared before the plugin was loaded.*await app\.register/
  })
  t.equal((await post(undefined, '{}', { path: '/required' })).json().code, 'idempotency_key_missing')
  t.equal((await call({ method: 'GET', path: '/get', key: '' })).text, 'ok')
})

t.test('the store is chosen: the option, fastify.redis, or the in-process one, which the log tells', async t => {
  const log: string[] = []
  const stream = { write: (line: string) => { log.push(line) } }
  const { url } = await redisServer()
  const plain = Fastify({ logger: { stream } })
  await plain.register(fastifyIdempotency)
  t.type(plain.idempotency.store, MemoryStore)
  t.match(log.join(''), 'keys are kept in this process only')
  await plain.close()

  const shared = Fastify()
  shared.register(redis, { url })
  shared.register(idempotency)
  await shared.ready()
  t.type(shared.idempotency.store, RedisStore)
  await shared.close()

  const named = Fastify()
  named.register(redis, { url, namespace: 'one' })
  named.register(redis, { url, namespace: 'two' })
  named.register(idempotency)
  await t.rejects(
    async () => await named.ready(),
    /fastify\.redis holds namespaces; choose one with the option "redis": fastify\.redis\.one or fastify\.redis\.two/
  )
  await named.close()

  const other = Fastify()
  other.decorate('redis', { sendCommand () {}, options: undefined, isOpen: true } as unknown as FastifyRedis)
  other.register(idempotency)
  await t.rejects(
    async () => await other.ready(),
    /fastify\.redis must be an ioredis client.*"callBuffer"\. It looks like a client of node-redis/
  )
  await other.close()

  const twice = Fastify()
  await twice.register(idempotency)
  await t.rejects(async () => await twice.register(idempotency), /registered already.*config\.idempotency/)
})

for (const mode of MODES) {
  t.test(`G12: what runs in onRequest has run before the key is taken or a replay is sent (${mode})`, async t => {
    let allow = true
    let runs = 0
    const guard = async (_request: FastifyRequest, reply: FastifyReply) => {
      if (!allow) await reply.code(401).send('no')
    }
    const { post, app } = await start(t, mode, {
      before: app => {
        app.addHook(
          'onRequest', async (request, reply) => { if (request.url === '/instance') await guard(request, reply) }
        )
      },
      routes: app => {
        app.post('/instance', async () => ({ runs: ++runs }))
        app.post('/route', { onRequest: guard }, async () => ({ runs: ++runs }))
        app.post('/routes', { onRequest: [async () => {}, guard] }, async () => ({ runs: ++runs }))
        app.post('/pre-parsing', {
          config: { idempotency: { hook: 'preParsing' } }, preParsing: guard
        }, async () => ({ runs: ++runs }))
        app.post('/pre-validation', {
          config: { idempotency: { hook: 'preValidation' } }, preValidation: guard
        }, async () => ({ runs: ++runs }))
        if (!mode.endsWith('first')) {
          app.post('/pre-handler', {
            config: { idempotency: { hook: 'preHandler' } }, preHandler: [guard]
          }, async () => ({ runs: ++runs }))
        }
      }
    })
    const paths = ['/instance', '/route', '/routes', '/pre-parsing', '/pre-validation', ...(
      mode.endsWith('first') ? [] : ['/pre-handler']
    )]
    for (const path of paths) {
      allow = false
      t.equal((await post(path, '{}', { path })).status, 401)
      t.equal(await app.idempotency.inspect({ key: path }), undefined, `${path}: no key is taken`)
      allow = true
      const first = await post(path, '{}', { path })
      t.equal((await post(path, '{}', { path })).text, first.text)
      t.equal((await post(path, '{"b":1}', { path })).status, 409)
      allow = false
      const refused = await post(path, '{}', { path })
      t.same([refused.status, refused.replayed], [401, false], `${path}: no replay is sent`)
    }
    t.equal(runs, paths.length)
  })
}

for (const mode of STORES) {
  t.test(`G12: a hook that another plugin adds behind ours comes first all the same (${mode})`, async t => {
    let allow = false
    const late = fp(async app => {
      app.addHook('onRoute', route => {
        route.onRequest = [
          route.onRequest ?? []
        ].flat().concat((_request: FastifyRequest, reply: FastifyReply, done: () => void) => {
          if (allow) done()
          else reply.code(401).send('no')
        })
      })
    })
    const { post, app } = await start(t, mode, {
      routes: async app => {
        await app.register(late)
        app.post('/', handler)
      }
    })
    t.equal((await post('k', '{}')).status, 401)
    t.equal(await app.idempotency.inspect({ key: 'k' }), undefined)
    allow = true
    t.equal((await post('k', '{}')).status, 200)
    allow = false
    t.equal((await post('k', '{}')).status, 401)
  })

  t.test(`G12: routes declared earlier and later, and in child plugins, are all protected (${mode})`, async t => {
    const client = mode === 'redis' ? { redis: await redisClient() } : {}
    const app = Fastify()
    let runs = 0
    const shared = { config: { idempotency: { required: true } } }
    app.register(async child => { child.post('/child-before', async () => ++runs + '') })
    app.register(idempotency, { ...client, keyPrefix: `${Math.random()}` })
    app.post('/sync', shared, async () => ++runs + '')
    app.register(async child => {
      child.post('/child', shared, async () => ++runs + '')
      child.post('/bypass', { config: { idempotency: { key: () => undefined } } }, async () => ++runs + '')
      child.post('/out', { config: { idempotency: false } }, async () => ++runs + '')
    })
    await app.ready()
    const post = async (url: string) => await app.inject({ method: 'POST', url, headers: { 'idempotency-key': url } })
    for (const url of ['/child-before', '/sync', '/child']) {
      const first = await post(url)
      t.equal(first.statusCode, 200, url)
      t.equal((await post(url)).payload, first.payload, url)
    }
    t.not((await post('/bypass')).payload, (await post('/bypass')).payload)
    t.not((await post('/out')).payload, (await post('/out')).payload)
    t.equal((await app.inject({ method: 'POST', url: '/child' })).statusCode, 400)
    await app.close()
  })

  for (const forceCloseConnections of [true, 'idle'] as const) {
    t.test(`G7, G14: what runs is awaited and kept on close (${mode}, forced: ${forceCloseConnections})`, async t => {
      const entered = gate()
      const finish = gate()
      const { app, port } = await start(t, mode, {
        fastify: { forceCloseConnections },
        routes: app => app.post('/', async () => {
          entered.open()
          await finish.promise
          return 'ok'
        })
      })
      const call = send(port, { key: 'k', headers: { connection: 'close' } }).then(({ text }) => text, () => 'cut off')
      await entered.promise
      let closed = false
      const closing = app.close().then(() => { closed = true })
      if (forceCloseConnections === true) t.equal(await call, 'cut off')
      await new Promise(resolve => setTimeout(resolve, 30))
      t.equal(closed, false)
      finish.open()
      await closing
      if (forceCloseConnections === 'idle') t.equal(await call, 'ok')
      t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, 'completed', 'the store is usable after it')
    })
  }
}

t.test('a route of several methods takes part with those covered; with its own config, with all that can', async t => {
  let runs = 0
  const { call } = await start(t, 'memory', {
    routes: app => {
      const handler = async (): Promise<unknown> => ({ runs: ++runs })
      app.route({ method: ['POST', 'PUT'], url: '/', handler })
      app.route({ method: ['PUT', 'DELETE', 'GET'], url: '/own', config: { idempotency: { ttl: 60_000 } }, handler })
    }
  })
  const cases = [
    ['POST', '/', true], ['PUT', '/', false], ['PUT', '/own', true], ['DELETE', '/own', true], ['GET', '/own', false],
    ['HEAD', '/own', false]
  ] as const
  for (const [method, path, expected] of cases) {
    await call({ method, path, key: method })
    t.equal((await call({ method, path, key: method })).replayed, expected, method)
  }
})

t.test('a later stage without a key, or with a key option that fails there', async t => {
  const { post } = await start(t, 'memory', {
    routes: app => {
      const late = { hook: 'preHandler' } as const
      app.post('/none', { config: { idempotency: { ...late, key: () => undefined } } }, handler)
      app.post('/fails', { config: { idempotency: { ...late, key: () => { throw new Error('no key') } } } }, handler)
      app.post('/drops', {
        config: { idempotency: late }, preHandler: async request => { Reflect.set(request, 'idempotency', null) }
      }, handler)
    }
  })
  t.equal((await post('k', '{}', { path: '/none' })).text, 'ok')
  t.equal((await post('k', '{}', { path: '/fails' })).status, 500)
  t.equal((await post('k', '{}', { path: '/drops' })).text, 'ok')
})

t.test('G14: timers do not keep a process alive, not even those of a key that is held', async t => {
  const child = spawn(process.execPath, [...loader, new URL('fixtures/exit.ts', import.meta.url).pathname], {
    stdio: ['ignore', 'pipe', 'inherit']
  })
  let said = ''
  child.stdout.on('data', chunk => { said += String(chunk) })
  const [code] = await once(child, 'exit') as [number]
  t.same([code, said.trim()], [0, 'held'])
})

t.test('G14: a store of the app\'s own is closed with it', async t => {
  let closed = 0
  const store = Object.assign(new MemoryStore(), { close: async () => { closed++ } })
  const app = Fastify()
  await app.register(idempotency, { store })
  await app.close()
  t.equal(closed, 1)
})

t.test('G15: a route that takes no part gets no hook, and the arrays of the user stay the user\'s', async t => {
  const app = Fastify()
  await app.register(idempotency)
  const mine = [async () => {}]
  const seen = new Map<string, Record<string, unknown>>()
  app.addHook('onRoute', route => { seen.set(`${String(route.method)} ${route.url}`, { ...route }) })
  app.get('/get', handler)
  app.post('/out', { config: { idempotency: false } }, handler)
  app.post('/in', { onRequest: mine, onSend: async (_request, _reply, payload) => payload }, handler)
  app.patch('/in', handler)
  const hooks = ['onRequest', 'preParsing', 'preValidation', 'preHandler', 'onError', 'onSend'] as const
  for (const route of ['GET /get', 'HEAD /get', 'POST /out']) {
    // Fastify's own HEAD route has its onSend.
    for (const hook of hooks) {
      if (!(route.startsWith('HEAD') && hook === 'onSend')) {
        t.equal(seen.get(route)?.[hook], undefined, `${route} ${hook}`)
      }
    }
    t.equal(seen.get(route)?.handler, handler)
  }
  t.equal(mine.length, 1)
  // Ours stand around the route's own.
  t.equal((seen.get('POST /in')?.onRequest as unknown[]).length, 3)
  t.equal((seen.get('PATCH /in')?.onSend as unknown[]).length, 1)
  await app.close()
})

t.test('G12: two instances of the plugin in one process keep to their own requests', async t => {
  const siblings = Fastify()
  for (const path of ['/a', '/b']) {
    siblings.register(async scope => {
      scope.register(idempotency)
      scope.post(path, async () => `${path} ${Math.random()}`)
    })
  }
  const alone = Fastify()
  alone.register(idempotency)
  alone.post('/a', async () => Math.random().toString())
  for (const app of [siblings, alone]) {
    await app.ready()
    t.teardown(async () => await app.close())
  }
  for (const [app, url] of [[siblings, '/a'], [siblings, '/b'], [alone, '/a']] as const) {
    const post = async () => await app.inject({ method: 'POST', url, headers: { 'idempotency-key': 'k' } })
    const first = await post()
    t.equal(first.statusCode, 200)
    const retry = await post()
    t.same([retry.payload, retry.headers['idempotent-replayed']], [first.payload, 'true'])
  }
})
