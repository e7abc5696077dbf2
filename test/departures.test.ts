import { once } from 'node:events'
import type * as http from 'node:http'
import * as http2 from 'node:http2'
import type { AddressInfo, Socket } from 'node:net'
import Fastify, { type FastifyReply, type FastifyRequest } from 'fastify'
import t from 'tap'
import idempotency from '../lib/index.ts'
import { gate, MODES, start, stopRedis, storeOptions, STORES, until, type Gate } from './fixtures/app.ts'
import { cutting, head, stateOf } from './fixtures/cut.ts'

/** Clients that leave: before the handler runs, and while something is done past Fastify. */

t.teardown(stopRedis)

const JSON_BODY = 'Content-Type: application/json\r\nContent-Length: 2\r\n'

/** A place where a request waits: until its client has left, and then for the test's word. */
class Stop {
  readonly entered: Gate = gate()
  readonly left: Gate = gate()
  readonly go: Gate = gate()

  async here (raw: http.ServerResponse): Promise<void> {
    const closed = once(raw, 'close')
    this.entered.open()
    await closed
    this.left.open()
    await this.go.promise
  }

  /** Makes the client leave once its request has come here. */
  async cut (socket: Socket): Promise<void> {
    await this.entered.promise
    socket.destroy()
    await this.left.promise
  }
}

for (const mode of MODES) {
  for (const stage of ['preValidation', 'preHandler'] as const) {
    t.test(`G1, G7: a client that leaves during ${stage} loses nothing, and its retry waits (${mode})`, async t => {
      let runs = 0
      const stop = new Stop()
      const served = await start(t, mode, {
        routes: app => app.post('/', {
          [stage]: async (_request: FastifyRequest, reply: FastifyReply) => {
            if (!stop.entered.opened) await stop.here(reply.raw)
          }
        }, async request => ({ runs: ++runs, attempt: request.idempotency?.attempt }))
      })
      await stop.cut(await cutting(served.port, head('/', 'k', JSON_BODY) + '{}'))
      t.match((await served.post('k', '{}')).json(), { code: 'idempotency_in_progress' })
      stop.go.open()
      await until(async () => await stateOf(served, 'k') === 'completed', 'the result')
      const retry = await served.post('k', '{}')
      t.same([retry.replayed, retry.json()], [true, { runs: 1, attempt: 1 }])
    })
  }

  t.test(`G1, G6, G8: an upload that is cut off during a hook frees the key and runs no handler (${mode})`, async t => {
    let runs = 0
    const stop = new Stop()
    const served = await start(t, mode, {
      before: app => { app.addContentTypeParser('text/stream', (_request, payload, done) => done(null, payload)) },
      routes: app => app.post('/', {
        preHandler: async (_request, reply) => { if (!stop.entered.opened) await stop.here(reply.raw) }
      }, async () => ({ runs: ++runs }))
    })
    await stop.cut(
      await cutting(served.port, head('/', 'k', 'Content-Type: text/stream\r\nContent-Length: 100\r\n') + 'half')
    )
    await until(async () => await stateOf(served, 'k') === 'freed', 'the key is free')
    stop.go.open()
    await new Promise(resolve => setImmediate(resolve))
    t.equal(runs, 0)
    const retry = { headers: { 'content-type': 'text/stream', 'idempotency-key': 'k' } }
    t.same((await served.post('k', 'whole', retry)).json(), { runs: 1 })
    t.equal((await served.post('k', 'whole', retry)).replayed, true)
  })

  t.test(`G6: what is done past Fastify for a client that has left ends the key as well (${mode})`, async t => {
    const stops = new Map<string, Stop>()
    const here = async (path: string, { raw }: FastifyReply): Promise<void> => await stops.get(path)?.here(raw)
    const served = await start(t, mode, {
      options: { lease: 300 },
      routes: app => {
        app.post('/hijack', (_request, reply) => {
          here('/hijack', reply).then(() => {
            reply.hijack()
            reply.raw.end('done')
          }, () => {})
        })
        app.post('/raw', (_request, reply) => {
          here('/raw', reply).then(() => { reply.raw.end('done') }, () => {})
        })
        app.post('/in-a-hook', {
          preHandler: async (_request, reply) => {
            await here('/in-a-hook', reply)
            reply.hijack()
          }
        }, async () => 'never')
      }
    })
    for (const path of ['/hijack', '/raw', '/in-a-hook']) {
      const stop = new Stop()
      stops.set(path, stop)
      await stop.cut(await cutting(served.port, head(path, path, JSON_BODY) + '{}'))
      t.equal(await stateOf(served, path), 'held', `${path} still runs`)
      stop.go.open()
      await until(async () => await stateOf(served, path) !== 'held', `the end of ${path}`)
      t.match((await served.post(path, '{}', { path })).json(), { code: 'idempotency_response_unavailable' }, path)
    }
  })

  t.test(`G6: a hook that replies past Fastify has replied (${mode})`, async t => {
    let runs = 0
    const served = await start(t, mode, {
      routes: app => {
        app.post('/', {
          preHandler: (_request, reply) => {
            runs++
            reply.hijack()
            reply.raw.writeHead(201)
            reply.raw.end('made')
          }
        }, async () => 'never')
        app.post('/fails', {
          preHandler: (_request, reply) => {
            runs++
            reply.hijack()
            reply.raw.writeHead(503)
            reply.raw.end('busy')
          }
        }, async () => 'never')
      }
    })
    t.equal((await served.post('k', '{}')).text, 'made')
    await until(async () => await stateOf(served, 'k') !== 'held', 'the end of the reply')
    t.match((await served.post('k', '{}')).json(), { code: 'idempotency_response_unavailable', message: /status 201/ })
    t.equal(runs, 1)
    t.equal((await served.post('f', '{}', { path: '/fails' })).text, 'busy')
    await until(async () => await stateOf(served, 'f') === 'freed', 'the key is free')
  })

  t.test(`keep() and release() count where no hook sees the reply (${mode})`, async t => {
    const stops = new Map<string, Stop>()
    const served = await start(t, mode, {
      routes: app => {
        app.post('/keep', (request, reply) => {
          request.idempotency?.keep()
          reply.hijack()
          reply.raw.writeHead(500)
          reply.raw.end()
        })
        app.post('/release', (request, reply) => {
          request.idempotency?.release()
          reply.hijack()
          reply.raw.end()
        })
        app.post('/keep-empty', async (request, reply) => {
          request.idempotency?.keep()
          reply.code(500)
          await stops.get('/keep-empty')?.here(reply.raw)
        })
        app.post('/release-empty', async (request, reply) => {
          request.idempotency?.release()
          reply.code(204)
          await stops.get('/release-empty')?.here(reply.raw)
        })
      }
    })
    for (const [path, state] of [['/keep', 'completed'], ['/release', 'freed']] as const) {
      await served.post(path, '{}', { path })
      await until(async () => await stateOf(served, path) !== 'held', `the end of ${path}`)
      t.equal(await stateOf(served, path), state)
      const stop = new Stop()
      stops.set(`${path}-empty`, stop)
      await stop.cut(await cutting(served.port, head(`${path}-empty`, `${path}-empty`, JSON_BODY) + '{}'))
      stop.go.open()
      await until(async () => await stateOf(served, `${path}-empty`) !== 'held', `the end of ${path}-empty`)
      t.equal(await stateOf(served, `${path}-empty`), state)
    }
  })

  t.test(`G6: option functions that fail leave nothing behind where no hook sees the reply (${mode})`, async t => {
    const fails = (): never => { throw new Error('a fault in an option') }
    const stop = new Stop()
    const served = await start(t, mode, {
      routes: app => {
        app.post('/cacheable', { config: { idempotency: { cacheable: fails } } }, (_request, reply) => {
          reply.hijack()
          reply.raw.end()
        })
        app.post('/empty', { config: { idempotency: { replayHeaders: fails } } }, async (_request, reply) => {
          reply.code(204).header('x', 'y')
          await stop.here(reply.raw)
        })
      }
    })
    await served.post('c', '{}', { path: '/cacheable' })
    await until(async () => await stateOf(served, 'c') !== 'held', 'the end of /cacheable')
    t.equal(await stateOf(served, 'c'), 'completed', 'what has been answered does not run again')
    await stop.cut(await cutting(served.port, head('/empty', 'empty', JSON_BODY) + '{}'))
    stop.go.open()
    await until(async () => await stateOf(served, 'empty') !== 'held', 'the end of /empty')
    t.equal(await stateOf(served, 'empty'), 'completed')
  })
}

for (const mode of STORES) {
  t.test(`G9: a hijacked handler whose client has left keeps its key, and its own end decides (${mode})`, async t => {
    const stops = new Map<string, Stop>()
    const here = async (path: string, { raw }: FastifyReply): Promise<void> => await stops.get(path)?.here(raw)
    const served = await start(t, mode, {
      routes: app => {
        app.post('/value', async (_request, reply) => {
          reply.hijack()
          await here('/value', reply)
          return 'a value that Fastify does not send'
        })
        app.post('/fails', async (_request, reply) => {
          reply.hijack()
          await here('/fails', reply)
          throw new Error('after the hijack')
        })
        app.post('/status', async (_request, reply) => {
          reply.hijack()
          await here('/status', reply)
          reply.raw.statusCode = 500
          reply.raw.end('failed')
        })
      }
    })
    for (const [path, state] of [['/value', 'completed'], ['/fails', 'completed'], ['/status', 'freed']] as const) {
      const stop = new Stop()
      stops.set(path, stop)
      await stop.cut(await cutting(served.port, head(path, path, JSON_BODY) + '{}'))
      t.match((await served.post(path, '{}', { path })).json(), { code: 'idempotency_in_progress' })
      stop.go.open()
      await until(async () => await stateOf(served, path) !== 'held', `the end of ${path}`)
      t.equal(await stateOf(served, path), state, path)
    }
  })

  t.test(`G1, G7: over HTTP/2, a client that leaves during preHandler does not lose the result (${mode})`, async t => {
    let runs = 0
    const stop = new Stop()
    const app = Fastify({ http2: true })
    await app.register(idempotency, await storeOptions(mode))
    app.post('/', {
      preHandler: async (_request, reply) => {
        if (!stop.entered.opened) await stop.here(reply.raw as unknown as http.ServerResponse)
      }
    }, async () => ({ runs: ++runs }))
    await app.listen({ port: 0, host: '127.0.0.1' })
    const session = http2.connect(`http://127.0.0.1:${(app.server.address() as AddressInfo).port}`)
    t.teardown(async () => {
      session.destroy()
      await app.close()
    })
    const stream = session.request({ ':method': 'POST', ':path': '/', 'idempotency-key': 'k' }, { endStream: true })
    stream.on('error', () => {})
    await stop.entered.promise
    stream.close(http2.constants.NGHTTP2_CANCEL)
    await stop.left.promise
    t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, 'held')
    stop.go.open()
    await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'completed', 'the result')
    t.equal(runs, 1)
  })
}

for (const mode of MODES) {
  t.test(`G7: a client that leaves during the second request of its connection loses no result (${mode})`, async t => {
    const second = new Stop()
    const [began, finish] = [gate(), gate()]
    let runs = 0
    const served = await start(t, mode, {
      routes: app => {
        app.post('/first', async () => {
          await finish.promise
          return 'first'
        })
        app.post('/second', async (_request, reply) => {
          began.open()
          await second.here(reply.raw)
          return `run ${++runs}`
        })
      }
    })
    const both = `${head('/first', 'first', JSON_BODY)}{}${head('/second', 'second', JSON_BODY)}{}`
    const socket = await cutting(served.port, both)
    await began.promise
    // Only now the second response gets the connection.
    finish.open()
    await once(socket, 'data')
    await second.cut(socket)
    second.go.open()
    await until(async () => await stateOf(served, 'second') === 'completed', 'its result')
    const retry = await served.post('second', '{}', { path: '/second' })
    t.same([retry.text, retry.replayed, runs], ['run 1', true, 1])
  })
}
