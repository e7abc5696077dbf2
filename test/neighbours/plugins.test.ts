import { readFileSync, writeFileSync } from 'node:fs'
import auth from '@fastify/auth'
import compress from '@fastify/compress'
import otel from '@fastify/otel'
import rateLimit from '@fastify/rate-limit'
import redis from '@fastify/redis'
import Fastify, { type FastifyInstance } from 'fastify'
import t from 'tap'
import idempotency, { MemoryStore, type FastifyIdempotencyOptions } from '../../lib/index.ts'
import { redisServer, start, stopRedis, STORES, type Mode } from '../fixtures/app.ts'
import { beyond } from './fixtures/beyond.ts'
import { bodies } from './fixtures/bodies.ts'
import { identity } from './fixtures/identity.ts'
import { ORDERS, table } from './fixtures/neighbour.ts'
import { responses } from './fixtures/responses.ts'
import { traffic } from './fixtures/traffic.ts'

t.teardown(stopRedis)

const neighbours = [...responses, ...identity, ...bodies, ...traffic, ...beyond]

/** Takes the warnings of this plugin out of a log. */
function listen (): { logger: object, warnings: Array<{ msg: string, routes?: string[] }> } {
  const warnings: Array<{ msg: string, routes?: string[] }> = []
  const write = (line: string): void => {
    const entry = JSON.parse(line) as { level: number, msg: string }
    if (entry.level === 40 && entry.msg.startsWith('idempotency: ')) warnings.push(entry)
  }
  return { logger: { level: 'warn', stream: { write } }, warnings }
}

const proven = new Set(neighbours)

for (const neighbour of neighbours) {
  const { plugin, proves, stores = [STORES[0] as Mode], orders = ORDERS, scenes } = neighbour
  for (const mode of stores) {
    for (const order of orders) {
      t.test(`${proves}: ${plugin}, registered ${order} the plugin (${mode})`, async t => {
        for (const scene of scenes) {
          const { options = {}, register, routes, check } = await scene(t)
          const { logger, warnings } = listen()
          const app = await start(t, mode, {
            options,
            fastify: { logger },
            before: async app => { if (order === 'before') await register(app) },
            routes: async app => {
              if (order === 'after') await register(app)
              await routes(app)
            }
          })
          await check(t, app)
          t.same(warnings, [])
        }
        if (!t.passing()) proven.delete(neighbour)
      })
    }
  }
}

/** The start-up warnings of an app that is built by `build`, with the routes that they name. */
async function warningsOf (
  build: (app: FastifyInstance, register: (options?: FastifyIdempotencyOptions) => Promise<void>) => Promise<void>
): Promise<Array<[string, string[] | undefined]>> {
  const { logger, warnings } = listen()
  const app = Fastify({ logger })
  await build(app, async (options = {}) => { await app.register(idempotency, options) })
  await app.ready()
  await app.close()
  return warnings.map(({ msg, routes }) => [msg, routes])
}

const handler = async (): Promise<string> => 'ok'
const onSend = async (_request: unknown, _reply: unknown, payload: unknown): Promise<unknown> => payload

t.test('G12: a start-up warning tells once of @fastify/auth in a later stage than the replay', async t => {
  const late = async (app: FastifyInstance): Promise<void> => {
    await app.register(auth)
    for (const url of ['/a', '/b']) app.post(url, { preHandler: app.auth([handler]) }, handler)
    app.post('/early', { onRequest: app.auth([handler]) }, handler)
    app.post('/tuned', {
      preValidation: [handler, app.auth([handler])], config: { idempotency: { hook: 'preValidation' } }
    }, handler)
    app.get('/out', { preHandler: app.auth([handler]) }, handler)
  }
  const warnings = await warningsOf(async (app, register) => {
    await register()
    await late(app)
  })
  t.same(warnings.map(([, routes]) => routes), [['POST /a', 'POST /b']])
  t.match(warnings[0]?.[0], /@fastify\/auth checks requests .* set "hook" to that stage/)
  t.same(await warningsOf(async (app, register) => {
    await register({ hook: 'preHandler' })
    await late(app)
  }), [])
})

t.test('G12: a start-up warning tells of hooks that a later plugin has put behind the one that replays', async t => {
  const limited = async (app: FastifyInstance): Promise<void> => {
    await app.register(rateLimit, { hook: 'preHandler' })
  }
  const build = (
    order: 'before' | 'after', hook: NonNullable<FastifyIdempotencyOptions['hook']>
  ) => warningsOf(async (app, register) => {
    if (order === 'before') await limited(app)
    await register({ hook })
    if (order === 'after') await limited(app)
    app.post('/', { preHandler: [handler] }, handler)
  })
  const warnings = await build('after', 'preHandler')
  t.same(warnings.map(([, routes]) => routes), [['POST /']])
  t.match(warnings[0]?.[0], /do not see replays on these routes; register that plugin first/)
  t.same(await build('before', 'preHandler'), [])
  t.same(await build('after', 'onRequest'), [], 'an earlier stage is another matter')
})

t.test('G13: a start-up warning tells of onSend hooks that act on replays after @fastify/compress', async t => {
  const build = (first: unknown[], late: unknown[], hooks: object) => warningsOf(async (app, register) => {
    for (const plugin of first) await app.register(plugin as typeof compress)
    await register()
    for (const plugin of late) await app.register(plugin as typeof compress)
    app.post('/', hooks, handler)
  })
  const traced = (): unknown => new otel.FastifyOtelInstrumentation().plugin()
  const warnings = await build([compress], [], { onSend })
  t.same(warnings.map(([, routes]) => routes), [['POST /']])
  t.match(warnings[0]?.[0], /act on replays once more; register fastify-idempotency before @fastify\/compress/)
  t.same(await build([], [compress], { onSend }), [])
  t.same(await build([compress], [], {}), [])
  t.same(await build([traced(), compress], [], {}), [], 'a hook of @fastify/otel is not the route\'s own')
})

t.test('a start-up warning tells of @fastify/redis that came too late to be used', async t => {
  const { url } = await redisServer()
  const build = (options: FastifyIdempotencyOptions) => warningsOf(async (app, register) => {
    await register(options)
    await app.register(redis, { url })
  })
  const warnings = await build({})
  t.equal(warnings.length, 1)
  t.match(warnings[0]?.[0], /@fastify\/redis was registered after fastify-idempotency.*register @fastify\/redis first/)
  t.same(await build({ store: new MemoryStore() }), [], 'a store that was chosen is not a mistake')
})

t.test('the table in the docs is what these tests have shown', async t => {
  const page = new URL('../../docs/hooks-and-plugins.md', import.meta.url)
  const text = readFileSync(page, 'utf8')
  const [shown = ''] = /(?<=<!-- neighbours -->\n)[^]*?(?=<!-- \/neighbours -->)/.exec(text) ?? []
  const made = `${table([...proven])}\n`
  if (process.env.UPDATE_DOCS === '1') {
    writeFileSync(page, text.replace(`<!-- neighbours -->\n${shown}<!--`, () => `<!-- neighbours -->\n${made}<!--`))
  } else t.same(shown.split('\n'), made.split('\n'), 'UPDATE_DOCS=1 npx tap test/neighbours/plugins.test.ts writes it')
})
