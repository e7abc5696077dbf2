import { once } from 'node:events'
import * as http from 'node:http'
import type { Socket } from 'node:net'
import { PassThrough, Readable } from 'node:stream'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import { gate, headersOf, MODES, start, stopRedis, STORES, until } from './fixtures/app.ts'
import { cutting, head, stateOf } from './fixtures/cut.ts'
import { gunzipped } from './fixtures/gunzip.ts'
import { storeOf } from './fixtures/store-of.ts'

t.teardown(stopRedis)

for (const mode of MODES) {
  t.test(`G7: a client that hangs up does not lose the result (${mode})`, async t => {
    let runs = 0
    const entered = new Map<string, () => void>()
    const gone = new Map<string, Promise<unknown>>()
    const wait = async (path: string, raw: http.ServerResponse): Promise<void> => {
      runs++
      const closed = once(raw, 'close')
      entered.get(path)?.()
      await closed
      await new Promise(resolve => setImmediate(resolve))
    }
    const served = await start(t, mode, {
      routes: app => {
        app.post('/value', async (_request, reply) => {
          await wait('/value', reply.raw)
          return { runs }
        })
        app.post('/undefined', async (_request, reply) => {
          reply.code(204).header('x-mark', 'yes')
          await wait('/undefined', reply.raw)
        })
        app.post(
          '/callback', (_request, reply) => { wait('/callback', reply.raw).then(() => reply.send({ runs }), () => {}) }
        )
        app.post('/delegated', async (_request, reply) => {
          wait('/delegated', reply.raw).then(() => reply.send({ runs }), () => {})
          return await reply
        })
        app.post('/stream', async (_request, reply) => {
          await wait('/stream', reply.raw)
          return await reply.send(Readable.from(['a', 'b']))
        })
        app.post('/throws', async (_request, reply) => {
          await wait('/throws', reply.raw)
          throw new Error('late')
        })
        app.post('/undefined-fails', async (_request, reply) => {
          reply.code(503)
          await wait('/undefined-fails', reply.raw)
        })
      }
    })
    const { port, post } = served
    for (const path of ['/value', '/undefined', '/callback', '/delegated', '/stream', '/throws', '/undefined-fails']) {
      const started = gate()
      entered.set(path, started.open)
      const before = runs
      const socket = await cutting(
        port, head(path, path, 'Content-Length: 2\r\nContent-Type: application/json\r\n') + '{}'
      )
      await started.promise
      t.equal((await post(path, '{}', { path })).json().code, 'idempotency_in_progress', `${path} still runs`)
      socket.destroy()
      gone.set(path, once(socket, 'close'))
      await until(async () => await stateOf(served, path) !== 'held', `the end of ${path}`)
      const free = path === '/throws' || path === '/undefined-fails'
      // A retry of a key that is free would wait for its client to leave.
      if (!t.equal(await stateOf(served, path), free ? 'freed' : 'completed', path) || free) continue
      const retry = await post(path, '{}', { path })
      t.equal(retry.replayed, true, path)
      if (path === '/undefined') {
        t.same(
          [retry.status, retry.text, retry.headers['x-mark'], retry.headers['content-type']],
          [204, '', 'yes', undefined]
        )
      }
      t.equal(runs, before + 1)
    }
  })

  t.test(`G7: a client that leaves in the middle of a stream does not lose the result (${mode})`, async t => {
    // In object mode chunks are not merged: the first leaves when the second has come.
    const chunks = (): PassThrough => new PassThrough({ objectMode: true, highWaterMark: 100 })
    let source = chunks()
    const served = await start(
      t, mode, { routes: app => app.post('/', async (_request, reply) => await reply.send(source)) }
    )
    const begin = async (key: string): Promise<Socket> => {
      const socket = await cutting(served.port, head('/', key))
      source.write('first')
      source.write('second')
      await once(socket, 'data')
      return socket
    }
    const socket = await begin('k')
    const closed = once(socket, 'close')
    socket.destroy()
    await closed
    for (let i = 0; i < 20; i++) source.write('x'.repeat(5_000))
    source.end('end')
    await until(async () => await stateOf(served, 'k') === 'completed', 'the end of the stream')
    const retry = await served.post('k')
    t.equal(retry.text, 'firstsecond' + 'x'.repeat(100_000) + 'end')

    // A stream that breaks keeps nothing, and its client can tell.
    source = chunks()
    const broken = await begin('broken')
    let rest = ''
    broken.on('data', chunk => { rest += String(chunk) })
    const cut = once(broken, 'close')
    source.destroy(new Error('breaks'))
    await cut
    t.notMatch(rest, /0\r\n\r\n$/)
    await until(async () => await stateOf(served, 'broken') === 'freed', 'the key is free')
  })

  t.test(`G8: an upload that is cut off is no outcome (${mode})`, async t => {
    let runs = 0
    const served = await start(t, mode, {
      fastify: { bodyLimit: 1_000 },
      before: app => {
        app.addContentTypeParser('text/late', (_request, payload, done) => {
          setTimeout(() => {
            let n = 0; payload.on(
              'data', (chunk: Buffer) => { n += chunk.length }
            ).on('end', () => done(null, n)).on('error', done)
          }, 10)
        })
      },
      routes: app => {
        app.post('/', async request => ({ runs: ++runs, body: request.body }))
        app.post('/validated', { schema: { body: { type: 'object', required: ['a'] } } }, async () => 'ok')
      }
    })
    const { port, post } = served
    for (const type of ['application/json', 'text/late']) {
      const socket = await cutting(
        port, head('/', type, `Content-Length: 100\r\nContent-Type: ${type}\r\n`) + '{"half":'
      )
      await until(async () => await stateOf(served, type) === 'held', 'the claim')
      socket.destroy()
      await until(async () => await stateOf(served, type) === 'freed', 'the key is free')
    }
    t.equal(runs, 0)
    const whole = await post('application/json', '{"half":1}')
    t.equal(whole.json().runs, 1)
    t.equal(whole.replayed, false)

    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
    const large = { agent, headers: { ...headersOf({ key: 'large', body: '' }), 'transfer-encoding': 'chunked' } }
    t.equal((await post('large', ['x'.repeat(600), 'y'.repeat(600)], large)).status, 413)
    t.equal((await post('large', '{}')).status, 200, 'a 413 is no outcome')
    t.equal((await post('l2', 'x'.repeat(2_000), { agent })).status, 413)
    t.equal((await post('l2', '{}', { agent })).status, 200)
    agent.destroy()

    for (const [path, body] of [['/', '{"not json'], ['/validated', '{"b":1}']] as const) {
      const bad = await post(`bad${path}`, body, { path })
      t.equal(bad.status, 400)
      const again = await post(`bad${path}`, body, { path })
      t.same(
        [again.status, again.text, again.replayed], [400, bad.text, true], 'a whole body that is refused is an outcome'
      )
    }

    /** Once the claim of what has been asked is answered, and what was sent then would be here. */
    const dealtWith = async (asked: Promise<unknown>): Promise<void> => {
      await asked
      await stateOf(served, 'application/json')
      await served.call({ method: 'GET', path: '/none' })
    }

    // A replay is not sent to half a body.
    let asked = once(served.app.server, 'request')
    const socket = await cutting(
      port, head('/', 'application/json', 'Content-Length: 10\r\nContent-Type: application/json\r\n') + '{"half":'
    )
    let seen = ''
    socket.on('data', chunk => { seen += String(chunk) })
    await dealtWith(asked)
    t.equal(seen, '')
    socket.write('1}')
    await once(socket, 'data')
    t.match(seen, /idempotent-replayed: true/)
    socket.destroy()

    // Nor does it matter if the rest never comes.
    asked = once(served.app.server, 'request')
    const half = await cutting(
      port, head('/', 'application/json', 'Content-Length: 10\r\nContent-Type: application/json\r\n') + '{"half":'
    )
    await dealtWith(asked)
    half.destroy()
    t.equal((await post('application/json', '{"half":1}')).replayed, true)
    t.equal(runs, 3)
  })
}

for (const mode of STORES) {
  t.test(`G1: a replay never lets the handler run, though onSend is slow and the client leaves (${mode})`, async t => {
    let runs = 0
    let slow = false
    let [inSend, left] = [gate(), gate()]
    const { port, post, call } = await start(t, mode, {
      before: app => {
        app.addHook('onSend', async (_request, reply, payload) => {
          if (slow) {
            const closed = once(reply.raw, 'close')
            inSend.open()
            await closed
            left.open()
          }
          return payload
        })
      },
      routes: app => {
        app.post('/', async () => ({ runs: ++runs }))
        app.post('/late', { config: { idempotency: { hook: 'preHandler' } } }, async () => ({ runs: ++runs }))
      }
    })
    for (const path of ['/', '/late']) {
      await post(path, undefined, { path })
      const before = runs
      slow = true
      ;[inSend, left] = [gate(), gate()]
      const socket = await cutting(port, head(path, path))
      await inSend.promise
      socket.destroy()
      await left.promise
      slow = false
      // A handler that ran would have begun before another request is answered.
      await call({ method: 'GET', path: '/none' })
      t.equal(runs, before)
    }
  })

  t.test(`G6: a client that leaves while the key is being claimed leaves nothing behind (${mode})`, async t => {
    const { store: real } = await storeOf(t, mode)
    const claiming = gate()
    const answer = gate()
    let runs = 0
    const { port, app } = await start(t, mode, {
      options: {
        store: {
          claim: async (key, request) => {
            claiming.open()
            await answer.promise
            return await real.claim(key, request)
          },
          renew: (...args) => real.renew(...args),
          complete: (...args) => real.complete(...args),
          release: (...args) => real.release(...args),
          read: key => real.read(key),
          remove: key => real.remove(key)
        }
      },
      routes: app => app.post('/', async () => {
        runs++
        return 'ran'
      })
    })
    const asked = once(app.server, 'request')
    const socket = await cutting(port, head('/', 'k'))
    const [, response] = await asked as [unknown, http.ServerResponse]
    const left = once(response, 'close')
    await claiming.promise
    socket.destroy()
    await left
    answer.open()
    await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'freed', 'the key is free')
    t.equal(runs, 0)
  })
}

t.test('G8: a streamed response to an upload that is cut off meanwhile is not kept', async t => {
  let runs = 0
  const { app, port, post } = await start(t, 'memory', {
    before: app => { app.addContentTypeParser('text/lazy', (_request, _payload, done) => done(null)) },
    routes: app => app.post('/', async () => {
      runs++
      return Readable.from(['several', 'chunks'])
    })
  })
  const headers = { 'content-type': 'text/lazy', 'idempotency-key': 'cut' }
  const socket = await cutting(port, head('/', 'cut', 'Content-Type: text/lazy\r\nContent-Length: 9\r\n') + 'half')
  await once(socket, 'data')
  socket.destroy()
  await until(async () => (await app.idempotency.inspect({ key: 'cut' }))?.state === 'freed', 'the key is free')
  t.same([(await post('cut', 'half more', { headers })).text, runs], ['severalchunks', 2])
  t.equal((await post('cut', 'half more', { headers })).replayed, true)
})

for (const mode of MODES) {
  t.test(`G6, G14: an endless response whose client has left ends at maxResponseBytes (${mode})`, async t => {
    // In object mode chunks are not merged: the first leaves when the second has come.
    const source = new PassThrough({ objectMode: true })
    const served = await start(t, mode, {
      options: { maxResponseBytes: 1_000 },
      routes: app => app.post('/', async (_request, reply) => await reply.send(source))
    })
    const socket = await cutting(served.port, head('/', 'k'))
    source.write('x'.repeat(600))
    source.write('x'.repeat(600))
    await once(socket, 'data')
    socket.destroy()
    await until(() => {
      if (!source.destroyed) source.write('x')
      return source.destroyed
    }, 'the end of the source')
    await until(async () => await stateOf(served, 'k') === 'completed', 'the key is done')
    t.match((await served.post('k')).json(), { code: 'idempotency_response_unavailable' })
  })
}

t.test('G6: an upload cut off behind a decoding instance hook frees the key of a route declared first', async t => {
  const entered = new Map(['/early', '/late'].map(path => [path, gate()]))
  const served = await start(t, 'memory, routes declared first', {
    before: app => {
      app.addHook('preParsing', gunzipped)
      app.addContentTypeParser('text/stream', (_request, payload, done) => done(null, payload))
    },
    routes: app => {
      app.post('/early', async () => {
        entered.get('/early')?.open()
        return 'early'
      })
      app.post('/late', async (_request, reply) => {
        const closed = once(reply.raw, 'close')
        entered.get('/late')?.open()
        await closed
        return 'late'
      })
    }
  })
  for (const [path, { promise }] of entered) {
    const socket = await cutting(served.port, head(path, path, 'Content-Type: text/stream\r\nContent-Length: 1000\r\n'))
    socket.write(gzipSync('x'.repeat(10_000)).subarray(0, 20))
    await promise
    await new Promise(resolve => setImmediate(resolve))
    socket.destroy()
    await until(async () => await stateOf(served, path) === 'freed', `the key of ${path}`)
  }
})
