import t from 'tap'
import type { IdempotencyRouteOptions } from '../lib/index.ts'
import { MODES, start, stopRedis, STORES, type Mode } from './fixtures/app.ts'
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
