/** The second way in: routes that were declared before the plugin was loaded. */
import { channel } from 'node:diagnostics_channel'
import type { IncomingMessage } from 'node:http'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import idempotency, { MemoryStore, type FastifyIdempotencyOptions } from '../lib/index.ts'

interface Line { level: number, msg: string, routes?: string[] }

const handler = async (): Promise<string> => 'ok'

/** An app whose routes are there before the plugin is loaded. */
async function early (
  t: Test, routes: (app: FastifyInstance) => void, options: FastifyIdempotencyOptions = {}
): Promise<{ app: FastifyInstance, said: Line[] }> {
  const lines: Line[] = []
  const app = Fastify({ logger: { stream: { write (line: string) { lines.push(JSON.parse(line) as Line) } } } })
  app.addHttpMethod('MKCOL', { hasBody: true })
  app.register(idempotency, { store: new MemoryStore(), ...options })
  routes(app)
  app.get('/get', handler)
  t.teardown(async () => await app.close())
  await app.ready()
  return { app, said: lines.filter(({ msg }) => msg.includes('before the plugin was loaded')) }
}

/** Whether the instance has hooks of the plugin, which would run for all of its routes. */
function hasHooks (app: FastifyInstance): boolean {
  return app.printRoutes({ method: 'GET', includeHooks: true }).includes('preParsing')
}

const postTo = async (
  app: FastifyInstance, url: string, method: 'POST' | 'PUT' = 'POST', key = 'k'
): Promise<boolean> => {
  const { headers } = await app.inject(
    { method, url, headers: { 'idempotency-key': key, host: 'a.example' }, payload: {} }
  )
  return headers['idempotent-replayed'] === 'true'
}

t.test('G15: without an earlier route whose method can take part, the instance has no hooks', async t => {
  const { app, said } = await early(t, app => {
    app.get('/', handler)
    app.options('/', handler)
  })
  t.notOk(hasHooks(app))
  t.same(said, [])

  const awaited = Fastify()
  await awaited.register(idempotency)
  awaited.post('/', handler)
  awaited.get('/', handler)
  await awaited.ready()
  t.notOk(hasHooks(awaited))
  await awaited.close()
})

t.test('G12: earlier routes are served, and one line at start-up names them', async t => {
  const urls = ['/', '/users', '/users/:id', '/users/:id/pay', '/users/:name/pay/:sum(^\\d+$)', '/files/*', '/é/x']
  const { app, said } = await early(t, app => {
    for (const url of urls) app.post(url, handler)
    app.patch('/users/:id', handler)
    app.get('/users', handler)
    app.put('/users', handler)
    for (const host of ['a.example', 'b.example']) app.post('/hosts', { constraints: { host } }, handler)
  })
  t.equal(said.length, 1)
  t.equal(said[0]?.level, 30)
  t.match(said[0]?.msg, /`await app\.register\(idempotency\)` before them would be better/)
  t.same(new Set(said[0]?.routes), new Set([
    'POST /', 'POST /users', 'POST /users/:id|:name',
    'POST /users/:id|:name/pay', 'POST /users/:id|:name/pay/:sum(^\\d+$)',
    'POST /files/*', 'POST /é/x', 'POST /hosts', 'PATCH /users/:id'
  ]))
  t.ok(hasHooks(app))
  for (const url of [
    '/', '/users', '/users/1', '/users/1/pay', '/users/1/pay/5', '/files/a/b', '/%C3%A9/x', '/hosts'
  ]) {
    t.same([await postTo(app, url, 'POST', url), await postTo(app, url, 'POST', url)], [false, true], url)
  }
})

t.test('G12: an earlier route of another method that opts in is served, though no line names it', async t => {
  const { app, said } = await early(t, app => {
    app.put('/', { config: { idempotency: true } }, handler)
    app.delete('/', handler)
  })
  t.same(said, [])
  t.same([await postTo(app, '/', 'PUT'), await postTo(app, '/', 'PUT')], [false, true])
})

t.test('G12: an earlier route of a method of one\'s own is named and served', async t => {
  const { app, said } = await early(t, app => app.route({ method: 'MKCOL', url: '/', handler }), { methods: ['mkcol'] })
  t.same(said[0]?.routes, ['MKCOL /'])
  t.ok(hasHooks(app))
})

t.test('handler tracing is subscribed to from the first use of an earlier route until the app closes', async t => {
  const tracing = channel('tracing:fastify.request.handler:start')
  const { app } = await early(t, app => {
    app.post('/', handler)
    app.post('/out', { config: { idempotency: false } }, handler)
    app.get('/', handler)
  })
  t.notOk(tracing.hasSubscribers)
  await postTo(app, '/out')
  await app.inject('/')
  await app.inject({ method: 'POST', url: '/missing' })
  t.notOk(tracing.hasSubscribers, 'routes that take no part')
  await postTo(app, '/')
  t.ok(tracing.hasSubscribers)
  await app.close()
  t.notOk(tracing.hasSubscribers)
})

t.test('G12: an earlier route of several methods is served though its first request takes no part', async t => {
  const { app } = await early(t, app => app.route({ method: ['GET', 'POST'], url: '/', handler }))
  await app.inject('/')
  t.same([await postTo(app, '/'), await postTo(app, '/')], [false, true])
})

t.test('G12: earlier routes that share no part of their URLs are named', async t => {
  const { app, said } = await early(t, app => {
    for (const url of ['*', '/users']) app.post(url, handler)
  })
  t.same(new Set(said[0]?.routes), new Set(['POST *', 'POST /users']))
  t.same([await postTo(app, '/any'), await postTo(app, '/any')], [false, true])
})

t.test('G12: beside earlier routes, later ones are served by their own hooks', async t => {
  const { app, said } = await early(t, app => {
    app.post('/earlier', handler)
    app.register(async app => {
      app.post('/later', { config: { idempotency: { hook: 'preHandler' } } }, handler)
      app.post('/out', { config: { idempotency: false } }, handler)
    })
  })
  t.same(said[0]?.routes, ['POST /earlier'])
  for (const url of ['/earlier', '/later', '/out']) {
    t.same([await postTo(app, url, 'POST', url), await postTo(app, url, 'POST', url)], [false, url !== '/out'], url)
  }
})

t.test('G12: beside earlier routes, a later one with a constraint of the application\'s own is served', async t => {
  const handlers = new Map<unknown, unknown>()
  const { app } = await early(t, app => {
    app.addConstraintStrategy({
      name: 'region',
      storage: () => ({
        get: (key: string) => handlers.get(key) ?? null,
        set: (key: string, value: unknown) => { handlers.set(key, value) }
      }),
      deriveConstraint: (request: IncomingMessage) => request.headers['x-region']
    } as never)
    app.post('/earlier', handler)
    app.register(async app => app.post('/later', { constraints: { region: 'eu' } as never }, handler))
  })
  for (const key of [undefined, 'k', 'k']) {
    const headers = { 'x-region': 'eu', ...(key === undefined ? {} : { 'idempotency-key': key }) }
    const { statusCode, body } = await app.inject({ method: 'POST', url: '/later', headers, payload: {} })
    t.same([statusCode, body], [200, 'ok'], key ?? 'without a key')
  }
})
