import type { Readable } from 'node:stream'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import type { IdempotencyRouteOptions } from '../lib/index.ts'
import { MODES, start, stopRedis, STORES, until, type Answer, type Mode } from './fixtures/app.ts'
import { stateOf } from './fixtures/cut.ts'

/** Functions among the options that fail: before the handler, aloud, and for whatever they throw. */

t.teardown(stopRedis)

/** Throws what is no error, as plain JavaScript may. */
const fling = (thing: unknown): never => { throw thing }
const reject = async (thing?: unknown): Promise<never> => await Promise.resolve().then(() => fling(thing))
const { proxy, revoke } = Proxy.revocable({}, {})
revoke()

/** Each way of a function to fail. */
const FAILURES: Record<string, () => unknown> = {
  'throws an error': () => fling(new Error('broken')),
  'throws nothing': () => fling(undefined),
  'throws null': () => fling(null),
  'throws an object without a text': () => fling(Object.create(null)),
  'throws a proxy that was revoked': () => fling(proxy),
  'rejects with nothing': () => reject(),
  'rejects with null': () => reject(null),
  'rejects with an error': () => reject(new Error('broken')),
  'answers a thenable that throws nothing': () => ({ then: () => fling(undefined) }),
  'answers a thenable that rejects with nothing': () => ({ then: (_: unknown, rejected: () => void) => rejected() }),
  'answers a thenable that cannot be asked': () => Object.defineProperty({}, 'then', { get: () => fling(undefined) }),
  'answers a proxy that fails': () => new Proxy({}, { get: () => fling(new Error('broken')) }),
  'answers a proxy that was revoked': () => proxy,
  'answers a symbol': () => Symbol('broken'),
  'answers an object': () => ({}),
  'answers a number': () => 7
}
const STAGES = ['onRequest', 'preParsing', 'preValidation', 'preHandler'] as const
const stagesOf = (mode: Mode): ReadonlyArray<(typeof STAGES)[number]> => STAGES.slice(0, mode.endsWith('first') ? 3 : 4)

for (const mode of MODES) {
  for (const option of ['scope', 'key', 'fingerprint'] as const) {
    t.test(`G1, G6: the option "${option}" fails: a 500, and the handler does not run (${mode})`, async t => {
      let runs = 0
      const rows = Object.keys(FAILURES).flatMap(what => stagesOf(mode).map(hook => {
        return { what, hook, path: `/${hook}/${what.replaceAll(' ', '-')}` }
      }))
      const served = await start(t, mode, {
        routes: app => {
          for (const { what, hook, path } of rows) {
            const config = { hook, [option]: FAILURES[what] } as IdempotencyRouteOptions
            app.post(path, { config: { idempotency: config } }, async () => `run ${++runs}`)
          }
        }
      })
      await Promise.all(rows.map(async ({ what, hook, path }) => {
        for (const which of ['the first', 'the retry']) {
          const { status, text } = await served.post(path, '{}', { path })
          t.equal(status, 500, `${what}, ${hook}: ${which}; ${text}`)
        }
        t.not(await stateOf(served, path), 'held', `${what}, ${hook}: the key is free`)
      }))
      t.equal(runs, 0)
    })
  }

  t.test(`G1: a fingerprint that fails for a while leaves no trace: the next request runs, once (${mode})`, async t => {
    let [runs, fails] = [0, true]
    const order: string[] = []
    const fingerprint = (): string => {
      order.push('fingerprint')
      if (fails) throw new Error('not now')
      return 'same'
    }
    const { post } = await start(t, mode, {
      routes: app => {
        app.post('/', { config: { idempotency: { fingerprint } } }, async () => {
          order.push('handler')
          return `run ${++runs}`
        })
      }
    })
    t.equal((await post('k', '{}')).status, 500)
    fails = false
    t.same([(await post('k', '{}')).text, (await post('k', '{}')).replayed, runs], ['run 1', true, 1])
    t.same(order.slice(0, 3), ['fingerprint', 'fingerprint', 'handler'])
  })
}

for (const mode of MODES) {
  t.test(`G1, G6: a fingerprint that fails for the reply of a hook: a 500, and the key is free (${mode})`, async t => {
    let [runs, fails] = [0, true]
    const fingerprint = (): string => {
      if (fails) throw new Error('broken')
      return 'same'
    }
    const served = await start(t, mode, {
      before: app => app.addHook('preHandler', async (_request, reply) => await reply.send('by a hook')),
      routes: app => app.post('/', { config: { idempotency: { fingerprint } } }, async () => `run ${++runs}`)
    })
    t.match(await served.post('k', '{}'), { status: 500, text: /broken/ })
    t.equal(await stateOf(served, 'k'), 'freed')
    fails = false
    for (const replayed of [false, true]) {
      t.match(await served.post('k', '{}'), { status: 200, text: 'by a hook', replayed })
    }
    t.equal(runs, 0)
  })
}

/** The handler gets the stream itself, and may reply before it is read. */
const passStream = (app: FastifyInstance): unknown => app.addContentTypeParser(
  'application/octet-stream', (_request, payload, done) => { done(null, payload) }
)

for (const mode of MODES) {
  t.test(`G1: a fingerprint that fails once the handler has read the body: kept, and told (${mode})`, async t => {
    let [runs, fails] = [0, true]
    const lines: string[] = []
    const fingerprint = (_request: unknown, body: Buffer): string => {
      if (fails) throw new Error('broken')
      return body.toString()
    }
    const { call } = await start(t, mode, {
      fastify: { logger: { stream: { write: (line: string) => { lines.push(line) } } } },
      before: passStream,
      routes: app => {
        app.post('/read', { config: { idempotency: { fingerprint } } }, async request => {
          const chunks = await (request.body as Readable).toArray()
          return `run ${++runs} of ${Buffer.concat(chunks as Buffer[]).length}`
        })
        app.post('/stream', { config: { idempotency: { fingerprint } } }, async request => {
          runs++
          return request.body
        })
      }
    })
    const headers = { 'content-type': 'application/octet-stream' }
    for (const path of ['/read', '/stream']) {
      const post = async (): Promise<Answer> => await call(
        { path, body: 'four', headers: { ...headers, 'idempotency-key': path } }
      )
      runs = 0
      fails = true
      const first = await post()
      t.same([first.status, first.text], [200, path === '/read' ? 'run 1 of 4' : 'four'])
      const told = lines.splice(0).filter(line => line.includes('"fingerprint\\" has failed after the handler'))
      t.equal(told.length, 1, path)
      fails = false
      const retry = await post()
      t.same([retry.text, retry.replayed, runs], [first.text, true, 1], path)
    }
  })

  t.test(`G1, G6: replayHeaders that fail before the body has come: a 500, the key settled (${mode})`, async t => {
    let fails = true
    const replayHeaders = (name: string): boolean => {
      if (fails) throw new Error('broken')
      return name === 'x-none'
    }
    const served = await start(t, mode, {
      before: passStream,
      routes: app => app.post('/', { config: { idempotency: { replayHeaders } } }, async (_request, reply) => {
        return await reply.header('x-own', 'yes').send('early')
      })
    })
    // More than one chunk: the reply comes before the last.
    const upload = Array<string>(20).fill('x'.repeat(65_536))
    const headers = { 'content-type': 'application/octet-stream', 'idempotency-key': 'k' }
    const post = async (): Promise<Answer> => await served.call({ body: upload, headers })
    t.match(await post(), { status: 500, text: /broken/ })
    t.equal(await stateOf(served, 'k'), 'freed')
    fails = false
    t.same([(await post()).text, (await post()).replayed], ['early', true])
  })
}

for (const mode of MODES) {
  t.test(`G1: a fingerprint that fails for a retry under a bound key: a 500, nothing runs (${mode})`, async t => {
    let [runs, fails] = [0, false]
    const fingerprint = (): string => {
      if (fails) throw new Error('broken')
      return 'same'
    }
    const stages = stagesOf(mode)
    const { post } = await start(t, mode, {
      routes: app => {
        for (const hook of stages) {
          app.post(`/${hook}`, { config: { idempotency: { hook, fingerprint } } }, async (request, reply) => {
            runs++
            await request.idempotency.step('one', () => 1)
            return await reply.code(request.idempotency.attempt === 1 ? 503 : 200).send('ran')
          })
        }
      }
    })
    for (const hook of stages) {
      runs = 0
      fails = false
      t.equal((await post(hook, '{}', { path: `/${hook}` })).status, 503, hook)
      fails = true
      t.match(await post(hook, '{}', { path: `/${hook}` }), { status: 500, text: /broken/ }, hook)
      t.equal(runs, 1, hook)
      fails = false
      t.equal((await post(hook, '{}', { path: `/${hook}` })).text, 'ran', hook)
    }
  })
}

for (const mode of MODES) {
  t.test(`G1: thenables among the answers are asked once, and answer once (${mode})`, async t => {
    let [runs, asked] = [0, 0]
    const answers = <T>(value: T) => () => ({
      then (fulfilled: (value: T) => void, rejected: (error: Error) => void) {
        asked++
        fulfilled(value)
        fulfilled(value)
        rejected(new Error('too late'))
      }
    }) as unknown as Promise<T>
    const { post } = await start(t, mode, {
      routes: app => {
        const config = { idempotency: { key: answers('one'), scope: answers('mine') } }
        app.post('/', { config }, async () => `run ${++runs}`)
      }
    })
    t.same([(await post('k', '{}')).text, asked], ['run 1', 2])
    const retry = await post('other', '{}')
    t.same([retry.text, retry.replayed, runs, asked], ['run 1', true, 1, 4])
  })
}

for (const mode of STORES) {
  t.test(`a form of errors that answers with a promise is an error itself, and harms nobody (${mode})`, async t => {
    for (const errors of [() => reject(), async () => await Promise.resolve('late')]) {
      const { post } = await start(t, mode, {
        options: { errors: () => errors() as unknown, required: true },
        routes: app => app.post('/', async () => 'ran')
      })
      t.match(await post(undefined, '{}'), { status: 500, text: /option \\"errors\\" must be/ })
      t.same((await post('k', '{}')).text, 'ran')
      t.match(await post('k', '{"other":1}'), { status: 500, text: /option \\"errors\\" must be/ })
    }
  })
}

/** A plain function that answers with a promise: nothing tells before it is called. */
const LATE: Record<string, (answer: unknown) => unknown> = {
  'a promise': async answer => await Promise.resolve(answer),
  'a promise that rejects': () => reject(new Error('nobody hears it')),
  'a thenable': answer => ({ then: (fulfilled: (answer: unknown) => void) => fulfilled(answer) })
}

for (const mode of MODES) {
  for (const [what, late] of Object.entries(LATE)) {
    t.test(`G4: a cacheable that answers with ${what} is an error, and never true (${mode})`, async t => {
      let runs = 0
      const cacheable = (status: number): boolean => late(status < 500) as boolean
      const served = await start(t, mode, {
        routes: app => app.post('/', { config: { idempotency: { cacheable } } }, async (_request, reply) => {
          return await reply.code(500).send(`run ${++runs}`)
        })
      })
      const first = await served.post('k', '{}')
      t.match(first, { status: 500, text: /option .*"cacheable.*" must be a function that answers at once, got a pro/ })
      await until(async () => await stateOf(served, 'k') === 'completed', 'the end')
      const retry = await served.post('k', '{}')
      t.match(retry, { status: 409, replayed: false })
      t.match(retry.json(), { code: 'idempotency_response_unavailable', message: /status 500/ })
      t.equal(runs, 1, 'nobody knows whether it was an outcome')
    })

    t.test(`G13: replayHeaders that answer with ${what} are an error, and keep nothing (${mode})`, async t => {
      const replayHeaders = (name: string): boolean => late(name !== 'set-cookie') as boolean
      const { post } = await start(t, mode, {
        routes: app => app.post('/', { config: { idempotency: { replayHeaders } } }, async (_request, reply) => {
          return await reply.header('set-cookie', 'sid=secret').send('ran')
        })
      })
      for (const which of ['the first', 'the retry']) {
        const answer = await post('k', '{}')
        t.match(answer, { status: 500, replayed: false, text: /option .*"replayHeaders.*" must be a function/ }, which)
      }
    })

    t.test(`docsUrl that answers with ${what} is an error itself (${mode})`, async t => {
      const { post } = await start(t, mode, {
        options: { docsUrl: () => late('https://docs.example.com') as string, required: true },
        routes: app => app.post('/', async () => 'ran')
      })
      t.match(await post(undefined, '{}'), { status: 500, text: /option .*"docsUrl.*" must be a function that an/ })
    })
  }
}
