import { randomUUID } from 'node:crypto'
import cookie from '@fastify/cookie'
import session from '@fastify/session'
import Fastify, { type FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import t, { type Test } from 'tap'
import idempotency, {
  MemoryStore, type FastifyIdempotencyOptions, type IdempotencyErrorForm, type IdempotencyRouteOptions
} from '../lib/index.ts'
import { gate, MODES, start, stopRedis, type TestApp } from './fixtures/app.ts'

t.teardown(stopRedis)

/** A route that holds its key until it is let go, and one that cannot be refused for that. */
async function holding (
  t: Test, options: FastifyIdempotencyOptions, route: IdempotencyRouteOptions = {}
): Promise<TestApp> {
  const entered = gate()
  const finish = gate()
  const api = await start(t, 'memory', {
    options,
    routes: app => {
      app.post('/', { config: { idempotency: route } }, async () => {
        entered.open()
        await finish.promise
        return 'ok'
      })
    }
  })
  // Before the app is closed, which waits for it.
  t.teardown(() => finish.open())
  const first = api.post('held')
  first.catch(() => {})
  await entered.promise
  return api
}

t.test('G8: Retry-After has whole seconds, rounded up, at least 1', async t => {
  for (const [retryAfter, seconds] of [
    [1, '1'], [1_000, '1'], ['1001ms', '2'], ['90s', '90'], ['2m', '120']
  ] as const) {
    const { post } = await holding(t, { retryAfter })
    const { status, headers } = await post('held')
    t.same([status, headers['retry-after']], [409, seconds], String(retryAfter))
  }
})

t.test('durations as text mean what they say', async t => {
  for (const [ttl, ms] of [
    ['1500ms', 1_500], ['90s', 90_000], ['15m', 900_000], ['24h', 86_400_000], ['7d', 604_800_000], [5_000, 5_000]
  ] as const) {
    const { post, app } = await start(t, 'memory', { options: { ttl }, routes: app => app.post('/', async () => 'ok') })
    await post('k')
    const { since, until } = await app.idempotency.inspect({ key: 'k' }) ?? {
      since: new Date(NaN), until: new Date(NaN)
    }
    t.equal(Number(until) - Number(since), ms, String(ttl))
  }
  const { app } = await holding(t, { lease: '2m' })
  const { since, until } = await app.idempotency.inspect({ key: 'held' }) ?? {
    since: new Date(NaN), until: new Date(NaN)
  }
  t.equal(Number(until) - Number(since), 120_000, 'lease')
})

t.test('G8: a duplicate waits for as long as `wait` says in text', async t => {
  const finish = gate()
  const entered = gate()
  const { post } = await start(t, 'memory', {
    routes: app => {
      app.post('/', { config: { idempotency: { inFlight: { wait: '1m' } } } }, async () => {
        entered.open()
        await finish.promise
        return 'ok'
      })
    }
  })
  const first = post('k')
  await entered.promise
  const second = post('k')
  finish.open()
  t.same([(await first).replayed, (await second).replayed, (await second).text], [false, true, 'ok'])
})

for (const mode of MODES) {
  t.test(`G2: with scope: false all callers are one; with 'credentials' they are told apart (${mode})`, async t => {
    const { post } = await start(t, mode, {
      options: { scope: false },
      routes: app => {
        app.post('/', async () => randomUUID())
        app.post('/own', { config: { idempotency: { scope: 'credentials' } } }, async () => randomUUID())
      }
    })
    const as = async (
      path: string, authorization: string
    ) => (await post(path, undefined, { path, headers: { 'idempotency-key': 'k', authorization } })).text
    t.equal(await as('/', 'Bearer ann'), await as('/', 'Bearer bob'))
    t.not(await as('/own', 'Bearer ann'), await as('/own', 'Bearer bob'))
  })

  t.test(`G13: replayHeaders as a list keeps those and no others, in any case, never a date (${mode})`, async t => {
    const { post } = await start(t, mode, {
      routes: app => {
        app.post('/', {
          config: {
            idempotency: { replayHeaders: ['Location', 'content-type', 'set-cookie', 'date', 'content-length'] }
          }
        },
        async (_request, reply) => await reply.headers(
          { location: '/1', 'x-other': '1', 'set-cookie': 'a=1', date: 'never' }
        ).send({ a: 1 }))
      }
    })
    await post('k', '{}')
    const { replayed, text, headers } = await post('k', '{}')
    t.same([replayed, text, headers.location, headers['content-type'], headers['set-cookie'], headers['x-other']],
      [true, '{"a":1}', '/1', 'application/json; charset=utf-8', ['a=1'], undefined])
    t.not(headers.date, 'never')
    t.equal(headers['content-length'], '7')
  })

  t.test(`G9: messages name the configured header, or the idempotency key for a function (${mode})`, async t => {
    const required = { required: true }
    const { post } = await start(t, mode, {
      options: { headerName: 'X-Once' },
      routes: app => {
        app.post('/', { config: { idempotency: { ...required, maxKeyLength: 3 } } }, async () => 'ok')
        const key = (
          request: { headers: Record<string, unknown> }
        ): string | undefined => request.headers['x-event'] as string | undefined
        app.post('/event', { config: { idempotency: { ...required, key } } }, async () => 'ok')
        app.post('/gone', { config: { idempotency: { maxResponseBytes: 0 } } }, async () => 'ok')
      }
    })
    const message = async (path: string, headers: Record<string, string>, body = '{}') => {
      return String((
        await post(undefined, body, { path, headers: { 'content-type': 'application/json', ...headers } })
      ).json().message)
    }
    t.match(await message('/', {}), 'This POST requires the X-Once header. ')
    t.match(await message('/event', {}), 'This POST requires an idempotency key. ')
    t.match(await message('/', { 'x-once': '1234' }), 'The X-Once has 4 characters; at most 3 are allowed.')
    t.match(await message('/', { 'x-once': ' ' }), 'The X-Once must not be empty. ')
    for (const [path, header, name] of [['/', 'x-once', 'X-Once'], ['/event', 'x-event', 'idempotency key']] as const) {
      await post(undefined, '{}', { path, headers: { [header]: name.slice(-3), 'content-type': 'application/json' } })
      t.match(await message(path, {
        [header]: name.slice(-3)
      }, '{"a":1}'), `The ${name} was reused with a different request body. `)
    }
    await post(undefined, '{}', { path: '/gone', headers: { 'x-once': 'g', 'content-type': 'application/json' } })
    t.match(
      await message('/gone', { 'x-once': 'g' }), 'The first request with this X-Once was answered with status 200'
    )
  })
}

t.test('G9: messages about a key that is held or abandoned name the header too', async t => {
  const { post } = await holding(t, { headerName: 'X-Once' }, { key: () => 'held' })
  t.match((await post(undefined)).json().message, 'A request with this idempotency key is still running. Retry later.')
  const named = await holding(
    t, { headerName: 'X-Once' }, { key: request => String(request.headers['idempotency-key']) }
  )
  t.match((await named.post('held')).json().message, 'A request with this idempotency key')
})

t.test('docsUrl: #code is added to text, a function is asked, and what it does wrong is a 500', async t => {
  const typeFor = async (docsUrl: FastifyIdempotencyOptions['docsUrl'], errors: IdempotencyErrorForm = 'problem') => {
    const { post } = await start(t, 'memory', {
      options: { docsUrl, errors, required: true, profile: 'ietf' },
      routes: app => app.post('/', async () => 'ok')
    })
    const { status, headers, json } = await post(undefined)
    return [status, json().type, headers.link]
  }
  const link = '<https://docs.example.com/e#idempotency_key_missing>; rel="describedby"; type="text/html"'
  t.same(await typeFor('https://docs.example.com/e'), [400, 'https://docs.example.com/e#idempotency_key_missing', link])
  t.same(await typeFor(code => `https://docs.example.com/e#${code}`), [
    400, 'https://docs.example.com/e#idempotency_key_missing', link
  ])
  t.same(await typeFor(code => `https://docs.example.com/${code}.html`, 'envelope'), [
    400, 'https://docs.example.com/idempotency_key_missing.html', undefined
  ])
  t.same(await typeFor(code => `/errors/${code}`), [
    400, '/errors/idempotency_key_missing', undefined
  ], 'a relative type has no link')
  t.equal((await typeFor(() => 5 as never))[0], 500)
  t.equal((await typeFor(() => { throw new Error('no docs') }))[0], 500)
})

/** The warnings about cookies, with the routes that they name. */
async function cookieWarnings (
  options: FastifyIdempotencyOptions, build: (app: FastifyInstance) => void
): Promise<string[][]> {
  const found: string[][] = []
  const write = (line: string): void => {
    const { level, msg, routes } = JSON.parse(line) as { level: number, msg: string, routes?: string[] }
    if (level === 40 && msg.includes('a cookie or session plugin is there')) found.push(routes ?? [])
  }
  const app = Fastify({ logger: { stream: { write } } })
  await app.register(idempotency, { store: new MemoryStore(), ...options })
  build(app)
  await app.ready()
  await app.close()
  return found
}

t.test('G2: one warning names the routes whose callers are told apart by cookies alone', async t => {
  const ok = async (): Promise<string> => 'ok'
  const routes = (app: FastifyInstance): void => {
    app.post('/pay', ok)
    app.patch('/pay', ok)
    app.get('/pay', ok)
    app.post('/out', { config: { idempotency: false } }, ok)
    app.post('/own', { config: { idempotency: { scope: request => request.ip } } }, ok)
    app.post('/chosen', { config: { idempotency: { scope: 'credentials' } } }, ok)
    app.post('/one', { config: { idempotency: { scope: false } } }, ok)
  }
  t.same(await cookieWarnings({}, app => {
    app.register(cookie)
    routes(app)
  }), [['POST /pay', 'PATCH /pay']])
  t.same(await cookieWarnings({}, routes), [], 'no cookies, no warning')
  t.same(await cookieWarnings({ scope: 'credentials' }, app => {
    app.register(cookie)
    routes(app)
  }), [])
  t.same(await cookieWarnings({ scope: false }, app => {
    app.register(cookie)
    routes(app)
  }), [])
  const sessions = (app: FastifyInstance): void => {
    app.register(cookie)
    app.register(session, { secret: 'a secret of at least 32 characters' })
    app.post('/pay', ok)
  }
  t.same(await cookieWarnings({}, sessions), [['POST /pay']])
  const passport = fp(
    async (app: FastifyInstance) => { app.decorateRequest('passport', null) }, { name: '@fastify/passport' }
  )
  t.same(await cookieWarnings({}, app => {
    app.register(passport)
    app.post('/pay', ok)
  }), [['POST /pay']])
  t.same(await cookieWarnings({}, app => {
    app.register(async child => {
      child.register(cookie)
      child.post('/web', ok)
    })
    app.register(async child => { child.post('/api', ok) })
  }), [['POST /web']], 'only where the plugin is')
})
