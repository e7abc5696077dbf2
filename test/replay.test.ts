import { ReadableStream } from 'node:stream/web'
import { Readable, Stream } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import fc from 'fast-check'
import t from 'tap'
import { lines, MODES, start, stopRedis, STORES } from './fixtures/app.ts'

t.teardown(stopRedis)

const bytes = Buffer.from(Array.from({ length: 256 }, (_, i) => i))

for (const mode of MODES) {
  t.test(`G13: status, bytes and headers of a replay equal the original's, whatever the payload (${mode})`, async t => {
    let runs = 0
    const payloads: Record<string, (reply: FastifyReply) => unknown> = {
      string: () => 'häß €',
      lone: () => 'lone \ud800 surrogate',
      json: () => ({ a: 1, b: [null, 'é'] }),
      number: reply => reply.send(5),
      null: reply => reply.send(null),
      buffer: () => bytes,
      'stream of readable-stream 2': () => Object.assign(
        Readable.from(['old ', 'stream']), { [Symbol.asyncIterator]: undefined }
      ),
      'stream of Node.js 0.8': reply => {
        const old = Object.assign(new Stream(), { readable: true, pause () {}, resume () {}, destroy () {} })
        setImmediate(() => {
          for (const [event, chunk] of [['data', 'old '], ['data', 'stream'], ['end'], ['close']] as const) {
            old.emit(event, chunk)
          }
        })
        return reply.send(old)
      },
      typed: () => new Uint16Array([1, 2, 65_535]),
      view: () => new DataView(new ArrayBuffer(3)),
      'empty string': reply => reply.send(''),
      'empty buffer': () => Buffer.alloc(0),
      nothing: reply => reply.send(),
      204: reply => { reply.code(204).send() },
      '204 with type': reply => { reply.code(204).header('content-type', 'text/plain').send() },
      '204 with an empty string': reply => reply.code(204).send(''),
      '204 with bytes and a type': reply => reply.code(204).type('application/json').send(Buffer.from('{}')),
      '204 with a stream': reply => reply.code(204).type('text/csv').send(Readable.from(['a'])),
      304: reply => reply.code(304).header('etag', '"a"').send(),
      '304 with an empty string': reply => reply.code(304).send(''),
      redirect: reply => reply.redirect('/elsewhere', 303),
      'node stream': () => Readable.from([bytes, 'text', bytes]),
      'typed node stream': reply => reply.type('text/csv').header('content-length', 4).send(
        Readable.from(['a,', 'b\n'])
      ),
      'empty stream': () => Readable.from([]),
      'web stream': () => new ReadableStream({
        start (controller) {
          controller.enqueue(new Uint8Array([1, 2]))
          controller.enqueue(new Uint8Array(bytes))
          controller.close()
        }
      }),
      Response: () => new Response('from a Response', {
        status: 202, headers: [['content-type', 'text/x'], ['x-multi', 'a'], ['set-cookie', 'a=1']]
      }),
      'Response without a body': () => new Response(null, { status: 204 }),
      'two values': reply => reply.header('x-two', ['a', 'b']).header('link', '</a>; rel=next').send('two'),
      'latin-1 header with text': reply => reply.header('x-l', 'caf\u00e9').send('text'),
      'latin-1 header with bytes': reply => reply.header('x-l', 'caf\u00e9').send(bytes),
      'raw headers': reply => {
        reply.raw.setHeader('X-Raw', 'raw')
        return reply.send('raw')
      },
      'error object': () => { throw Object.assign(new Error('teapot'), { statusCode: 418 }) },
      'not found': reply => reply.callNotFound(),
      json5: reply => reply.type('application/vnd.api+json').send({ data: 1 })
    }
    const { post } = await start(t, mode, {
      routes: app => app.post('/:kind', async (request, reply) => {
        runs++
        const payload = payloads[(request.params as { kind: string }).kind]?.(reply)
        return payload === undefined ? await reply : payload
      })
    })
    for (const kind of Object.keys(payloads)) {
      const path = `/${encodeURIComponent(kind)}`
      const before = runs
      const first = await post(kind, '{}', { path })
      const retry = await post(kind, '{}', { path })
      t.equal(retry.headers['idempotent-replayed'], 'true', kind)
      t.equal(retry.status, first.status, kind)
      t.ok(retry.body.equals(first.body), kind)
      t.same(lines(retry), lines(first).filter(line => !line.startsWith('set-cookie')), kind)
      t.equal(runs, before + 1, kind)
    }
  })

  t.test(`G10: a hook that fails does not keep a replay from its client; one that refuses does (${mode})`, async t => {
    let failure: Error | undefined
    const { post } = await start(t, mode, {
      before: async app => {
        app.addHook('onSend', async () => { if (failure !== undefined) throw failure })
      },
      routes: app => app.post(
        '/', async (_request, reply) => await reply.code(201).header('x-kept', 'yes').send('once')
      )
    })
    t.match(await post('k'), { status: 201 })
    failure = new Error('from a hook')
    t.match(await post('k'), { status: 201, text: 'once', headers: { 'x-kept': 'yes', 'idempotent-replayed': 'true' } })
    failure = Object.assign(new Error('not you'), { statusCode: 403 })
    const refused = await post('k')
    t.match(refused, { headers: { 'x-kept': undefined, 'idempotent-replayed': undefined } })
    t.not(refused.status, 201)
    failure = undefined
    t.match(await post('k'), { status: 201, headers: { 'x-kept': 'yes', 'idempotent-replayed': 'true' } })
  })

  t.test(`G13: headers of the connection and of the moment are not kept; a kept one wins (${mode})`, async t => {
    let seen = 0
    const { post } = await start(t, mode, {
      before: app => {
        app.addHook('onRequest', (_request, reply, done) => {
          reply.header('x-first', ++seen).header('x-live', seen).header('set-cookie', `hook=${seen}`)
          done()
        })
      },
      options: { replayHeaders: name => name !== 'x-live' },
      routes: app => {
        app.post(
          '/',
          async (_request, reply) => await reply.headers({
            connection: 'close',
            'keep-alive': 'timeout=1',
            'proxy-authenticate': 'x',
            'x-mine': 'kept',
            'set-cookie': ['a=1', 'b=2']
          }).send('ok')
        )
        app.post(
          '/default', { config: { idempotency: { replayHeaders: name => !/^(x-)/.test(name) } } }, async () => 'ok'
        )
      }
    })
    const first = await post('k', '{}')
    t.same(first.headers['set-cookie'], ['hook=1', 'a=1', 'b=2'])
    const retry = await post('k', '{}')
    t.same([retry.headers['x-first'], retry.headers['x-live'], retry.headers['x-mine']], ['1', '2', 'kept'])
    t.same(retry.headers['set-cookie'], ['hook=1', 'a=1', 'b=2'])
    t.same([retry.headers['proxy-authenticate'], retry.headers['keep-alive']], [undefined, 'timeout=72'])
    await post('d', '{}', { path: '/default' })
    t.equal((await post('d', '{}', { path: '/default' })).headers['x-first'], '4')
  })
}

for (const mode of STORES) {
  t.test(`G13: any status, type and body comes back as it was (${mode})`, async t => {
    let next: { status: number, body: Buffer, value: string } | undefined
    const { post } = await start(t, mode, {
      routes: app => app.post('/', async (_request, reply) => await reply.code(next?.status ?? 0).header(
        'x-value', next?.value
      ).send(next?.body))
    })
    let count = 0
    await fc.assert(fc.asyncProperty(fc.record({
      status: fc.integer({ min: 200, max: 499 }).filter(status => status !== 429 && status !== 204 && status !== 304),
      body: fc.uint8Array({ maxLength: 2_000 }).map(array => Buffer.from(array)),
      value: fc.string({ unit: fc.constantFrom(...'abc =;,"/') }).map(text => `v${text}v`)
    }), async given => {
      next = given
      const key = `k${count++}`
      const first = await post(key, '{}')
      next = undefined
      const retry = await post(key, '{}')
      return retry.replayed && retry.status === given.status && retry.body.equals(given.body) &&
        retry.headers['x-value'] === given.value && first.body.equals(given.body)
    }), { numRuns: 60 })
  })

  t.test(`G13: hooks that change the payload do not change a replay twice (${mode})`, async t => {
    let count = 0
    const wrap = async (
      _request: FastifyRequest, _reply: FastifyReply, payload: unknown
    ) => `[${++count}:${String(payload)}]`
    const { post } = await start(t, mode, {
      before: app => { app.addHook('onSend', wrap) },
      routes: app => app.post(
        '/', { onSend: async (_request, _reply, payload) => `<${String(payload)}>` }, async () => 'x'
      )
    })
    t.equal((await post('k', '{}')).text, '<[1:x]>')
    t.equal((await post('k', '{}')).text, '<[1:x]>')
  })

  t.test(`G4: what a route's own onSend makes of a reply is what counts (${mode})`, async t => {
    let count = 0
    const { post } = await start(t, mode, {
      routes: app => {
        app.post('/fails', {
          onSend: async (_request, reply, payload) => {
            if (count++ === 0) reply.code(503)
            return payload
          }
        }, async request => ({ attempt: request.idempotency?.attempt }))
        app.post(
          '/counts', { onSend: async (_request, _reply, payload) => `${String(payload)}:${++count}` }, async () => 'x'
        )
      }
    })
    t.equal((await post('f', '{}', { path: '/fails' })).status, 503)
    t.same((await post('f', '{}', { path: '/fails' })).json(), { attempt: 2 })
    const first = await post('c', '{}', { path: '/counts' })
    t.equal((await post('c', '{}', { path: '/counts' })).text, first.text)
  })

  t.test(`G6: a header that cannot be sent is a 500, and frees the key (${mode})`, async t => {
    let bad = true
    const { post } = await start(t, mode, {
      routes: app => {
        app.post('/', (_request, reply) => { reply.header('x-bad', bad ? 'a\u0100b' : 'ab').send('ok') })
        app.post('/late', (_request, reply) => {
          reply.raw.writeHead(200).write('raw')
          setImmediate(() => reply.send('too late'))
        })
      }
    })
    // Headers are gone already: with a store that answers at once Fastify throws to the caller.
    if (mode === 'redis') await t.rejects(post('late', '{}', { path: '/late' }))
    t.equal((await post('k', '{}')).status, 500)
    bad = false
    t.equal((await post('k', '{}')).text, 'ok')
  })

  t.test(`G2: a handler that replies twice has one outcome, the one that its client has seen (${mode})`, async t => {
    const { post } = await start(t, mode, {
      routes: app => {
        app.post('/twice', (_request, reply) => {
          reply.send('1')
          reply.send('2')
        })
        app.post('/throws', async (_request, reply) => {
          reply.send('1')
          throw new Error('after the reply')
        })
      }
    })
    for (const path of ['/twice', '/throws']) {
      const first = await post(path, '{}', { path })
      t.same([first.status, first.text], [200, '1'], path)
      const retry = await post(path, '{}', { path })
      t.same([retry.status, retry.text, retry.replayed], [200, '1', true], path)
    }
  })

  t.test(`G4: a reply that a later hook turns into a failure is not kept (${mode})`, async t => {
    let fail = true
    const { post } = await start(t, mode, {
      routes: app => app.post('/', {
        onSend: async (_request, _reply, payload) => {
          if (fail) throw new Error('signing failed')
          return payload
        }
      }, async request => ({ attempt: request.idempotency?.attempt }))
    })
    t.equal((await post('k', '{}')).status, 500)
    fail = false
    t.same((await post('k', '{}')).json(), { attempt: 2 })
  })
}

t.test('G13: a hook that changes the payload and its length does so once', async t => {
  const { post } = await start(t, 'memory', {
    before: app => {
      app.addHook('onSend', async (_request, reply, payload) => {
        const longer = `${String(payload)}!`
        reply.header('content-length', longer.length)
        return longer
      })
    },
    routes: app => app.post('/', async () => 'ok')
  })
  for (const replayed of [false, true]) {
    const answer = await post('k', '{}')
    t.same([answer.text, answer.headers['content-length'], answer.replayed], ['ok!', '3', replayed])
  }
})

for (const mode of MODES) {
  t.test(`G8, G13: a response that streams the request's own body back (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      before: app => {
        app.addContentTypeParser('application/x-echo', (_request, payload, done) => done(null, payload))
      },
      routes: app => app.post('/', (request, reply) => {
        runs++
        reply.type('application/x-echo').send(request.body)
      })
    })
    for (const body of ['x', Buffer.alloc(300_000, 'abc'), ['several ', 'chunks']]) {
      const key = `k${String(body.length)}`
      const headers = { 'content-type': 'application/x-echo', 'idempotency-key': key }
      const sent = Array.isArray(body) ? body.join('') : String(body)
      for (const replayed of [false, true]) {
        const answer = await post(key, body, { headers })
        t.same([answer.status, answer.text === sent, answer.replayed], [200, true, replayed], key)
      }
      t.equal((await post(key, 'another', { headers })).status, 409)
    }
    t.equal(runs, 3)
  })
}

t.test('G8: a parser that sets an encoding does not change what is compared', async t => {
  const { post } = await start(t, 'memory', {
    before: app => {
      for (const encoding of ['latin1', 'utf8', 'ascii'] as const) {
        app.addContentTypeParser(`application/${encoding}`, (_request, payload, done) => {
          let text = ''
          payload.setEncoding(encoding).on('data', chunk => { text += String(chunk) }).on('end', () => done(null, text))
        })
      }
    },
    routes: app => app.post('/', async request => ({ length: (request.body as string).length }))
  })
  const bytes = async (encoding: string, ...body: number[]): Promise<[status: number, replayed: boolean]> => {
    const { status, replayed } = await post(
      'k', Buffer.from(body), { headers: { 'content-type': `application/${encoding}`, 'idempotency-key': encoding } }
    )
    return [status, replayed]
  }
  t.same(await bytes('latin1', 0, 128, 255), [200, false])
  t.same(await bytes('latin1', 0, 128, 255), [200, true])
  t.same(await bytes('latin1', 0, 128, 254), [409, false])
  t.same(await bytes('utf8', 0xff), [200, false])
  t.same(await bytes('utf8', 0xef, 0xbf, 0xbd), [409, false], 'what the first was decoded to is another body')
  t.same(await bytes('ascii', 0xc1), [200, false])
  t.same(await bytes('ascii', 0x41), [409, false])
})

for (const mode of MODES) {
  t.test(`G2: of two replies behind an asynchronous hook, the one that was sent is kept (${mode})`, async t => {
    const { post } = await start(t, mode, {
      before: app => { app.addHook('onSend', async (_request, _reply, payload) => `${String(payload)}!`) },
      routes: app => app.post('/', (_request, reply) => {
        reply.send('one')
        reply.send('two')
      })
    })
    const first = await post('k', '{}')
    const retry = await post('k', '{}')
    t.same([first.text, retry.text, retry.replayed], ['one!', first.text, true])
  })
}
