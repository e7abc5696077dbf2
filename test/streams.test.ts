import { PassThrough, Readable, Stream } from 'node:stream'
import { setImmediate as turn } from 'node:timers/promises'
import type { FastifyReply } from 'fastify'
import t from 'tap'
import { failBehind, gate, lines, MODES, start, stopRedis } from './fixtures/app.ts'
import { startHttp2 } from './fixtures/http2.ts'
import { wrapped } from './fixtures/wrapped-store.ts'

/** The end of a streamed response: kept before it leaves, and only if it leaves. */

t.teardown(stopRedis)

interface Row { what: string, make: () => unknown, status?: number, length?: number }

const webOf = (...chunks: string[]): ReadableStream => new ReadableStream({
  start (controller) {
    for (const chunk of chunks) controller.enqueue(Buffer.from(chunk))
    controller.close()
  }
})
const bytesOf = (...chunks: string[]): Readable => Readable.from(chunks.map(chunk => Buffer.from(chunk)))

const ROWS: Row[] = [
  { what: 'two chunks', make: () => bytesOf('a', 'b') },
  { what: 'an empty last chunk', make: () => bytesOf('a', '') },
  { what: 'an empty last chunk, of a known length', make: () => bytesOf('a', ''), length: 1 },
  { what: 'empty chunks alone', make: () => bytesOf('', '') },
  { what: 'no chunk', make: () => bytesOf() },
  { what: 'an empty last text', make: () => Readable.from(['a', '']) },
  { what: 'a web stream with an empty last chunk', make: () => webOf('a', 'b', '') },
  { what: 'a web stream of nothing', make: () => webOf() },
  { what: 'a Response with an empty last chunk', make: () => new Response(webOf('a', '')) },
  ...[204, 205, 304].flatMap(status => [
    { what: `a ${status} with a stream`, status, make: () => bytesOf('a', 'b') },
    { what: `a ${status} with an empty stream`, status, make: () => bytesOf() },
    { what: `a ${status} with a web stream`, status, make: () => webOf('a', 'b') }
  ])
]

/** Counts what has left of each reply's body, so that the store can be asked how much was left when it was. */
function counting (reply: FastifyReply): () => { ended: boolean, written: number } {
  const { raw } = reply
  let written = 0
  const write = raw.write.bind(raw) as (...args: unknown[]) => boolean
  raw.write = (...args: unknown[]): boolean => {
    written += Buffer.byteLength(args[0] as Buffer)
    return write(...args)
  }
  return () => ({ ended: raw.writableEnded || (raw.headersSent && [204, 304].includes(raw.statusCode)), written })
}

for (const mode of MODES) {
  t.test(`G3, G13: a stream is kept before its last byte leaves, whatever chunk and status (${mode})`, async t => {
    let left: ReturnType<typeof counting> = () => ({ ended: false, written: 0 })
    const seen: Array<ReturnType<typeof left>> = []
    const options = await wrapped(mode, inner => ({
      async complete (...args) {
        for (let i = 0; i < 5; i++) await turn()
        seen.push(left())
        return await inner.complete(...args)
      }
    }))
    const { post } = await start(t, mode, {
      options,
      routes: app => ROWS.forEach(({ make, status = 200, length }, index) => {
        app.post(`/${index}`, (_request, reply) => {
          left = counting(reply)
          if (length !== undefined) reply.header('content-length', length)
          reply.code(status).send(make())
        })
      })
    })
    for (const [index, { what }] of ROWS.entries()) {
      const path = `/${index}`
      const first = await post(path, '{}', { path })
      const [{ ended, written } = { ended: true, written: 0 }] = seen.splice(0)
      t.notOk(ended, `${what}: not over before it is kept`)
      t.ok(written < first.body.length || first.body.length === 0, `${what}: the last byte waits`)
      const retry = await post(path, '{}', { path })
      t.match(retry, { status: first.status, text: first.text, replayed: true }, `${what}: the retry`)
      t.same(lines(retry), lines(first), `${what}: the header`)
    }
  })

  t.test(`G4: a stream that a later hook turns into a failure frees the key, whenever it ends (${mode})`, async t => {
    let runs = 0
    let ended = gate()
    let asked = gate()
    let failed = gate()
    const options = await wrapped(mode, inner => ({
      async complete (...args) {
        asked.open()
        await turn()
        return await inner.complete(...args)
      }
    }))
    const moments: Record<string, () => Promise<void>> = {
      'before the stream has ended': async () => failed.open(),
      'while the store is asked': async () => await asked.promise,
      'after it was kept': async () => {
        await ended.promise
        for (let i = 0; i < 5; i++) await turn()
      }
    }
    const { app, post } = await start(t, mode, {
      options,
      routes: app => {
        let moment = ''
        failBehind(app, async () => await moments[moment]?.())
        app.post('/:moment', { onSend: (_request, _reply, _payload, done) => done() }, (request, reply) => {
          runs++;
          [ended, asked, failed] = [gate(), gate(), gate()]
          moment = (request.params as { moment: string }).moment
          const stream = Readable.from((async function * () {
            yield 'a'
            if (moment === 'before the stream has ended') await failed.promise
            yield 'b'
          })())
          stream.on('end', ended.open)
          reply.send(stream)
        })
      }
    })
    for (const moment of Object.keys(moments)) {
      runs = 0
      for (const count of [1, 2]) {
        t.match(
          await post(moment, '{}', { path: `/${encodeURIComponent(moment)}` }), { status: 500, replayed: false }, moment
        )
        for (let i = 0; i < 10; i++) await turn()
        t.equal((await app.idempotency.inspect({ key: moment }))?.state, 'freed', moment)
        t.equal(runs, count, `${moment}: each retry runs`)
      }
    }
  })

  t.test(`G6: a stream that fails while its reply waits for the store leaves the process alive (${mode})`, async t => {
    let stream: Readable | undefined
    const options = await wrapped(mode, inner => ({
      async release (...args) {
        stream?.destroy(new Error('on purpose'))
        await turn()
        return await inner.release(...args)
      },
      async complete (...args) {
        stream?.destroy(new Error('on purpose'))
        await turn()
        return await inner.complete(...args)
      }
    }))
    const { app, post } = await start(t, mode, {
      options,
      routes: app => app.post('/:status', (request, reply) => {
        stream = new PassThrough()
        reply.code(Number((request.params as { status: string }).status)).send(stream)
      })
    })
    t.match(await post('f', '{}', { path: '/503' }), { status: 503 })
    t.equal((await app.idempotency.inspect({ key: 'f' }))?.state, 'freed')
    t.match(await post('empty', '{}', { path: '/204' }), { status: 204, text: '' })
    t.match(await post('unchanged', '{}', { path: '/304' }), { status: 500 }, 'as bare Fastify answers it')
    t.equal((await app.idempotency.inspect({ key: 'unchanged' }))?.state, 'freed')
  })

  t.test(`G2: the stream of a holder that has lost its key is let go (${mode})`, async t => {
    const streams: Readable[] = []
    let cancelled = 0
    const options = await wrapped(mode, inner => ({
      async release (key, ...rest) {
        await inner.remove(key)
        await inner.claim(key, { token: '0'.repeat(36), lease: 60_000, ttl: 60_000, takeover: true })
        return await inner.release(key, ...rest)
      }
    }))
    const { post } = await start(t, mode, {
      options,
      routes: app => {
        app.post('/', (_request, reply) => {
          const stream = new PassThrough()
          streams.push(stream)
          reply.code(503).send(stream)
        })
        app.post('/web', (_request, reply) => {
          reply.code(503).send(new ReadableStream({
            async cancel () {
              cancelled++
              throw new Error('on purpose')
            }
          }))
        })
      }
    })
    t.match(await post('k', '{}'), { status: 409 })
    t.equal(streams[0]?.destroyed, true)
    t.match(await post('web', '{}', { path: '/web' }), { status: 409 })
    t.equal(cancelled, 1)
  })

  t.test(`G13: an old stream that goes on while a failure waits for the store loses nothing (${mode})`, async t => {
    const options = await wrapped(mode, inner => ({
      async release (...args) {
        for (let i = 0; i < 5; i++) await turn()
        return await inner.release(...args)
      }
    }))
    const { post } = await start(t, mode, {
      options,
      routes: app => app.post('/', (_request, reply) => {
        const old = Object.assign(new Stream(), { readable: true, pause () {}, resume () {}, destroy () {} })
        setImmediate(() => {
          for (const [event, chunk] of [['data', 'old '], ['data', 'stream'], ['end'], ['close']] as const) {
            old.emit(event, chunk)
          }
        })
        reply.code(503).send(old)
      })
    })
    t.match(await post('k', '{}'), { status: 503, text: 'old stream' })
  })
}

for (const mode of MODES.filter(mode => !mode.endsWith('first'))) {
  t.test(`G3, G13: over HTTP/2, a stream is kept and replayed, whatever chunk and status (${mode})`, async t => {
    const options = await wrapped(mode, () => ({}))
    const { post } = await startHttp2(t, options, app => ROWS.forEach(({ make, status = 200, length }, index) => {
      app.post(`/${index}`, (_request, reply) => {
        if (length !== undefined) reply.header('content-length', length)
        reply.code(status).send(make())
      })
    }))
    for (const [index, { what }] of ROWS.entries()) {
      const path = `/${index}`
      const first = await post(path, path)
      t.same(await post(path, path), { ...first, replayed: true }, what)
    }
  })
}
