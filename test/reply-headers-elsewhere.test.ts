/** A Fastify that has a reply's headers under another name than the one which the plugin looks for. */
import { createRequire } from 'node:module'
import t from 'tap'

const symbols = createRequire(import.meta.url)('fastify/lib/symbols.js') as Record<string, symbol>
symbols['kReplyHeaders'] = Symbol('elsewhere')
// Only now, since Fastify reads its symbols once.
const { default: Fastify } = await import('fastify')
const { stopRedis } = await import('./fixtures/app.ts')
const { proveHeaders } = await import('./fixtures/reply-headers.ts')

t.teardown(stopRedis)

t.test('G2: Fastify has the headers elsewhere', async t => {
  const app = Fastify()
  app.get('/', async (_request, reply) => Object.getOwnPropertySymbols(reply).map(String))
  const { body } = await app.inject('/')
  t.match(body, 'Symbol(elsewhere)')
  t.notMatch(body, 'fastify.reply.headers')
})

proveHeaders(t)
