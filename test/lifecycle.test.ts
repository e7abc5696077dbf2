import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import * as http from 'node:http'
import * as http2 from 'node:http2'
import type { AddressInfo, Socket } from 'node:net'
import { PassThrough, Readable } from 'node:stream'
import { createGunzip, gzipSync } from 'node:zlib'
import multipart from '@fastify/multipart'
import Fastify, { type preParsingHookHandler } from 'fastify'
import t, { type Test } from 'tap'
import idempotency, { type IdempotencyStore } from '../lib/index.ts'
import { gate, headersOf, MODES, send, start, stopRedis, storeOptions, STORES, until } from './fixtures/app.ts'
import { cutting, head, stateOf } from './fixtures/cut.ts'

t.teardown(stopRedis)

const gunzipped: preParsingHookHandler = (_request, _reply, payload, done) => {
  const gunzip = Object.assign(createGunzip(), { receivedEncodedLength: 0 })
  payload.on('data', (chunk: Buffer) => { gunzip.receivedEncodedLength += chunk.length }).pipe(gunzip)
  done(null, gunzip)
}

for (const mode of MODES) {
  t.test(`G3: a response is kept before its last byte leaves (${mode})`, async t => {
    const unlock = gate()
    const { store: real } = await completeStore(t, mode)
    let completing = gate()
    const slow: IdempotencyStore = {
      claim: (key, request) => real.claim(key, request),
      renew: (...args) => real.renew(...args),
      complete: async (...args) => { completing.open(); await unlock.promise; return await real.complete(...args) },
      release: (...args) => real.release(...args),
      read: key => real.read(key),
      remove: key => real.remove(key)
    }
    const { port, post } = await start(t, mode, {
      options: { store: slow, storeTimeout: 60_000 },
      routes: app => {
        app.post('/value', async () => ({ id: randomUUID() }))
        app.post('/stream', async (_request, reply) => await reply.send(
          Readable.from(['first', 'second', 'last'], { objectMode: true })
        ))
      }
    })
    for (const path of ['/value', '/stream']) {
      completing = gate()
      let seen = ''
      const socket = await cutting(port, head(path, path))
      socket.on('data', chunk => { seen += String(chunk) })
      await completing.promise
      if (path === '/stream') await until(() => seen.includes('second'), 'what comes before the last byte')
      // What had left by now would come before the answer to another request.
      await post(undefined, undefined, { path: '/value' })
      t.notMatch(seen, path === '/value' ? /./ : /last/)
      socket.destroy()
    }
    unlock.open()
    await until(async () => (
      await post('/stream', undefined, { path: '/stream' })
    ).text === 'firstsecondlast', 'the streamed response')
  })

  t.test(`G6: nothing is left stuck, and nothing that was no outcome is kept (${mode})`, async t => {
    let fail = true
    const { post } = await start(t, mode, {
      before: app => {
        app.addContentTypeParser(
          'text/custom', { parseAs: 'string' }, (_request, _body, done) => { done(new Error('parser')) }
        )
      },
      routes: app => {
        const handler = async () => 'ran'
        const reject = async () => { if (fail) throw Object.assign(new Error('hook'), { statusCode: 418 }) }
        app.post('/throws', async () => { if (fail) throw new Error('handler'); return 'ran' })
        app.post(
          '/throws-sync', (_request, reply) => { if (fail) throw new Error('handler'); return reply.send('ran') }
        )
        app.post('/serializer', {
          schema: { response: { 200: { type: 'object', required: ['a'], properties: { a: { type: 'string' } } } } }
        }, async () => fail ? {} : { a: 'ran' })
        app.post('/serialization', {
          preSerialization: async (_r, _p, payload) => { if (fail) throw new Error('hook'); return payload }
        }, async () => ({}))
        app.post('/on-send', {
          onSend: async (_r, _p, payload) => { if (fail) throw new Error('hook'); return payload }
        }, async () => 'ran')
        app.post('/parsing', { preParsing: async (_r, _p, payload) => { await reject(); return payload } }, handler)
        app.post('/reads-all', {
          preParsing: async (_r, _p, payload) => {
            let n = 0; for await (
              const chunk of payload
            ) n += (chunk as Buffer).length; await reject(); return Readable.from(['{}'.padEnd(n)])
          }
        }, handler)
        app.post('/early', {
          preParsing: (_request, reply, payload, done) => {
            if (fail) reply.code(403).send('early'); else done(null, payload)
          }
        }, handler)
        app.post('/empty', { preParsing: async () => { await reject() } }, handler)
        app.post('/bad-type', async () => 'ran')
        app.post('/used', async () => {
          const response = new Response('ran')
          if (fail) await response.text()
          return response
        })
        app.post('/invalid-payload', async (_request, reply) => {
          if (fail) reply.header('content-type', 'text/plain')
          return fail ? { not: 'text' } : 'ran'
        })
      }
    })
    const cases: Array<[string, string | undefined]> = [
      ['/throws', '{}'], ['/throws-sync', '{}'], ['/serializer', '{}'], ['/serialization', '{}'], ['/on-send', '{}'],
      ['/parsing', '{}'], ['/reads-all', '{}'], ['/early', '{}'], ['/empty', undefined], ['/invalid-payload', '{}'],
      ['/used', '{}']
    ]
    for (const [path, body] of cases) {
      if (path === '/reads-all' && mode.endsWith('first')) {
        continue // the hook runs after the plugin's there, as its guarantee says
      }
      fail = true
      const failed = await post(path, body, { path })
      t.ok(failed.status >= 400, `${path} fails`)
      fail = false
      const retry = await post(path, body, { path })
      t.same([retry.status, retry.replayed], [200, false], `${path} runs again`)
      t.equal((await post(path, body, { path })).replayed, true, `${path} is kept`)
    }
    const unsupported = { path: '/bad-type', headers: { 'content-type': 'text/unknown', 'idempotency-key': 'u' } }
    t.equal((await post('u', 'x', unsupported)).status, 415)
    t.equal((await post('u', '{}', { path: '/bad-type' })).text, 'ran', 'a 415 is no outcome')
    t.equal((
      await post('c', 'x', { path: '/bad-type', headers: { 'content-type': 'text/custom', 'idempotency-key': 'c' } })
    ).status, 500)
  })

  t.test(`G6: hijacked and raw replies are done, but cannot be replayed (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      routes: app => {
        app.post(
          '/hijack', (_request, reply) => { runs++; reply.hijack(); reply.raw.writeHead(202); reply.raw.end('raw') }
        )
        app.post('/hijack-async', async (_request, reply) => {
          runs++
          reply.hijack()
          await new Promise(resolve => setImmediate(resolve))
          reply.raw.end('raw')
        })
        app.post('/raw', async (_request, reply) => { runs++; reply.raw.end('raw') })
        app.post('/raw-fails', async (_request, reply) => { runs++; reply.raw.statusCode = 500; reply.raw.end('raw') })
      }
    })
    for (const [path, status] of [['/hijack', 202], ['/hijack-async', 200], ['/raw', 200]] as const) {
      t.equal((await post(path, '{}', { path })).text, 'raw')
      let retry = await post(path, '{}', { path })
      await until(async () => (
        retry = await post(path, '{}', { path })
      ).json().code !== 'idempotency_in_progress', 'the end of the reply')
      t.equal(retry.status, 409)
      t.match(retry.json(), { code: 'idempotency_response_unavailable', message: new RegExp(`status ${status}`) })
      t.equal((await post(path, '{"other":1}', { path })).json().code, 'idempotency_key_mismatch')
    }
    t.equal(runs, 3)
    await post('f', '{}', { path: '/raw-fails' })
    await until(async () => (await post('f', '{}', { path: '/raw-fails' })).text === 'raw', 'the key is free again')
    t.equal(runs, 5)
  })

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
        app.post('/value', async (_request, reply) => { await wait('/value', reply.raw); return { runs } })
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
        app.post('/throws', async (_request, reply) => { await wait('/throws', reply.raw); throw new Error('late') })
        app.post(
          '/undefined-fails', async (_request, reply) => { reply.code(503); await wait('/undefined-fails', reply.raw) }
        )
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
      t.equal(await stateOf(served, path), free ? 'freed' : 'completed', path)
      if (free) continue
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

  t.test(`G8: the fingerprint is of the bytes on the wire, however they are read (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      before: async app => {
        await app.register(multipart)
        app.addContentTypeParser(
          'text/pipe',
          (_request, payload, done) => {
            const through = new PassThrough(); let n = 0; payload.pipe(through).on(
              'data', (chunk: Buffer) => { n += chunk.length }
            ).on('end', () => done(null, n))
          }
        )
        app.addContentTypeParser('text/await', async (_request: unknown, payload: Readable) => {
          let n = 0
          for await (const chunk of payload) n += (chunk as Buffer).length
          return n
        })
        app.addContentTypeParser('text/events', (_request, payload, done) => {
          let n = 0; payload.on(
            'data', (chunk: Buffer) => { n += chunk.length }
          ); payload.on('end', () => done(null, n))
        })
        app.addContentTypeParser('text/sleep', (_request, payload, done) => {
          setTimeout(() => {
            let n = 0
            payload.on('data', (chunk: Buffer) => { n += chunk.length }).on('end', () => done(null, n))
          }, 5)
        })
      },
      routes: app => {
        app.post('/', async request => ({ runs: ++runs, length: request.body }))
        app.post('/later', {
          preParsing: [
            async (_r, _p, payload) => { await new Promise(resolve => setTimeout(resolve, 5)); return payload }
          ]
        }, async request => ({ runs: ++runs, body: request.body }))
        app.post('/gunzip', { preParsing: gunzipped }, async request => ({ runs: ++runs, body: request.body }))
        app.post('/upload', async request => {
          let bytes = 0
          for await (const part of request.files()) {
            for await (
              const chunk of part.file
            ) bytes += (chunk as Buffer).length
          }
          return { runs: ++runs, bytes }
        })
        app.post('/unread', async () => ({ runs: ++runs }))
        app.post('/begun', async request => { await request.file(); return { runs: ++runs } })
      }
    })
    const big = Array.from({ length: 40 }, (_, i) => String(i % 10).repeat(3_000))
    const other = [...big.slice(0, -1), 'x'.repeat(3_000)]
    const check = async (
      name: string, body: string | Buffer | string[], different: string | Buffer | string[], path: string, type: string,
      more = {}
    ) => {
      const call = { path, headers: { 'content-type': type, 'idempotency-key': name, ...more } }
      const first = await post(name, body, call)
      t.equal(first.status, 200, `${name}: ${first.text.slice(0, 200)}`)
      const again = await post(name, body, call)
      t.same([again.text, again.replayed], [first.text, true], name)
      t.equal((await post(name, different, call)).json().code, 'idempotency_key_mismatch', name)
      return first.json()
    }
    for (const type of ['text/pipe', 'text/await', 'text/events', 'text/sleep', 'text/plain']) {
      await check(
        type, big, other, '/', type
      )
    }
    t.match(await check('async preParsing', '{"a":1}', '{"a":2}', '/later', 'application/json'), { body: { a: 1 } })
    t.match(await check(
      'gunzip', gzipSync('{"a":1}'), gzipSync('{"a":2}'), '/gunzip', 'application/json', { 'content-encoding': 'gzip' }
    ), { body: { a: 1 } })
    const form = (text: string) => '--b\r\nContent-Disposition: form-data; name="f"; filename="f.txt"\r\n' +
      `Content-Type: text/plain\r\n\r\n${text}\r\n--b--\r\n`
    t.match(await check(
      'multipart', form('x'.repeat(100_000)), form('y'.repeat(100_000)), '/upload', 'multipart/form-data; boundary=b'
    ), { bytes: 100_000 })
    await check(
      'unread multipart', form('x'.repeat(100_000)), form('y'.repeat(100_000)), '/unread',
      'multipart/form-data; boundary=b'
    )
    await check(
      'begun multipart', form('x'.repeat(300_000)), form('y'.repeat(300_000)), '/begun',
      'multipart/form-data; boundary=b'
    )
    await check('one chunk or many', big.join(''), other, '/', 'text/plain')
    const chunked = await post(
      'one chunk or many', big, { headers: { 'content-type': 'text/plain', 'idempotency-key': 'one chunk or many' } }
    )
    t.equal(chunked.replayed, true)
  })

  t.test(`G8: bodies by inject, strings and streams, and none (${mode})`, async t => {
    let runs = 0
    const { app } = await start(t, mode, { routes: app => app.post('/', async () => ({ runs: ++runs })) })
    const inject = async (key: string, payload?: string | Readable, type = 'text/plain') => await app.inject(
      {
        method: 'POST',
        url: '/',
        headers: {
          'idempotency-key': key, ...(payload === undefined ? {} : { 'content-type': type })
        },
        ...(payload === undefined ? {} : { payload })
      }
    )
    const first = await inject('k', 'body')
    t.equal((await inject('k', 'body')).payload, first.payload)
    t.equal((await inject('k', Readable.from(['bo', 'dy']))).headers['idempotent-replayed'], 'true')
    t.equal((await inject('k', 'other')).statusCode, 409)
    // One chunk, larger than any that a socket delivers.
    const large = 'x'.repeat(100_000)
    await inject('large', large)
    t.equal((await inject('large', Readable.from([large.slice(1), 'x']))).headers['idempotent-replayed'], 'true')
    t.equal((await inject('large', large + 'x')).statusCode, 409)
    const empty = await inject('empty')
    t.equal((await inject('empty')).payload, empty.payload)
    t.equal((await inject('empty', '{"a":1}', 'application/json')).statusCode, 409)
  })

  t.test(`G9: a handler that was answered for by a timeout keeps its key until it ends (${mode})`, async t => {
    // Without bodies: Fastify's timeout does not fire once Node.js has closed a body that was read.
    let runs = 0
    let finish = gate()
    let fail = false
    const served = await start(t, mode, {
      fastify: { handlerTimeout: 400 },
      routes: app => {
        const work = async () => { runs++; await finish.promise; if (fail) throw new Error('failed late') }
        app.post('/async', async () => { await work(); return 'late' })
        app.post('/callback', (_request, reply) => {
          work().then(() => reply.send('late'), (error: Error) => reply.send(error))
        })
        app.post('/delegated', async (_request, reply) => {
          work().then(() => reply.send('late'), (error: Error) => reply.send(error))
          return await reply
        })
        app.post('/hook', {
          preHandler: (_request, _reply, done) => { finish.promise.then(() => done(), () => {}) }
        }, async () => { runs++; return 'ran' })
      }
    })
    for (const path of ['/async', '/callback', '/delegated']) {
      for (fail of [false, true]) {
        const key = `${path}${fail}`
        finish = gate()
        const before = runs
        t.equal((await served.post(key, undefined, { path })).status, 503)
        t.match((await served.post(key, undefined, { path })).json(), { code: 'idempotency_in_progress' }, key)
        finish.open()
        await until(async () => await stateOf(served, key) !== 'held', `the end of ${key}`)
        t.equal(runs, before + 1)
        if (fail) t.equal(await stateOf(served, key), 'freed')
        else {
          t.match((await served.post(key, undefined, { path })).json(), {
            code: 'idempotency_response_unavailable', message: /status 503/
          })
        }
      }
    }
    finish = gate()
    t.equal((await served.post('hook', undefined, { path: '/hook' })).status, 503)
    await until(async () => await stateOf(served, 'hook') === 'freed', 'the key of a handler that never ran')
    finish.open()
  })
}

async function completeStore (t: Tap, mode: string): Promise<{ store: IdempotencyStore }> {
  const app = Fastify()
  await app.register(idempotency, await storeOptions(mode as 'memory'))
  t.teardown(async () => await app.close())
  await app.ready()
  return { store: app.idempotency.store }
}
type Tap = Test

for (const mode of STORES) {
  t.test(`G8 and G13: HTTP/2, with a body and without (${mode})`, async t => {
    let runs = 0
    const app = Fastify({ http2: true })
    await app.register(idempotency, await storeOptions(mode))
    app.post('/', async (_request, reply) => await reply.code(201).send({ runs: ++runs }))
    app.post('/slow', async (_request, reply) => {
      const closed = once(reply.raw, 'close')
      entered.open()
      await closed
      reply.code(204)
    })
    const entered = gate()
    await app.listen({ port: 0, host: '127.0.0.1' })
    const session = http2.connect(`http://127.0.0.1:${(app.server.address() as AddressInfo).port}`)
    t.teardown(async () => { session.destroy(); await app.close() })
    const post = async (key: string, body?: string, type = 'application/json') => {
      const stream = session.request({
        ':method': 'POST',
        ':path': '/',
        'idempotency-key': key,
        ...(
          body === undefined || type === '' ? {} : { 'content-type': type }
        )
      }, { endStream: body === undefined })
      if (body !== undefined) stream.end(body)
      const [headers] = await once(stream, 'response') as [http2.IncomingHttpHeaders & http2.IncomingHttpStatusHeader]
      let text = ''
      for await (const chunk of stream) text += String(chunk)
      return { status: headers[':status'], replayed: headers['idempotent-replayed'], text }
    }
    for (const body of [undefined, '{"a":1}', '{"a":"' + 'x'.repeat(100_000) + '"}']) {
      const key = `k${body?.length}`
      const first = await post(key, body)
      t.same(await post(key, body), { ...first, replayed: 'true' })
      t.equal((await post(key, '{"b":1}')).status, 409)
    }
    // Fastify does not parse a body without a type; it counts all the same.
    const untyped = await post('untyped', 'x', '')
    t.same(await post('untyped', 'x', ''), { ...untyped, replayed: 'true' })
    t.equal((await post('untyped', 'y', '')).status, 409)

    const stream = session.request(
      { ':method': 'POST', ':path': '/slow', 'idempotency-key': 'gone' }, { endStream: true }
    )
    stream.on('error', () => {})
    await entered.promise
    stream.close(http2.constants.NGHTTP2_CANCEL)
    await until(async () => (
      await app.idempotency.inspect({ key: 'gone' })
    )?.state === 'completed', 'the result of a cancelled stream')

    // Node.js ends the body of a stream that was cut off as if it were whole.
    for (const length of [{}, { 'content-length': 8 }]) {
      const key = `cut ${Object.keys(length).length}`
      const cut = session.request(
        { ':method': 'POST', ':path': '/', 'idempotency-key': key, 'content-type': 'application/json', ...length }
      )
      cut.on('error', () => {})
      cut.write('{"a":1')
      await until(async () => (await app.idempotency.inspect({ key }))?.state === 'held', 'the key is held')
      cut.destroy(new Error('cut off'))
      await until(async () => (await app.idempotency.inspect({ key }))?.state === 'freed', 'the key is free')
      t.same([(await post(key, '{"a":1}')).status, (await post(key, '{"a":1}')).replayed], [201, 'true'])
    }
  })

  t.test('G1: a replay never lets the handler run, though an onSend is slow and ' +
    `the client leaves (${mode})`, async t => {
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

  t.test(`G7: a reply sent into a slow onSend is kept as it is, not as an empty one (${mode})`, async t => {
    const sent = gate()
    const served = await start(t, mode, {
      before: app => {
        app.addHook('onSend', async (_request, reply, payload) => {
          if (reply.raw.destroyed || reply.request.idempotency?.replayed === true) return payload
          const closed = once(reply.raw, 'close')
          sent.open()
          await closed
          await new Promise(resolve => setImmediate(resolve))
          return payload
        })
      },
      routes: app => app.post('/', async (_request, reply) => { reply.send({ real: true }); return await reply })
    })
    const socket = await cutting(served.port, head('/', 'k'))
    await sent.promise
    socket.destroy()
    await until(async () => await stateOf(served, 'k') !== 'held', 'the end')
    t.same((await served.post('k')).json(), { real: true })
  })

  t.test(`G6: a client that leaves while the key is being claimed leaves nothing behind (${mode})`, async t => {
    const { store: real } = await completeStore(t, mode)
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
      routes: app => app.post('/', async () => { runs++; return 'ran' })
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

  t.test(`G6: what comes late, or is cut, with nobody there (${mode})`, async t => {
    const entered = gate()
    let hijacked = false
    const served = await start(t, mode, {
      before: app => { app.addContentTypeParser('text/lazy', (_request, _payload, done) => done(null)) },
      routes: app => {
        app.post('/destroys', async (request, reply) => { reply.code(204); request.raw.socket.destroy() })
        app.post('/hijacks-late', async (_request, reply) => {
          const closed = once(reply.raw, 'close')
          entered.open()
          await closed
          reply.hijack()
          hijacked = true
        })
        app.post(
          '/lazy', async request => { await new Promise(resolve => request.raw.once('close', resolve)); return 'ran' }
        )
        app.post('/lazy-hijack', (_request, reply) => { reply.hijack(); reply.raw.end('raw') })
        app.post(
          '/lazy-early', { preHandler: async (_request, reply) => await reply.code(403).send('no') }, async () => 'ran'
        )
        app.post('/text', {
          preParsing: [async (request, _reply, payload) => { request.raw.setEncoding('utf8'); return payload }]
        }, async request => request.body)
      }
    })
    const { port, post } = served
    const settled = async (key: string): Promise<string | undefined> => {
      await until(async () => !['held', undefined].includes(await stateOf(served, key)), `the end of ${key}`)
      return await stateOf(served, key)
    }
    await t.rejects(post('destroys', undefined, { path: '/destroys' }))
    t.equal(await settled('destroys'), 'completed')
    t.equal((await post('destroys', undefined, { path: '/destroys' })).status, 204)

    const socket = await cutting(port, head('/hijacks-late', 'hijacks'))
    await entered.promise
    socket.destroy()
    t.equal(await settled('hijacks'), 'completed')
    t.equal(hijacked, true)

    for (const path of ['/lazy', '/lazy-hijack']) {
      const half = await cutting(port, head(path, path, 'Content-Type: text/lazy\r\nContent-Length: 1000\r\n') + 'half')
      await until(async () => await stateOf(served, path) === 'held', 'the claim')
      half.destroy()
      t.equal(await settled(path), 'freed', `${path}: an upload that is cut off is no outcome`)
    }
    t.equal((await post('early', 'x'.repeat(500_000), {
      path: '/lazy-early', headers: { 'content-type': 'text/lazy', 'idempotency-key': 'early' }
    })).status, 403)
    t.equal(await settled('early'), 'freed')
    const text = { path: '/text', headers: { 'content-type': 'text/plain', 'idempotency-key': 'text' } }
    const first = await post('text', 'häß', text)
    t.equal((await post('text', 'häß', text)).text, first.text)
  })

  t.test(`G13: a large stream to a client that reads slowly (${mode})`, async t => {
    const { app, port, post } = await start(t, mode, {
      options: { maxResponseBytes: 20_000_000, storeTimeout: 30_000 },
      routes: app => app.post(
        '/', async () => Readable.from(Array.from({ length: 200 }, () => Buffer.alloc(50_000, 'x')))
      )
    })
    const connected = once(app.server, 'connection')
    const socket = await cutting(port, head('/', 'k', 'Connection: close\r\n'))
    socket.pause()
    const [served] = await connected as [Socket]
    await until(() => served.writableNeedDrain, 'no more fits into the connection')
    socket.resume()
    await once(socket, 'close')
    t.equal((await post('k')).body.length, 10_000_000)
  })

  t.test(`G13: over maxResponseBytes the client gets it whole, and the key is done (${mode})`, async t => {
    const { post } = await start(t, mode, {
      options: { maxResponseBytes: 10 },
      routes: app => {
        app.post('/string', async () => 'x'.repeat(11))
        app.post('/buffer', async () => Buffer.alloc(11, 'x'))
        app.post('/stream', async () => Readable.from(['xxxx', 'xxxx', 'xxx']))
        app.post('/exact', async () => '€'.repeat(3) + 'x')
      }
    })
    for (const path of ['/string', '/buffer', '/stream']) {
      t.equal((await post(path, '{}', { path })).text, 'x'.repeat(11))
      t.match(
        (await post(path, '{}', { path })).json(), { code: 'idempotency_response_unavailable', message: /status 200/ }
      )
    }
    await post('e', '{}', { path: '/exact' })
    t.equal((await post('e', '{}', { path: '/exact' })).text, '€€€x')
  })
}

t.test('G14: many replays on one connection leave no listener on it', async t => {
  const warnings: Error[] = []
  const warn = (warning: Error): void => { warnings.push(warning) }
  process.on('warning', warn)
  t.teardown(() => process.off('warning', warn))
  const { post } = await start(t, 'memory', { routes: app => app.post('/', async () => 'ok') })
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
  for (let i = 0; i < 25; i++) t.equal((await post('k', '{}', { agent })).replayed, i > 0)
  // Nor does a request that is refused, or runs unprotected, with a body that nobody reads.
  for (let i = 0; i < 25; i++) t.equal((await post('', 'x'.repeat(200_000), { agent })).status, 400)
  agent.destroy()
  t.same(warnings, [])
})

t.test('G8: behind an instance hook that decodes, a route declared first is compared by the decoded bytes', async t => {
  const { post } = await start(t, 'memory, routes declared first', {
    before: app => { app.addHook('preParsing', gunzipped) },
    routes: app => app.post('/', async request => request.body)
  })
  const call = { headers: { 'content-type': 'application/json', 'idempotency-key': 'k' } }
  t.same((await post('k', gzipSync('{"a":1}'), call)).json(), { a: 1 })
  t.equal((await post('k', gzipSync('{"a":1}', { level: 1 }), call)).replayed, true)
  t.equal((await post('k', gzipSync('{"a":2}'), call)).status, 409)
  t.equal((await post('bad', 'not gzip', { headers: { ...call.headers, 'idempotency-key': 'bad' } })).status, 400)
  t.equal((await post('k', 'not gzip', call)).status, 400)
  t.equal((await post('k', gzipSync('{"a":1}'), call)).replayed, true)
})

t.test('G6: bad gzip in front of a replay ends like any other mismatch', async t => {
  const { port } = await start(t, 'memory', {
    routes: app => app.post('/', { preParsing: gunzipped }, async () => 'ok')
  })
  const call = { key: 'k', headers: { 'content-type': 'application/json', 'idempotency-key': 'k' } }
  t.equal((await send(port, { ...call, body: gzipSync('{"a":1}') })).status, 200)
  t.equal((await send(port, { ...call, body: gzipSync('{"a":1}') })).replayed, true)
  t.equal((await send(port, { ...call, body: 'not gzip at all, and rather long '.repeat(1_000) })).status, 409)
})

for (const mode of MODES) {
  t.test(`G6: an empty body with a content type is answered at once (${mode})`, async t => {
    const { post } = await start(t, mode, {
      before: app => {
        app.addContentTypeParser('text/any', { parseAs: 'string' }, (_request, body, done) => done(null, body))
      },
      routes: app => app.post('/', async request => ({ body: request.body }))
    })
    const empty = async (type: string) => await post(
      type, '', { headers: { 'content-type': type, 'idempotency-key': type } }
    )
    for (const replayed of [false, true]) {
      const json = await empty('application/json')
      t.same([json.status, json.json().code, json.replayed], [400, 'FST_ERR_CTP_EMPTY_JSON_BODY', replayed])
      const text = await empty('text/any')
      t.same([text.text, text.replayed], ['{"body":""}', replayed])
    }
  })
}

t.test('G8: a streamed response to an upload that is cut off meanwhile is not kept', async t => {
  let runs = 0
  const { app, port, post } = await start(t, 'memory', {
    before: app => { app.addContentTypeParser('text/lazy', (_request, _payload, done) => done(null)) },
    routes: app => app.post('/', async () => { runs++; return Readable.from(['several', 'chunks']) })
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
  t.test(`G6: a reply that cannot be judged or sent is an error, and the key is settled (${mode})`, async t => {
    const served = await start(t, mode, {
      routes: app => {
        app.post('/response', async () => Response.error())
        app.post('/cacheable', {
          config: { idempotency: { cacheable: () => { throw new Error('a fault in an option') } } }
        }, async () => 'ok')
      }
    })
    t.equal((await served.post('response', '{}', { path: '/response' })).status, 500)
    t.equal(await stateOf(served, 'response'), 'freed')
    t.equal((await served.post('cacheable', '{}', { path: '/cacheable' })).status, 500)
    await until(async () => await stateOf(served, 'cacheable') !== 'held', 'the end')
    t.equal(await stateOf(served, 'cacheable'), 'completed', 'what has run does not run again')
  })

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
    await until(() => { if (!source.destroyed) source.write('x'); return source.destroyed }, 'the end of the source')
    await until(async () => await stateOf(served, 'k') === 'completed', 'the key is done')
    t.match((await served.post('k')).json(), { code: 'idempotency_response_unavailable' })
  })
}

for (const mode of MODES) {
  t.test(`G6, G9: a timeout while the handler's reply is in a slow hook leaves nothing held (${mode})`, async t => {
    const timedOut = new Map([['/', gate()], ['/callback', gate()]])
    const served = await start(t, mode, {
      before: app => {
        app.addHook('onError', async ({ url }) => timedOut.get(url)?.open())
        app.addHook('onSend', async ({ url }) => await timedOut.get(url)?.promise)
      },
      routes: app => {
        app.post('/', { handlerTimeout: 400 }, async () => 'ok')
        app.post('/callback', { handlerTimeout: 400 }, (_request, reply) => { reply.send('ok') })
      }
    })
    // Fastify cuts the connection where two replies want to leave.
    const call = { agent: new http.Agent() }
    for (const path of ['/', '/callback']) {
      t.equal((await served.post(path, undefined, { ...call, path })).status, 503)
      await until(async () => await stateOf(served, path) !== 'held', 'the end')
    }
    t.match((await served.post('/', undefined, call)).json(), {
      code: 'idempotency_response_unavailable', message: /status 503/
    })
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
      app.post('/early', async () => { entered.get('/early')?.open(); return 'early' })
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
