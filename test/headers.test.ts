import type { AddressInfo } from 'node:net'
import fc from 'fast-check'
import Fastify, { type FastifyInstance, type FastifyReply } from 'fastify'
import t from 'tap'
import { lines, MODES, send, start, stopRedis, storeOptions, STORES, type Answer } from './fixtures/app.ts'
import { startHttp2, type Http2Answer } from './fixtures/http2.ts'
import { wrapped } from './fixtures/wrapped-store.ts'

/** Whatever stands in a header: nothing of it can be taken for another header, or for a body. */

t.teardown(stopRedis)

const INJECTION = 'a\r\nx-injected: yes\r\n\r\ninjected body'
const UNSENDABLE: Record<string, (reply: FastifyReply) => void> = {
  'a line break': reply => reply.header('x-evil', INJECTION),
  'a line feed': reply => reply.header('x-evil', 'a\nx-injected: yes'),
  'a line break in the second line': reply => reply.header('x-evil', ['a', INJECTION]),
  'a NUL': reply => reply.header('x-evil', 'a\0b'),
  'what is not latin-1': reply => reply.header('x-evil', 'a\u010ax-injected: yes'),
  'a line break in its name': reply => reply.header('x-evil: a\r\nx-injected', 'yes')
}

function unsendable (app: FastifyInstance): void {
  Object.values(UNSENDABLE).forEach((prepare, index) => app.post(`/${index}`, (_request, reply) => {
    prepare(reply)
    reply.header('x-sound', 'yes').send('sound')
  }))
}

for (const mode of MODES) {
  t.test(`G6, G13: a header that cannot be sent is a 500, and no replay ever has it (${mode})`, async t => {
    let meanwhile: (() => Promise<void>) | undefined
    const options = await wrapped(mode, inner => ({
      async release (...args) {
        await meanwhile?.()
        return await inner.release(...args)
      }
    }))
    const { app, post } = await start(t, mode, { options, routes: unsendable })
    for (const [index, what] of Object.keys(UNSENDABLE).entries()) {
      const path = `/${index}`
      const between: Answer[] = []
      meanwhile = async () => { between.push(await post(path, '{}', { path })) }
      const first = await post(path, '{}', { path })
      t.equal(first.status, 500, what)
      t.same(between.map((
        { status, replayed }
      ) => [status, replayed]), [[409, false]], `${what}: a duplicate before the key is free`)
      for (const answer of [first, ...between]) {
        t.equal(answer.headers['x-injected'], undefined, what)
        t.notMatch(answer.text, 'injected body', what)
      }
      t.equal((await app.idempotency.inspect({ key: path }))?.state, 'freed', what)
    }
  })
}

/** A reply's headers by name, made of what is dangerous and of anything else. */
const VALUE = fc.oneof(
  fc.string({ unit: fc.constantFrom(...'aB1:;,=" \t\r\n\0\x7f\x80\xe9\xff\u010a\u20ac\ud83d') }),
  fc.string({ unit: fc.constantFrom(...'12:=ab \xe9') }),
  fc.string({ unit: 'binary' })
)
const HEADERS = fc.dictionary(
  fc.string({ unit: fc.constantFrom(...'abc-'), minLength: 1, maxLength: 6 }).map(name => `x-${name}`),
  fc.oneof(VALUE, fc.array(VALUE, { minLength: 1, maxLength: 3 })),
  { maxKeys: 4 }
)
type Headers = Record<string, string | string[]>

for (const mode of STORES) {
  t.test(`G13: whatever its headers, a replay has those that bare Fastify sends (${mode})`, async t => {
    let given: Headers = {}
    const routes = (app: FastifyInstance): void => {
      app.post('/', (_request, reply) => { reply.headers(given).send('body') })
    }
    const bare = Fastify()
    routes(bare)
    await bare.listen({ port: 0, host: '127.0.0.1' })
    t.teardown(async () => await bare.close())
    const { port } = bare.server.address() as AddressInfo
    const { post } = await start(t, mode, { routes })
    let count = 0
    await fc.assert(fc.asyncProperty(HEADERS, async headers => {
      given = headers
      const key = `k${count++}`
      const [expected, first, retry] = [await send(port, { body: '{}' }), await post(key, '{}'), await post(key, '{}')]
      const brief = (answer: Answer): unknown[] => [answer.status, answer.text, lines(answer)]
      if (JSON.stringify(brief(first)) !== JSON.stringify(brief(expected))) return false
      return JSON.stringify(brief(retry)) === JSON.stringify(brief(first)) && retry.replayed === (first.status === 200)
    }), { numRuns: 300 })
  })

  t.test(`G13: over HTTP/2 as well: what Node.js leaves out is not in a replay (${mode})`, async t => {
    let given: Headers = {}
    const routes = (app: FastifyInstance): void => {
      app.post('/any', (_request, reply) => { reply.headers(given).send('body') })
      unsendable(app)
    }
    const bare = await startHttp2(t, undefined, routes)
    const { post } = await startHttp2(t, await storeOptions(mode), routes)
    for (const [index, what] of Object.keys(UNSENDABLE).entries()) {
      const path = `/${index}`
      const expected = await answerOf(bare.post(undefined, path))
      t.same(await answerOf(post(path, path)), expected, what)
      const retry = await answerOf(post(path, path))
      // A NUL ends the stream. The retry gets the response without it.
      if (expected === CUT) {
        t.match(
          retry,
          { status: 200, text: 'sound', replayed: true, headers: { 'x-evil': undefined, 'x-sound': 'yes' } }, what
        )
      } else t.same(retry, { ...expected, replayed: expected.status === 200 }, `${what}: the retry`)
    }
    let count = 0
    await fc.assert(fc.asyncProperty(HEADERS, async headers => {
      given = headers
      const key = `k${count++}`
      const expected = await answerOf(bare.post(undefined, '/any'))
      t.same(await answerOf(post(key, '/any')), expected)
      const retry = await answerOf(post(key, '/any'))
      if (expected !== CUT) t.same(retry, { ...expected, replayed: expected.status === 200 })
      return t.passing()
    }), { numRuns: 200 })
  })
}

const CUT = { status: 0, headers: {}, body: Buffer.alloc(0), text: '', replayed: false }

async function answerOf (answer: Promise<Http2Answer>): Promise<Http2Answer> {
  return await answer.catch(() => CUT)
}
