import compress from '@fastify/compress'
import { once } from 'node:events'
import { gunzipSync } from 'node:zlib'
import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { headersOf, lines, MODES, start, storeOptions, stopRedis, STORES, type Mode } from './fixtures/app.ts'
import { startHttp2 } from './fixtures/http2.ts'

/**
 * What hooks of the application's own do to replays: one that fails does not keep the kept response from its client.
 */

t.teardown(stopRedis)

type Hook = (request: FastifyRequest, reply: FastifyReply, payload: unknown) => unknown

/** Ways in which an onSend hook can fail that was made for what the handler returns. */
const FAILING: Record<string, Hook> = {
  'reads the payload as the handler made it': (_request, _reply, payload) => JSON.parse(
    JSON.parse(String(payload)).text as string
  ),
  'throws an Error': () => { throw new Error('on purpose') },
  'throws what is no Error': () => { throw 'on purpose' }, // eslint-disable-line no-throw-literal
  'rejects with a status of a failure': async () => {
    throw Object.assign(new Error('on purpose'), { statusCode: 503 })
  },
  'gives what cannot be sent': () => 5
}

const PAYLOADS: Record<string, (reply: FastifyReply) => unknown> = {
  text: reply => reply.type('text/x').send('{"text":"once"}'),
  bytes: reply => reply.send(Buffer.from([0, 255, 13, 10])),
  'much text': reply => reply.send('é'.repeat(10_000)),
  stream: reply => reply.send(Readable.from(['a', 'b'])),
  nothing: reply => reply.send(),
  204: reply => reply.code(204).send(),
  304: reply => reply.code(304).header('etag', '"a"').send(),
  'several lines': reply => reply.header('x-two', ['a', 'b']).header('link', '</a>').send('two'),
  'a latin-1 header': reply => reply.header('x-l', 'caf\u00e9').send('text'),
  'its own encoding': reply => reply.header('content-encoding', 'x-own').send('encoded')
}

const pathOf = (name: string): string => `/${name.replaceAll(' ', '-')}`

interface State { failing: Hook | undefined }

function routes (app: FastifyInstance, where: 'before' | 'after', state: State): void {
  const hook = async (
    request: FastifyRequest, reply: FastifyReply, payload: unknown
  ): Promise<unknown> => await (state.failing?.(request, reply, payload) ?? payload)
  const own = where === 'before' ? { onSend: hook } : {}
  if (where === 'after') app.addHook('onRoute', route => { route.onSend = [route.onSend ?? []].flat().concat(hook) })
  for (const [name, send] of Object.entries(PAYLOADS)) app.post(pathOf(name), own, (_request, reply) => { send(reply) })
}

/** The log's lines at level error. */
function errorLog (): { logger: object, errors: Array<{ msg: string, idempotencyId?: string }> } {
  const errors: Array<{ msg: string }> = []
  return {
    logger: {
      level: 'error', stream: { write: (line: string) => { errors.push(JSON.parse(line) as { msg: string }) } }
    },
    errors
  }
}

for (const mode of MODES) {
  for (const where of ['before', 'after'] as const) {
    t.test(`G10, G13: a hook that fails ${where} the plugin's leaves a replay as it was kept (${mode})`, async t => {
      const { logger, errors } = errorLog()
      const state: State = { failing: undefined }
      const { post } = await start(t, mode, { fastify: { logger }, routes: app => routes(app, where, state) })
      for (const name of Object.keys(PAYLOADS)) {
        const path = pathOf(name)
        state.failing = undefined
        const first = await post(name, '{}', { path })
        t.match(first, { replayed: false }, name)
        for (const [how, failing] of Object.entries(FAILING)) {
          state.failing = failing
          errors.length = 0
          const retry = await post(name, '{}', { path })
          t.match(retry, { status: first.status, text: first.text, replayed: true }, `${name}, ${how}`)
          t.same(lines(retry), lines(first), `${name}, ${how}: the header`)
          // What a hook before the plugin's gives does not matter, nor what a 204 would have had.
          const passes = how === 'gives what cannot be sent' && (
            name === '204' || (where === 'before' && !mode.endsWith('first'))
          )
          const told = errors.filter(({ msg }) => msg.startsWith('idempotency: an onSend hook has failed'))
          t.equal(told.length, passes ? 0 : 1, `${name}, ${how}: the log`)
        }
      }
    })
  }

  t.test(`G13: what a hook changed in the handler's payload is not changed again on a replay (${mode})`, async t => {
    let seen: unknown[] = []
    const { post } = await start(t, mode, {
      before: app => {
        app.addHook('onSend', async (_request, _reply, payload) => {
          seen.push(payload)
          return JSON.stringify({ wrapped: (JSON.parse(String(payload)) as { a: number }).a.toFixed(1) })
        })
      },
      routes: app => app.post('/', async () => ({ a: 1 }))
    })
    const first = await post('k', '{}')
    t.equal(first.text, '{"wrapped":"1.0"}')
    t.match(await post('k', '{}'), { status: 200, text: first.text, replayed: true })
    t.same(seen.length, 2)
    seen = []
  })

  t.test(`G10: a hook that refuses a replay on purpose is obeyed (${mode})`, async t => {
    let refuses = false
    for (const where of ['before', 'after'] as const) {
      const { post } = await start(t, mode, {
        routes: app => {
          const hook = async (): Promise<void> => {
            if (refuses) throw Object.assign(new Error('not you'), { statusCode: 403 })
          }
          if (where === 'after') {
            app.addHook('onRoute', route => { route.onSend = [route.onSend ?? []].flat().concat(hook) })
          }
          app.post(
            '/', where === 'before' ? { onSend: hook } : {},
            async (_request, reply) => await reply.code(201).header('x-kept', 'yes').send('secret')
          )
        }
      })
      refuses = false
      t.match(await post('k', '{}'), { status: 201 })
      refuses = true
      const refused = await post('k', '{}')
      t.match(refused, { status: 403, headers: { 'x-kept': undefined, 'idempotent-replayed': undefined } }, where)
      t.notMatch(refused.text, 'secret', where)
      refuses = false
      t.match(await post('k', '{}'), { status: 201, text: 'secret', replayed: true }, where)
    }
  })

  t.test(`G10: a hook that begins a replay itself, and then fails, cuts it off; the key is kept (${mode})`, async t => {
    let failing = false
    const { post } = await start(t, mode, {
      before: app => app.addHook('onSend', async (_request, reply, payload) => {
        if (!failing) return payload
        reply.raw.writeHead(200)
        throw new Error('on purpose')
      }),
      routes: app => app.post('/', async () => 'kept')
    })
    t.match(await post('k', '{}'), { text: 'kept', replayed: false })
    failing = true
    await t.rejects(post('k', '{}'), { code: 'ECONNRESET' })
    failing = false
    t.match(await post('k', '{}'), { text: 'kept', replayed: true })
  })

  t.test(`G13: headers of a payload that a hook replaced do not stay when a later hook fails (${mode})`, async t => {
    let fails = false
    const { post } = await start(t, mode, {
      before: async app => { if (mode.endsWith('first')) await app.register(compress, { threshold: 0 }) },
      routes: async app => {
        if (!mode.endsWith('first')) await app.register(compress, { threshold: 0 })
        app.addHook('onRoute', route => {
          route.onSend = [route.onSend ?? []].flat().concat(async (
            _request: unknown, reply: FastifyReply, payload: unknown
          ) => {
            if (!fails) return payload
            reply.header('content-range', 'bytes 0-1/2').header('x-broken', 'a\nb')
            throw new Error('on purpose')
          })
        })
        app.post('/', async (_request, reply) => await reply.header('content-type', 'application/json').send('{"a":1}'))
      }
    })
    const headers = { ...headersOf({ key: 'k', body: '' }), 'accept-encoding': 'gzip' }
    const first = await post('k', '{}', { headers })
    t.equal(first.headers['content-encoding'] === 'gzip' ? String(gunzipSync(first.body)) : first.text, '{"a":1}')
    fails = true
    const retry = await post('k', '{}', { headers })
    t.match(retry, {
      status: 200,
      text: '{"a":1}',
      replayed: true,
      headers: {
        'content-encoding': undefined, 'content-range': undefined, 'x-broken': undefined
      }
    })
  })
}

for (const mode of STORES) {
  t.test(`G10, G13: over HTTP/2, a hook that fails on a replay leaves it as it was kept (${mode})`, async t => {
    await http2Test(t, mode)
  })
}

async function http2Test (t: Test, mode: Mode): Promise<void> {
  const state: State = { failing: undefined }
  const { post } = await startHttp2(t, await storeOptions(mode), app => routes(app, 'after', state))
  for (const name of Object.keys(PAYLOADS)) {
    const path = pathOf(name)
    state.failing = undefined
    const first = await post(name, path)
    for (const [how, failing] of Object.entries(FAILING)) {
      state.failing = failing
      t.same(await post(name, path), { ...first, replayed: true }, `${name}, ${how}`)
    }
  }
}

for (const mode of MODES) {
  t.test(`G4, G8: a failure that an error handler makes a success is kept for its body (${mode})`, async t => {
    let runs = 0
    const { call } = await start(t, mode, {
      before: app => {
        app.addContentTypeParser('text/lazy', (_request, payload, done) => { done(null, payload) })
        app.setErrorHandler((_error, _request, reply) => { reply.code(200).send('handled') })
      },
      routes: app => {
        let uploaded: Promise<unknown>
        // Behind the plugin's own, as another plugin would add it.
        app.addHook('onRoute', route => {
          route.onSend = [route.onSend ?? []].flat().concat(async (_request, reply) => {
            if (reply.statusCode !== 503) return
            await uploaded
            throw new Error('hook')
          })
        })
        app.post('/', async (request, reply) => {
          runs++
          uploaded = once(request.raw, 'end')
          return await reply.code(503).send('busy')
        })
      }
    })
    const headers = { 'content-type': 'text/lazy', 'idempotency-key': 'k' }
    const chunks = Array<string>(10).fill('x'.repeat(65_536))
    t.match(await call({ body: chunks, headers }), { status: 200, text: 'handled', replayed: false })
    t.match(await call({ body: [...chunks, 'y'], headers }), { status: 409, text: /idempotency_key_mismatch/ })
    t.match(await call({ body: chunks, headers }), { status: 200, text: 'handled', replayed: true })
    t.equal(runs, 1)
  })
}
