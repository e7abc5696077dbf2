import { once } from 'node:events'
import { PassThrough, Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest, onSendAsyncHookHandler } from 'fastify'
import t from 'tap'
import { gate, MODES, start, stopRedis, until, type Gate } from './fixtures/app.ts'

/** Handlers that reply twice, and Fastify's timeout after a reply: what the client gets is what is kept. */

t.teardown(stopRedis)

interface Turn { reply: FastifyReply, over: Gate }
const SECOND: Record<string, (turn: Turn) => unknown> = {
  'sent again': ({ reply }) => { reply.send('second') },
  'sent again as a failure': ({ reply }) => { reply.send(new Error('second')) },
  'sent again as a stream': ({ reply }) => { reply.send(Readable.from(['second'])) },
  'sent again in a later turn': ({ reply, over }) => {
    setImmediate(() => {
      reply.send('second')
      over.open()
    })
  },
  returned: async () => 'second',
  thrown: async () => { throw new Error('second') },
  'thrown at once': () => { throw new Error('second') }
}
const FIRST: Record<string, () => unknown> = {
  text: () => 'first', bytes: () => Buffer.from('first'), stream: () => Readable.from(['fir', 'st'])
}
const pathOf = (...names: string[]): string => `/${names.join('/').replaceAll(' ', '-')}`

/** An onSend hook, before the plugin's or after it. */
type Hook = (request: FastifyRequest, payload: unknown) => Promise<unknown>
function addOnSend (app: FastifyInstance, hook: Hook): void {
  const onSend: onSendAsyncHookHandler = async (request, _reply, payload) => await hook(request, payload)
  app.addHook('onRoute', route => { route.onSend = [route.onSend ?? []].flat().concat(onSend) })
}

for (const mode of MODES) {
  for (const where of ['before', 'after'] as const) {
    t.test(`G2, G3: the first of two replies is sent and kept, slow hooks ${where} the plugin's (${mode})`, async t => {
      let runs = 0
      let over = gate()
      const slow: Hook = async (request, payload) => {
        if (!request.idempotency.replayed) await over.promise
        return payload
      }
      const { post } = await start(t, mode, {
        before: app => { if (where === 'before') addOnSend(app, slow) },
        routes: app => {
          if (where === 'after') addOnSend(app, slow)
          for (const [first, make] of Object.entries(FIRST)) {
            for (const [second, go] of Object.entries(SECOND)) {
              app.post(pathOf(first, second), (_request, reply) => {
                runs++
                reply.code(201).send(make())
                // By then, whoever had something to say has said it.
                if (!second.includes('later')) setImmediate(() => setImmediate(over.open))
                return go({ reply, over })
              })
            }
          }
        }
      })
      for (const first of Object.keys(FIRST)) {
        for (const second of Object.keys(SECOND)) {
          over = gate()
          runs = 0
          const path = pathOf(first, second)
          t.match(await post(path, '{}', { path }), { status: 201, text: 'first', replayed: false }, path)
          t.match(await post(path, '{}', { path }), { status: 201, text: 'first', replayed: true }, path)
          t.equal(runs, 1, path)
        }
      }
    })
  }

  t.test(`G3: a handler whose reply cannot be serialized may send another, which is kept (${mode})`, async t => {
    const { post } = await start(t, mode, {
      routes: app => app.post('/', async (_request, reply) => {
        const broken = reply.type('text/x').serializer(() => { throw new Error('on purpose') })
        t.throws(() => broken.send('first'), { message: 'on purpose' })
        return await reply.serializer(String).send('second')
      })
    })
    t.match(await post('k', '{}'), { status: 200, text: 'second', replayed: false })
    t.match(await post('k', '{}'), { status: 200, text: 'second', replayed: true })
  })

  t.test(`G1, G3: Fastify's timeout does not overtake a reply that waits in a later hook (${mode})`, async t => {
    let runs = 0
    const { call } = await start(t, mode, {
      routes: app => {
        addOnSend(app, async (request, payload) => {
          if (!request.idempotency.replayed) await once(request.signal, 'abort')
          return payload
        })
        app.post('/', { handlerTimeout: 50 }, async () => {
          runs++
          return 'kept'
        })
      }
    })
    // Without a body: Node.js 20 does not let the timeout come otherwise.
    t.match(await call({ key: 'k' }), { status: 200, text: 'kept', replayed: false })
    t.match(await call({ key: 'k' }), { status: 200, text: 'kept', replayed: true })
    t.equal(runs, 1)
  })

  for (const end of ['ends', 'breaks', 'goes on'] as const) {
    t.test(`G6: a stream that Fastify's timeout has overtaken holds no key; the stream ${end} (${mode})`, async t => {
      const streams: PassThrough[] = []
      const routes = (app: FastifyInstance): unknown => app.post('/', { handlerTimeout: 50 }, async () => {
        const stream = new PassThrough()
        stream.write('a')
        streams.push(stream)
        return stream
      })
      const { app, call } = await start(t, mode, { routes })
      t.teardown(() => { streams[0]?.destroy() })
      t.equal((await call({ key: 'k' })).status, 503)
      if (end === 'ends') streams[0]?.end('b')
      if (end === 'breaks') streams[0]?.destroy(new Error('on purpose'))
      await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'completed', 'its end')
      t.equal((await call({ key: 'k' })).json()['code'], 'idempotency_response_unavailable')
      t.equal(streams.length, 1)
    })
  }
}
