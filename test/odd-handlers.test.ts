import { inspect } from 'node:util'
import { Readable } from 'node:stream'
import type { FastifyRequest } from 'fastify'
import t from 'tap'
import { gate, MODES, start, stopRedis, STORES, until } from './fixtures/app.ts'

/** What handlers, parsers and loggers may do that is odd: nothing of it shows what is kept, or breaks a request. */

t.teardown(stopRedis)

/** Everything that a logger could find: also what is not enumerable, and behind getters. */
function everything (value: unknown, depth = 0, seen = new Set<unknown>()): string {
  if (typeof value !== 'object' || value === null || seen.has(value) || depth > 4) return String(value)
  seen.add(value)
  const texts: string[] = []
  for (const name of Reflect.ownKeys(value)) {
    const { get } = Object.getOwnPropertyDescriptor(value, name) ?? {}
    const found: unknown = get === undefined ? Reflect.get(value, name) : get.call(value)
    texts.push(`${String(name)}: ${everything(found, depth + 1, seen)}`)
  }
  return texts.join('\n')
}

for (const mode of MODES) {
  t.test(`G11: request.idempotency shows a logger id, attempt and replayed, nothing kept (${mode})`, async t => {
    const shown: string[] = []
    const { post } = await start(t, mode, {
      before: app => {
        app.addHook('onResponse', (request, _reply, done) => {
          shown.push(everything(request.idempotency), inspect(request, { depth: 6 }), inspect(
            request, { depth: 6, showHidden: true }
          ))
          t.same(Object.keys(request.idempotency).sort(), ['attempt', 'id', 'replayed'])
          t.same(
            Object.keys(JSON.parse(JSON.stringify(request.idempotency)) as object).sort(), ['attempt', 'id', 'replayed']
          )
          done()
        })
      },
      routes: app => app.post('/', async () => Buffer.from('kept body'))
    })
    t.match(await post('k', '{}'), { replayed: false })
    t.match(await post('k', '{}'), { replayed: true })
    t.equal(shown.length, 6)
    const bytes = Buffer.from('kept body').toString('hex', 0, 4).match(/../g)?.join(' ') ?? ''
    for (const text of shown) {
      t.notMatch(text, 'kept body')
      t.notOk(text.includes(bytes), 'not as bytes either')
    }
  })

  t.test(`G1, G6: a handler that overwrites request.idempotency harms itself alone (${mode})`, async t => {
    let runs = 0
    const { app, post } = await start(t, mode, {
      routes: app => app.post('/', async (request, reply) => {
        runs++
        const writable = request as { idempotency: unknown }
        for (const value of [null, undefined, 5, {}]) {
          try {
            writable.idempotency = value
          } catch {}
        }
        return await reply.code(201).send('done')
      })
    })
    t.match(await post('k', '{}'), { status: 201, text: 'done' })
    t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, 'completed')
    t.match(await post('k', '{}'), { status: 201, text: 'done', replayed: true })
    t.equal(runs, 1)
  })

  t.test(`G4: keep and release work when they are taken off the object (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      routes: app => {
        app.post('/keep', async ({ idempotency: { keep } }: FastifyRequest, reply) => {
          runs++
          keep()
          return await reply.code(500).send('kept')
        })
        app.post('/release', async ({ idempotency: { release } }: FastifyRequest) => {
          release()
          return `run ${++runs}`
        })
      }
    })
    t.match(await post('k', '{}', { path: '/keep' }), { status: 500, text: 'kept' })
    t.match(await post('k', '{}', { path: '/keep' }), { status: 500, text: 'kept', replayed: true })
    t.match(await post('r', '{}', { path: '/release' }), { text: 'run 2' })
    t.match(await post('r', '{}', { path: '/release' }), { text: 'run 3', replayed: false })
    t.match(await post(undefined, '{}', { path: '/release' }), { text: 'run 4' }, 'without a key they do nothing')
  })

  t.test(`G13: a fractional status is replayed as Node.js sends it (${mode})`, async t => {
    let runs = 0
    const { app, post } = await start(t, mode, {
      routes: app => {
        app.post('/value', async (_request, reply) => await reply.code(201.7).send(`run ${++runs}`))
        app.post('/stream', async (_request, reply) => await reply.code(201.7).send(Readable.from([`run ${++runs}`])))
        app.post('/hijacked', (_request, reply) => {
          runs++
          reply.hijack().raw.writeHead(202.5).end('raw')
        })
      }
    })
    for (const path of ['/value', '/stream']) {
      const first = await post(path, '{}', { path })
      t.match(first, { status: 201, replayed: false })
      t.match(await post(path, '{}', { path }), { status: 201, text: first.text, replayed: true })
      t.equal((await app.idempotency.inspect({ key: path }))?.status, 201)
    }
    t.match(await post('h', '{}', { path: '/hijacked' }), { status: 202 })
    t.match(await post('h', '{}', { path: '/hijacked' }), { status: 409 })
    t.equal(runs, 3)
  })

  t.test(`G8: a parser that puts text back, and reads it once more, changes nothing (${mode})`, async t => {
    const { post } = await start(t, mode, {
      before: app => app.addContentTypeParser('text/unshift', (_request, payload: Readable, done) => {
        payload.setEncoding('utf8')
        let all = ''
        payload.on('readable', () => {
          if (all === '') {
            const four = payload.read(4) as string | null
            if (four === null) return
            payload.unshift(four.slice(2))
            all = four.slice(0, 2)
          }
          all += (payload.read() as string | null) ?? ''
        })
        payload.on('end', () => done(null, all))
      }),
      routes: app => app.post('/', async request => request.body)
    })
    const headers = { 'content-type': 'text/unshift', 'idempotency-key': 'k' }
    t.match(await post('k', 'abcdef', { headers }), { status: 200, text: 'abcdef', replayed: false })
    t.match(await post('k', 'abcdef', { headers }), { status: 200, text: 'abcdef', replayed: true })
    for (const other of ['abcdefg', 'abcdcdef', 'abcd']) t.match(await post('k', other, { headers }), { status: 409 })
  })

  t.test(`G8: a parser that puts back what it has read changes nothing of what is compared (${mode})`, async t => {
    const { post } = await start(t, mode, {
      before: app => {
        app.addContentTypeParser('text/unshift', (_request, payload: Readable, done) => {
          let all = ''
          let puts = 0
          payload.on('readable', () => {
            for (let chunk = payload.read() as Buffer | null; chunk !== null; chunk = payload.read() as Buffer | null) {
              if (puts++ < 2 && chunk.length > 1) {
                const half = Math.ceil(chunk.length / 2)
                payload.unshift(chunk.subarray(half))
                chunk = chunk.subarray(0, half)
              }
              all += String(chunk)
            }
          })
          payload.on('end', () => done(null, all))
        })
      },
      routes: app => app.post('/', async request => request.body)
    })
    const headers = (key: string): Record<string, string> => (
      { 'content-type': 'text/unshift', 'idempotency-key': key }
    )
    for (const body of ['abcdef', 'x'.repeat(200_000)]) {
      const key = `k${body.length}`
      t.match(await post(key, body, { headers: headers(key) }), { status: 200, text: body, replayed: false })
      t.match(await post(key, body, { headers: headers(key) }), { status: 200, text: body, replayed: true })
      t.match(await post(key, `${body}y`, { headers: headers(key) }), { status: 409 })
    }
  })
}

for (const mode of STORES) {
  t.test(`G6, G8: a destroyed upload and a header that cannot be sent leave the key free (${mode})`, async t => {
    const errors: string[] = []
    const sent = gate()
    let [runs, odd] = [0, true]
    const served = await start(t, mode, {
      before: app => app.addContentTypeParser('text/lazy', (_request, payload, done) => { done(null, payload) }),
      routes: app => app.post('/', {
        errorHandler: (error, _request, reply) => {
          errors.push(error.code)
          reply.removeHeader('x-bad').code(500).send('failed')
        }
      }, (request, reply) => {
        runs++
        const body = request.body as Readable
        if (odd) {
          body.on('error', () => {}).destroy()
          reply.raw.once('close', sent.open)
          reply.header('x-bad', 'a\u0100b').send('never')
        } else {
          body.resume().on('end', () => { reply.send('ok') })
        }
      })
    })
    const headers = { 'content-type': 'text/lazy', 'idempotency-key': 'k' }
    await t.rejects(served.call({ body: ['a', 'b'], headers }), { code: 'ECONNRESET' })
    await sent.promise
    await until(async () => (await served.app.idempotency.inspect({ key: 'k' }))?.state === 'freed', 'a free key')
    t.same(errors, ['ERR_INVALID_CHAR'], 'as without the plugin')
    odd = false
    t.same([(await served.call({ body: 'ab', headers })).text, runs], ['ok', 2])
  })
}
