import { once } from 'node:events'
import * as http from 'node:http'
import { Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { mock } from 'node:test'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import t from 'tap'
import { MemoryStore } from '../lib/index.ts'
import { gate, MODES, receive, start, stopRedis, STORES, until, type Answer } from './fixtures/app.ts'
import { faulty, listen } from './fixtures/faulty.ts'

/** Handlers that reply while the request's body is still arriving. */

t.teardown(stopRedis)

const type = 'application/octet-stream'
const streams = (app: FastifyInstance): void => {
  app.addContentTypeParser(type, (_request, payload, done) => done(null, payload))
}
const bodyOf = ({ body }: FastifyRequest): NodeJS.ReadableStream => body as NodeJS.ReadableStream

interface Upload { request: http.ClientRequest, answer: Promise<Answer> }

function upload (port: number, path: string, length: number): Upload {
  const request = http.request({
    port,
    host: '127.0.0.1',
    method: 'POST',
    path,
    headers: {
      'idempotency-key': path, 'content-type': type, 'content-length': length
    }
  })
  request.on('error', () => {})
  request.flushHeaders()
  return {
    request,
    answer: once(request, 'response').then(async ([response]) => await receive(response as http.IncomingMessage))
  }
}

for (const mode of MODES) {
  t.test(`G2, G13: the first reply leaves and is kept, whatever comes before the upload ends (${mode})`, async t => {
    const [replied, again] = [gate(), gate()]
    const { port } = await start(t, mode, {
      before: streams,
      routes: app => {
        app.post('/twice', (_request, reply) => {
          reply.code(202).header('x-mark', 'first').send('accepted')
          replied.open()
          again.promise.then(
            () => reply.code(404).header('x-mark', 'second').header('x-more', 'second').send('late'), () => {}
          )
        })
      }
    })
    const first = upload(port, '/twice', 8)
    await replied.promise
    first.request.write('half')
    again.open()
    await new Promise(resolve => setImmediate(resolve))
    first.request.end('more')
    const answer = await first.answer
    const retry = upload(port, '/twice', 8)
    retry.request.end('halfmore')
    for (const { status, text, headers } of [answer, await retry.answer]) {
      t.same([status, text, headers['x-mark'], headers['x-more']], [202, 'accepted', 'first', undefined])
    }
    t.equal((await retry.answer).replayed, true)
  })

  t.test(`G6, G9: a handler timeout does not overtake a reply that waits for the upload (${mode})`, async t => {
    const [replied, late] = [gate(), gate()]
    const { port } = await start(t, mode, {
      before: streams,
      routes: app => app.post('/', { handlerTimeout: 400 }, async (_request, reply) => {
        reply.code(202).send({ accepted: true })
        replied.open()
        await late.promise
      })
    })
    const first = upload(port, '/', 8)
    first.request.write('half')
    await replied.promise
    // Twice the timeout, of which nobody is told: the reply counts as sent.
    await new Promise(resolve => setTimeout(resolve, 800))
    late.open()
    await new Promise(resolve => setImmediate(resolve))
    first.request.end('more')
    t.same([(await first.answer).status, (await first.answer).json()], [202, { accepted: true }])
    const retry = upload(port, '/', 8)
    retry.request.end('halfmore')
    t.same([(await retry.answer).status, (await retry.answer).replayed], [202, true])
  })

  t.test(`G3, G9: an error like Fastify's timeout does not free the key of an early reply (${mode})`, async t => {
    const failed = gate()
    const { port } = await start(t, mode, {
      before: streams,
      routes: app => app.post('/', async (_request, reply) => {
        reply.code(202).send('first')
        reply.send(Object.assign(new Error('late'), { code: 'FST_ERR_HANDLER_TIMEOUT', statusCode: 503 }))
        setImmediate(failed.open)
        throw new Error('later')
      })
    })
    const first = upload(port, '/', 8)
    first.request.write('half')
    await failed.promise
    first.request.end('more')
    t.match(await first.answer, { status: 202, text: 'first' })
    const retry = upload(port, '/', 8)
    retry.request.end('halfmore')
    t.match(await retry.answer, { status: 202, text: 'first', replayed: true })
  })

  t.test(`a handler that replies before it has read the upload still gets all of it (${mode})`, async t => {
    const whole = 400_000
    let stored = 0
    let [stalled, go] = [gate(), gate()]
    const ended = gate()
    const slow = (): Writable => new Writable({
      write (chunk: Buffer, _encoding, done) {
        stored += chunk.length
        stalled.open()
        go.promise.then(() => done(), done)
      }
    })
    const { port } = await start(t, mode, {
      before: streams,
      routes: app => app.post('/', (request, reply) => {
        pipeline(bodyOf(request), slow()).then(ended.open, () => {})
        reply.code(202).send('accepted')
      })
    })
    const first = upload(port, '/', whole)
    for (let i = 0; i < 4; i++) first.request.write(Buffer.alloc(whole / 4))
    first.request.end()
    await stalled.promise
    t.equal((await first.answer).status, 202, 'the reply does not wait for the reader')
    go.open()
    await ended.promise
    t.equal(stored, whole)
    ;[stalled, go] = [gate(), gate()]
    const retry = upload(port, '/', whole)
    retry.request.end(Buffer.alloc(whole))
    t.equal((await retry.answer).replayed, true)
  })
}

t.test('G6, G14: beyond 16 MiB a reader sets the pace, and one that has stopped for good is left behind', async t => {
  mock.timers.enable({ apis: ['setTimeout'] })
  t.teardown(() => mock.timers.reset())
  const warnings: string[] = []
  let stored = 0
  let release = gate()
  const { port } = await start(t, 'memory', {
    fastify: { logger: { level: 'warn', stream: { write: (line: string) => { warnings.push(line) } } } },
    before: streams,
    routes: app => {
      const read = (request: FastifyRequest): void => {
        bodyOf(request).pipe(new Writable({
          highWaterMark: 1,
          write (chunk: Buffer, _encoding, done) {
            stored += chunk.length
            release.promise.then(() => done(), done)
          }
        }))
      }
      app.post('/slow', (request, reply) => {
        read(request)
        reply.code(202).send('accepted')
      })
      app.post('/stopped', (request, reply) => {
        read(request)
        reply.code(202).send('accepted')
      })
    }
  })
  const length = 24 * 1_048_576
  const slow = upload(port, '/slow', length)
  slow.request.end(Buffer.alloc(length))
  const turn = async (times: number): Promise<void> => {
    for (let i = 0; i < times; i++) await new Promise(resolve => setImmediate(resolve))
  }
  await turn(500)
  mock.timers.tick(9_000)
  release.open()
  t.equal((await slow.answer).status, 202)
  t.equal(stored, length, 'a slow reader gets everything')
  t.same(warnings, [])

  release = gate()
  const stopped = upload(port, '/stopped', length)
  stopped.request.end(Buffer.alloc(length))
  const answered = gate()
  stopped.answer.then(answered.open, () => {})
  await turn(500)
  t.equal(answered.opened, false, 'no more than 16 MiB wait in memory')
  while (!answered.opened) {
    mock.timers.tick(5_000)
    await turn(50)
  }
  t.equal((await stopped.answer).status, 202)
  t.match(warnings.join(), /the reader of the request body has stopped/)
  release.open()
  const retry = upload(port, '/stopped', length)
  retry.request.end(Buffer.alloc(length))
  t.equal((await retry.answer).replayed, true)
})

for (const mode of MODES) {
  t.test(`G6: a raw reply that is over before the upload settles once, when the upload is whole (${mode})`, async t => {
    const events = listen(t, 'unreplayable')
    const renewed = gate()
    const { app, port } = await start(t, mode, {
      options: { lease: 120 },
      before: streams,
      routes: app => app.post('/', (_request, reply) => {
        reply.hijack()
        reply.raw.end('raw')
      })
    })
    const { store } = app.idempotency
    const renew = store.renew.bind(store)
    let renewals = 0
    store.renew = (...args) => {
      if (++renewals === 3) renewed.open()
      return renew(...args)
    }
    const raw = upload(port, '/', 8)
    raw.request.write('half')
    t.equal((await raw.answer).text, 'raw')
    await renewed.promise
    t.same(events, [])
    raw.request.end('more')
    await until(
      async () => (await app.idempotency.inspect({ key: '/' }))?.state === 'completed', 'the end of the upload'
    )
    await new Promise(resolve => setTimeout(resolve, 50))
    t.equal(events.length, 1)
  })
}

for (const mode of STORES) {
  t.test(`G4, G13: a failure may stream the request's own body (${mode})`, async t => {
    const { port } = await start(t, mode, {
      ...(mode === 'memory'
        ? {
            options: { store: faulty({ release: async () => await new Promise(resolve => setImmediate(resolve)) }) }
          }
        : {}),
      before: streams,
      routes: app => app.post('/', (request, reply) => { reply.code(503).send(request.body) })
    })
    for (let i = 0; i < 2; i++) {
      const echoed = upload(port, '/', 300_000)
      echoed.request.end(Buffer.alloc(300_000, 'x'))
      t.same([(await echoed.answer).status, (await echoed.answer).text], [503, 'x'.repeat(300_000)])
    }
  })
}

t.test('G8, G14: a body beyond the bodyLimit is neither held for a fingerprint function nor compared', async t => {
  const { port } = await start(t, 'memory', {
    options: { store: new MemoryStore() },
    fastify: { bodyLimit: 1_000 },
    before: streams,
    routes: app => {
      const config = { idempotency: { fingerprint: (_request: unknown, body: Buffer) => body.subarray(0, 4) } }
      app.post('/', { config }, async request => {
        let length = 0
        for await (const chunk of bodyOf(request)) length += chunk.length
        return { length }
      })
    }
  })
  const send = async (body: Buffer): Promise<Answer> => {
    const { request, answer } = upload(port, '/', body.length)
    request.end(body)
    return await answer
  }
  t.equal((await send(Buffer.alloc(1_000))).status, 200)
  t.equal((await send(Buffer.alloc(900))).replayed, true, 'the same fingerprint')
  const refused = await send(Buffer.alloc(200_000))
  t.same([refused.status, refused.json().code], [413, 'FST_ERR_CTP_BODY_TOO_LARGE'])
  t.equal((await send(Buffer.alloc(900))).replayed, true)
})

t.test('G8: with a fingerprint function, a first body beyond the bodyLimit is like no other', async t => {
  const { port } = await start(t, 'memory', {
    fastify: { bodyLimit: 1_000 },
    before: streams,
    routes: app => app.post('/', { config: { idempotency: { fingerprint: () => 'same' } } }, async request => {
      let length = 0
      for await (const chunk of bodyOf(request)) length += chunk.length
      return { length }
    })
  })
  const send = async (length: number): Promise<Answer> => {
    const { request, answer } = upload(port, '/', length)
    request.end(Buffer.alloc(length))
    return await answer
  }
  t.same((await send(100_000)).json(), { length: 100_000 })
  t.equal((await send(100_000)).status, 413)
  t.equal((await send(10)).json().code, 'idempotency_key_mismatch')
})

for (const mode of STORES) {
  t.test(`G6: an option that fails with a 4xx while the upload is still coming holds no key (${mode})`, async t => {
    const refused = Object.assign(new Error('not that'), { statusCode: 422 })
    for (const name of ['fingerprint', 'replayHeaders'] as const) {
      const replied = gate()
      const { app, port } = await start(t, mode, {
        options: { [name]: () => { throw refused } },
        before: streams,
        routes: app => app.post('/', async (_request, reply) => {
          reply.code(202).send({ accepted: true })
          replied.open()
        })
      })
      const { request, answer } = upload(port, '/', 8)
      request.write('half')
      await replied.promise
      request.end('more')
      const { status } = await answer
      t.ok(status === 422 || status === 202, `${name}: ${status}`)
      const state = async (): Promise<string | undefined> => (await app.idempotency.inspect({ key: '/' }))?.state
      await until(async () => await state() !== 'held', `${name}: the end`)
      t.equal(await state(), 'completed', `${name}: it has run, and does not run again`)
    }
  })
}
