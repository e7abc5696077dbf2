import t from 'tap'
import { IdempotencyError, type IdempotencyErrorCode } from '../lib/index.ts'
import { listen } from './fixtures/faulty.ts'
import { MODES, start, STORES, stopRedis } from './fixtures/app.ts'

t.teardown(stopRedis)

const CODE = 'idempotency_outcome_unknown'
const refusal = (code: IdempotencyErrorCode = CODE): IdempotencyError => new IdempotencyError(
  code, 'Ask the provider.', { retryAfter: 7 }
)

for (const mode of MODES) {
  t.test(`an IdempotencyError of a handler has the route's form, and the key is free again (${mode})`, async t => {
    const handled: unknown[] = []
    const attempts: number[] = []
    const { post, app } = await start(t, mode, {
      before: app => {
        app.setErrorHandler(async (error: IdempotencyError, _request, reply) => {
          handled.push(error.code)
          return await reply.code(418).header('x-handler', '1').send({ mine: error.message })
        })
      },
      routes: app => {
        const fails = async (request: { idempotency: { attempt: number, keep: () => void } }): Promise<never> => {
          attempts.push(request.idempotency.attempt)
          request.idempotency.keep()
          throw refusal()
        }
        app.post('/envelope', fails)
        app.post('/problem', { config: { idempotency: { errors: 'problem' } } }, fails)
        app.post('/custom', { config: { idempotency: { errors: error => `oops ${error.code}` } } }, fails)
        app.post('/broken', { config: { idempotency: { errors: () => { throw new Error('no form') } } } }, fails)
        app.post('/throw', { config: { idempotency: { errors: 'throw' } } }, fails)
        app.post('/sync', () => { throw refusal('idempotency_store_unavailable') })
        app.post('/sent', (_request, reply) => { reply.header('x-late', '1').send(refusal()) })
        app.post('/returned', async () => refusal())
        app.post('/hook', { preHandler: async () => { throw refusal() } }, async () => 'ok')
      }
    })
    const abandoned = listen(t, 'abandoned')
    for (let run = 1; run <= 2; run++) {
      attempts.length = 0
      const envelope = await post('k', '{}', { path: '/envelope' })
      t.match(envelope.json(), { status: 'error', code: CODE, message: 'Ask the provider.', title: 'Outcome unknown' })
      t.same([envelope.status, envelope.headers['retry-after'], envelope.headers['x-handler']], [409, '7', undefined])
      t.equal(abandoned.at(-1)?.code, CODE)
      const problem = await post('p', '{}', { path: '/problem' })
      t.same(
        [problem.status, problem.headers['content-type'], problem.json().code], [409, 'application/problem+json', CODE]
      )
      t.equal((await post('c', '{}', { path: '/custom' })).text, `oops ${CODE}`)
      t.match((await post('b', '{}', { path: '/broken' })).json(), { message: 'no form' })
      const thrown = await post('t', '{}', { path: '/throw' })
      t.same([thrown.status, thrown.headers['x-handler'], thrown.headers['retry-after'], thrown.text], [
        418, '1', '7', '{"mine":"Ask the provider."}'
      ])
      t.same((await post('s', '{}', { path: '/sync' })).status, 503)
      const sent = await post('r', '{}', { path: '/sent' })
      t.same([sent.status, sent.headers['x-late'], sent.json().code], [409, undefined, CODE])
      t.same((await post('v', '{}', { path: '/returned' })).json().code, CODE)
      t.same((await post('h', '{}', { path: '/hook' })).json().code, CODE)
      t.same(attempts, [run, run, run, run, run])
    }
    for (const key of ['k', 'p', 'c', 'b', 't', 's', 'r', 'v']) {
      t.match(await app.idempotency.inspect({ key }), { state: 'freed', attempt: 2 })
    }
    t.equal(handled.filter(code => code === CODE).length, 16, 'the error handler sees them all')
  })
}

for (const mode of STORES) {
  t.test(`an IdempotencyError without a key, or without the store, has the route's form too (${mode})`, async t => {
    const { post } = await start(t, mode, {
      options: { onStoreError: 'bypass', storeTimeout: 1_000 },
      routes: app => {
        app.post('/', async (_request, reply) => {
          reply.header('x-mine', '1')
          throw refusal()
        })
        app.post('/out', { config: { idempotency: false } }, async () => { throw refusal() })
      }
    })
    const answer = await post(undefined, '{}')
    t.same([answer.status, answer.json().code, answer.headers['x-mine']], [409, CODE, '1'])
    t.match((await post(undefined, '{}', { path: '/out' })).json(), { statusCode: 409, code: CODE })
  })
}

t.test('an IdempotencyError of a request that runs past an absent store has the route\'s form too', async t => {
  const away = (): never => { throw new Error('away') }
  const { post } = await start(t, 'memory', {
    options: {
      onStoreError: 'bypass',
      closeTimeout: 100,
      store: { claim: away, renew: away, complete: away, release: away, read: away, remove: away }
    },
    routes: app => app.post('/', async () => { throw refusal() })
  })
  t.match((await post('k', '{}')).json(), { status: 'error', code: CODE })
})
