import { once } from 'node:events'
import * as http from 'node:http'
import * as http2 from 'node:http2'
import type { AddressInfo, Socket } from 'node:net'
import { PassThrough, Readable } from 'node:stream'
import { gzipSync } from 'node:zlib'
import multipart from '@fastify/multipart'
import Fastify from 'fastify'
import t from 'tap'
import idempotency from '../lib/index.ts'
import { gate, MODES, send, start, stopRedis, storeOptions, STORES, until } from './fixtures/app.ts'
import { cutting, head } from './fixtures/cut.ts'
import { gunzipped } from './fixtures/gunzip.ts'

t.teardown(stopRedis)

for (const mode of MODES) {
  t.test(`G8: the fingerprint is of the bytes on the wire, however they are read (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      before: async app => {
        await app.register(multipart)
        app.addContentTypeParser('text/pipe', (_request, payload, done) => {
          const through = new PassThrough()
          let n = 0
          payload.pipe(through).on('data', (chunk: Buffer) => { n += chunk.length }).on('end', () => done(null, n))
        })
        app.addContentTypeParser('text/await', async (_request: unknown, payload: Readable) => {
          let n = 0
          for await (const chunk of payload) n += (chunk as Buffer).length
          return n
        })
        app.addContentTypeParser('text/events', (_request, payload, done) => {
          let n = 0
          payload.on('data', (chunk: Buffer) => { n += chunk.length })
          payload.on('end', () => done(null, n))
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
            async (_r, _p, payload) => {
              await new Promise(resolve => setTimeout(resolve, 5))
              return payload
            }
          ]
        }, async request => ({ runs: ++runs, body: request.body }))
        app.post('/gunzip', { preParsing: gunzipped }, async request => ({ runs: ++runs, body: request.body }))
        app.post('/upload', async request => {
          let bytes = 0
          for await (const part of request.files()) {
            for await (const chunk of part.file) bytes += (chunk as Buffer).length
          }
          return { runs: ++runs, bytes }
        })
        app.post('/unread', async () => ({ runs: ++runs }))
        app.post('/begun', async request => {
          await request.file()
          return { runs: ++runs }
        })
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
      await check(type, big, other, '/', type)
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
    const inject = async (key: string, payload?: string | Readable, type = 'text/plain') => await app.inject({
      method: 'POST',
      url: '/',
      headers: {
        'idempotency-key': key, ...(payload === undefined ? {} : { 'content-type': type })
      },
      ...(payload === undefined ? {} : { payload })
    })
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
}

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
    t.teardown(async () => {
      session.destroy()
      await app.close()
    })
    const post = async (key: string, body?: string, type = 'application/json') => {
      const stream = session.request({
        ':method': 'POST',
        ':path': '/',
        'idempotency-key': key,
        ...(body === undefined || type === '' ? {} : { 'content-type': type })
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
