import type { FastifyInstance, FastifyRequest } from 'fastify'
import t from 'tap'
import { MODES, start, stopRedis } from './fixtures/app.ts'

/** Steps and derived keys in hooks that run before the plugin has given the request its state. */

t.teardown(stopRedis)

const EARLY = /request\.idempotency\.(step|keyFor) was used before the key is known; see the option .*hook/

for (const mode of MODES) {
  t.test(`G16: a step in onRequest of a request with a key is refused, and does not run (${mode})`, async t => {
    const charges: string[] = []
    const use = async (request: FastifyRequest): Promise<void> => {
      if (request.headers['x-use'] === 'keyFor') request.idempotency.keyFor('charge')
      else await request.idempotency.step('charge', () => { charges.push(request.url) })
    }
    const key = ({ headers }: FastifyRequest): string | undefined => headers['x-event'] as string | undefined
    const { call } = await start(t, mode, {
      before: app => app.addHook('onRequest', async request => {
        if (request.headers['x-where'] === 'instance') await use(request)
      }),
      routes: app => {
        const onRequest = async (request: FastifyRequest): Promise<void> => {
          if (request.headers['x-where'] === 'route') await use(request)
        }
        const handler = async (): Promise<string> => 'ran'
        app.post('/', { onRequest }, handler)
        app.post('/out', { onRequest, config: { idempotency: false } }, handler)
        app.post('/event', { onRequest, config: { idempotency: { key, hook: 'preParsing' } } }, handler)
        app.get('/', { onRequest }, handler)
      }
    })
    for (const where of ['instance', 'route']) {
      const headers = { 'x-where': where }
      for (const use of ['step', 'keyFor']) {
        const refused = { status: 500, text: EARLY }
        const more = { ...headers, 'x-use': use }
        for (const which of ['the first', 'the retry']) {
          t.match(await call({ key: `${where} ${use}`, headers: more }), refused, `${which}, ${where}, ${use}`)
        }
        t.match(await call({ path: '/event', headers: more }), refused, 'the function may find a key')
      }
      t.same(charges.splice(0), [], where)
      t.equal((await call({ headers })).text, 'ran', 'without a key')
      t.equal((await call({ key: where, headers, path: '/out' })).text, 'ran', 'opted out')
      t.equal((await call({ key: where, headers, method: 'GET' })).text, 'ran', 'GET')
      const missing = await call({ key: where, headers, path: '/none' })
      t.equal(missing.status, 404)
      t.same(charges.splice(0), ['/', '/out', '/', ...where === 'instance' ? ['/none'] : []], where)
    }
  })

  t.test(`a step of a request that turns out to have no key runs unrecorded (${mode})`, async t => {
    let runs = 0
    const { call } = await start(t, mode, {
      routes: (app: FastifyInstance) => {
        // For somebody else, to whom the request is passed on.
        const preHandler = async (request: FastifyRequest): Promise<void> => {
          request.headers['idempotency-key'] = request.idempotency.keyFor('passed on')
        }
        const handler = async (request: FastifyRequest): Promise<unknown> => {
          return { run: await request.idempotency.step('one', () => ++runs), key: request.idempotency.key }
        }
        app.post('/', { preHandler }, handler)
        app.post('/event', { config: { idempotency: { key: () => undefined } } }, handler)
      }
    })
    t.same((await call({})).json(), { run: 1, key: null })
    t.same((await call({ key: 'k', path: '/event' })).json(), { run: 2, key: null })
  })
}
