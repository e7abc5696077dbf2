import * as http from 'node:http'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import { MemoryStore } from '../lib/index.ts'
import type { FastifyIdempotencyOptions } from '../lib/index.ts'
import { MODES, start, stopRedis, type Answer, type TestApp } from './fixtures/app.ts'
import { startHttp2 } from './fixtures/http2.ts'

/** What makes two requests the same: the URL as it was sent, and what told the route apart from others. */

t.teardown(stopRedis)

const code = ({ status, text }: Answer): string => `${status} ${/"code":"(\w+)"/.exec(text)?.[1] ?? text}`
const MISMATCH = '409 idempotency_key_mismatch'

async function as (
  { call }: TestApp, key: string, path: string, headers: http.OutgoingHttpHeaders, body = '{}'
): Promise<Answer> {
  return await call(
    { key, path, body, headers: { 'content-type': 'application/json', 'idempotency-key': key, ...headers } }
  )
}

const constrained = (app: FastifyInstance): void => {
  for (const host of ['a.example', 'b.example']) app.post('/host', { constraints: { host } }, async () => host)
  app.post('/wild', { constraints: { host: /^.*\.wild\.example$/ } }, async request => request.host)
  for (const version of ['1.2.0', '2.0.0']) app.post('/version', { constraints: { version } }, async () => version)
}

const FINGERPRINTS: Array<[what: string, options: FastifyIdempotencyOptions]> = [
  ['by default', {}], ['with a function', { fingerprint: () => 'same' }]
]

for (const mode of MODES) {
  for (const [how, options] of FINGERPRINTS) {
    t.test(`G11: what the route's constraints were presented with counts, ${how} (${mode})`, async t => {
      const app = await start(t, mode, { options, routes: constrained })
      t.match(await as(app, 'h', '/host', { host: 'a.example' }), { text: 'a.example', replayed: false })
      t.match(await as(app, 'h', '/host', { host: 'a.example' }), { text: 'a.example', replayed: true })
      t.equal(code(await as(app, 'h', '/host', { host: 'b.example' })), MISMATCH, 'another tenant')
      t.match(await as(app, 'w', '/wild', { host: 'a.wild.example' }), { text: 'a.wild.example', replayed: false })
      t.match(await as(app, 'w', '/wild', { host: 'a.wild.example' }), { replayed: true })
      t.equal(code(await as(app, 'w', '/wild', { host: 'b.wild.example' })), MISMATCH, 'another tenant of one route')
      t.match(await as(app, 'v', '/version', { 'accept-version': '1.2.0' }), { text: '1.2.0', replayed: false })
      t.match(await as(app, 'v', '/version', { 'accept-version': '1.2.0' }), { text: '1.2.0', replayed: true })
      t.equal(code(await as(app, 'v', '/version', { 'accept-version': '2.0.0' })), MISMATCH, 'another version')
      t.equal(code(await as(app, 'v', '/version', {
        'accept-version': '1.x'
      })), MISMATCH, 'the same route, asked for otherwise')
    })

    t.test(`G11: the URL counts as it was sent, before rewriteUrl, ${how} (${mode})`, async t => {
      const rewriteUrl = ({ url = '' }: { url?: string | undefined }): string => url.replace(/^\/tenant-\w+/, '')
      const app = await start(t, mode, {
        options, fastify: { rewriteUrl }, routes: app => app.post('/orders', async request => request.originalUrl)
      })
      t.match(await as(app, 'k', '/tenant-a/orders', {}), { text: '/tenant-a/orders', replayed: false })
      t.match(await as(app, 'k', '/tenant-a/orders', {}), { text: '/tenant-a/orders', replayed: true })
      const other = await as(app, 'k', '/tenant-b/orders', {})
      t.equal(code(other), MISMATCH)
      t.match(other.text, /different URL/)
    })
  }

  t.test(`a fingerprint function replaces query and body, not path and method (${mode})`, async t => {
    const app = await start(t, mode, {
      options: {
        fingerprint: request => (request.body as { id?: string } | undefined)?.id ?? 'none', hook: 'preHandler'
      },
      ...(mode.endsWith('first') ? { options: { fingerprint: () => 'none' } } : {}),
      routes: app => app.route({
        method: ['POST', 'PATCH'], url: '/orders/:id', handler: async request => (request.params as { id: string }).id
      })
    })
    t.match(await as(app, 'k', '/orders/1?a=1', {}), { text: '1', replayed: false })
    t.match(await as(app, 'k', '/orders/1?a=2', {}, '{"b":1}'), { text: '1', replayed: true }, 'another query and body')
    t.equal(code(await as(app, 'k', '/orders/2', {})), MISMATCH, 'another path')
    const patched = await app.call({ method: 'PATCH', key: 'k', path: '/orders/1', body: '{}' })
    t.equal(code(patched), MISMATCH)
    t.match(patched.text, /different method/)
  })

  t.test(`a strategy of the application's own counts by the route's value (${mode})`, async t => {
    const constraint = {
      name: 'region',
      storage () {
        const handlers = new Map<string, unknown>()
        return {
          get: (key: string) => handlers.get(key) ?? null,
          set: (key: string, value: unknown) => {
            handlers.set(key, value)
          }
        }
      },
      validate () {},
      deriveConstraint: (request: http.IncomingMessage) => request.headers['x-region']
    }
    const app = await start(t, mode, {
      fastify: { constraints: { region: constraint } as never },
      routes: app => {
        for (const region of ['eu', 'us']) app.post('/', { constraints: { region } as never }, async () => region)
      }
    })
    if (mode.endsWith('first')) {
      // Nothing tells the plugin which of the two routes it is: it fails aloud rather than replay the other's response.
      const refused = await as(app, 'k', '/', { 'x-region': 'eu' })
      t.equal(refused.status, 500)
      return t.match(refused.text, /POST \/ was declared before the plugin was loaded.*'region'/)
    }
    t.match(await as(app, 'k', '/', { 'x-region': 'eu' }), { text: 'eu', replayed: false })
    t.match(await as(app, 'k', '/', { 'x-region': 'eu' }), { text: 'eu', replayed: true })
    t.equal(code(await as(app, 'k', '/', { 'x-region': 'us' })), MISMATCH)
  })

  t.test(`G11: two credentials make one scope; the same text in either header, two scopes (${mode})`, async t => {
    let runs = 0
    const app = await start(t, mode, { routes: app => app.post('/', async () => `run ${++runs}`) })
    const callers: http.OutgoingHttpHeaders[] = [
      {},
      { authorization: 'gateway' },
      { authorization: 'gateway', 'x-api-key': 'a' },
      { authorization: 'gateway', 'x-api-key': 'b' },
      { authorization: 'other', 'x-api-key': 'a' },
      { 'x-api-key': 'a' },
      { authorization: 'a' },
      { authorization: 'x-api-key:a' },
      { 'x-api-key': 'gateway' }
    ]
    // By the scope that SPEC names, so that an operator finds the key.
    const scopes = [
      undefined, 'gateway', 'gateway\nx-api-key:a', 'gateway\nx-api-key:b', 'other\nx-api-key:a', 'x-api-key:a', 'a',
      'x-api-key:a', 'x-api-key:gateway'
    ]
    const seen = new Map<string | undefined, string>()
    for (const [index, headers] of callers.entries()) {
      const scope = scopes[index]
      const known = seen.get(scope)
      const answer = await as(app, 'k', '/', headers)
      t.equal(answer.replayed, known !== undefined, JSON.stringify(headers))
      if (known !== undefined) t.equal(answer.text, known)
      seen.set(scope, answer.text)
      t.match(await as(app, 'k', '/', headers), { text: answer.text, replayed: true }, JSON.stringify(headers))
      const inspected = await app.app.idempotency.inspect(scope === undefined ? { key: 'k' } : { scope, key: 'k' })
      t.equal(inspected?.state, 'completed', `inspect ${JSON.stringify(scope)}`)
    }
    t.equal(runs, 8)
  })
}

t.test('G11: over HTTP/2, the authority counts as the host of the route', async t => {
  const { post } = await startHttp2(t, { store: new MemoryStore() }, constrained)
  const first = await post('k', '/host', '{}', 'a.example')
  t.same([first.text, first.replayed], ['a.example', false])
  t.equal((await post('k', '/host', '{}', 'a.example')).replayed, true)
  const other = await post('k', '/host', '{}', 'b.example')
  t.same([other.status, /"code":"(\w+)"/.exec(other.text)?.[1]], [409, 'idempotency_key_mismatch'], 'another tenant')
})
