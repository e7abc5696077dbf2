import { Readable } from 'node:stream'
import { gunzipSync } from 'node:zlib'
import compress from '@fastify/compress'
import cookie from '@fastify/cookie'
import cors from '@fastify/cors'
import etag from '@fastify/etag'
import helmet from '@fastify/helmet'
import rateLimit from '@fastify/rate-limit'
import type { FastifyInstance, FastifyReply } from 'fastify'
import t from 'tap'
import { headersOf, lines, MODES, start, stopRedis, STORES, type Answer } from '../fixtures/app.ts'

/**
 * Every kind of payload, behind the plugins that change payloads and headers: what a client reads is the same again.
 */

t.teardown(stopRedis)

const LONG = 'payload é '.repeat(200)
const PAYLOADS: Record<string, (reply: FastifyReply) => unknown> = {
  json: reply => reply.send({ text: LONG }),
  text: reply => reply.send(LONG),
  html: reply => reply.type('text/html').send(`<p>${LONG}</p>`),
  bytes: reply => reply.type('application/json').send(Buffer.from(JSON.stringify(LONG))),
  incompressible: reply => reply.type('image/png').send(Buffer.from(LONG)),
  typed: reply => reply.type('text/plain').send(new Uint16Array([1, 2, 65_535])),
  stream: reply => reply.type('text/plain').send(Readable.from([LONG, LONG])),
  'stream-empty': reply => reply.type('text/plain').send(Readable.from([])),
  web: reply => reply.type('text/plain').send(new Response(LONG).body),
  response: reply => reply.send(
    new Response(LONG, { status: 202, headers: { 'content-type': 'text/plain', 'x-own': 'yes' } })
  ),
  empty: reply => reply.send(),
  'empty-text': reply => reply.send(''),
  204: reply => reply.code(204).send(),
  304: reply => reply.code(304).send(),
  redirect: reply => reply.redirect('/elsewhere', 303),
  own: reply => reply.header('etag', '"own"').header('vary', 'x-own').type('text/plain').send(LONG),
  error: () => { throw Object.assign(new Error(LONG), { statusCode: 422 }) },
  refused: reply => reply.code(409).send({ error: LONG })
}

async function neighbours (app: FastifyInstance): Promise<void> {
  await app.register(compress, { threshold: 0, encodings: ['gzip', 'identity'] })
  await app.register(etag)
  await app.register(cors, { origin: true })
  await app.register(helmet)
  await app.register(cookie)
  await app.register(rateLimit, { max: 10_000 })
}

const LIVE = ['x-ratelimit-remaining', 'x-ratelimit-reset', 'set-cookie']
/**
 * A stream is replayed as bytes: @fastify/etag, which leaves streams alone, tags those, and @fastify/compress, which
 * encodes even a stream of nothing, leaves nothing as it is. Both are true of what the client reads.
 */
const OF_STREAMS: Record<string, string[]> = {
  stream: ['etag'], 'stream-empty': ['etag', 'content-encoding', 'vary'], web: ['etag'], response: ['etag']
}
const decoded = (
  { headers, body }: Answer
): string => (headers['content-encoding'] === 'gzip' ? gunzipSync(body) : body).toString('latin1')

for (const mode of MODES) {
  for (const order of ['before', 'after'] as const) {
    t.test(`G13: each payload behind compress, etag, helmet and others, ${order} the plugin (${mode})`, async t => {
      const runs: Record<string, number> = {}
      const early = mode.endsWith('first')
      const { post } = await start(t, mode, {
        before: async app => { if (order === 'before') await neighbours(app) },
        routes: async app => {
          // Declared earlier: nothing may be waited for in between.
          if (order === 'after' && !early) await neighbours(app)
          if (order === 'after' && early) app.register(async app => await neighbours(app))
          for (const [name, send] of Object.entries(PAYLOADS)) {
            app.post(`/${name}`, (_request, reply) => {
              runs[name] = (runs[name] ?? 0) + 1
              if (order === 'before' || !early) reply.setCookie('session', 'secret')
              return send(reply)
            })
          }
        }
      })
      const as = async (name: string, encoding: string): Promise<Answer> => await post(name, '{}', {
        path: `/${name}`,
        headers: { ...headersOf({ key: name, body: '' }), origin: 'https://a.example', 'accept-encoding': encoding }
      })
      for (const name of Object.keys(PAYLOADS)) {
        for (const encoding of ['gzip', 'identity']) {
          const first = await as(name, encoding)
          const retry = await as(name, encoding)
          t.equal(retry.replayed, true, `${name}, ${encoding}`)
          t.equal(retry.status, first.status, `${name}, ${encoding}: status`)
          t.equal(decoded(retry), decoded(first), `${name}, ${encoding}: bytes`)
          const apart = [...LIVE, ...OF_STREAMS[name] ?? []]
          t.same(lines(retry, ...apart), lines(first, ...apart), `${name}, ${encoding}: the header`)
        }
        t.equal(runs[name], 1, name)
      }
    })
  }
}

for (const mode of STORES) {
  for (const order of ['before', 'after'] as const) {
    t.test(`G13: live headers stay live behind them, registered ${order} the plugin (${mode})`, async t => {
      let runs = 0
      const { post } = await start(t, mode, {
        before: async app => { if (order === 'before') await neighbours(app) },
        routes: async app => {
          if (order === 'after') await neighbours(app)
          app.post('/', async (_request, reply) => {
            runs++
            return await reply.setCookie('session', 'secret').send({ text: 'x'.repeat(1_000) })
          })
        }
      })
      const as = async (origin: string, encoding: string) => await post(
        'k', '{}', { headers: { ...headersOf({ key: 'k', body: '' }), origin, 'accept-encoding': encoding } }
      )
      const first = await as('https://a.example', 'gzip')
      const retry = await as('https://a.example', 'gzip')
      t.equal(retry.replayed, true)
      t.same(lines(retry, ...LIVE), lines(first, ...LIVE))
      t.ok(gunzipSync(retry.body).equals(gunzipSync(first.body)))
      t.equal(first.headers['set-cookie']?.length, 1)
      t.equal(retry.headers['set-cookie'], undefined)
      t.equal(Number(retry.headers['x-ratelimit-remaining']), Number(
        first.headers['x-ratelimit-remaining']
      ) - 1, 'rate limits are live, and replays count')
      const other = await as('https://b.example', 'identity')
      t.equal(other.headers['access-control-allow-origin'], 'https://b.example')
      t.ok(other.body.equals(gunzipSync(first.body)))
      t.ok(first.headers.etag)
      t.equal(other.headers.etag, first.headers.etag)
      t.equal(runs, 1)
    })
  }
}
