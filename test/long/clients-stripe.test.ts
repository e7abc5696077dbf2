import { randomUUID } from 'node:crypto'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import formbody from '@fastify/formbody'
import t, { type Test } from 'tap'
import { answerAsStripe, client as stripeClient, pay as payWithStripe } from '../../examples/client/stripe.ts'
import type { FastifyIdempotencyOptions, IdempotencyEvent } from '../../lib/index.ts'
import { gate } from '../fixtures/app.ts'
import { event, failure, startApi, startedFirst, type Api, type First } from '../fixtures/client-api.ts'

async function startStripe (
  t: Test, options: FastifyIdempotencyOptions = { errors: 'throw' }, first?: First
): Promise<Api> {
  return await startApi(t, first, options, app => {
    app.register(formbody)
    answerAsStripe(app)
  })
}

const form = {
  path: '/v1/charges',
  headers: {
    'content-type': 'application/x-www-form-urlencoded', authorization: 'Bearer sk_test_example'
  }
}

t.test('stripe-node: one execution and its answer, though responses are lost', async t => {
  const api = await startStripe(t)
  const { lastResponse } = await payWithStripe(stripeClient(await api.behind('before', 'before')), 1, randomUUID())
  t.match(lastResponse, { statusCode: 201, headers: { 'idempotent-replayed': 'true' } })
  t.equal(api.runs(), 1)
})

t.test('stripe-node: one execution without a key of yours too, but not when you make the call again', async t => {
  const api = await startStripe(t)
  const charge = { amount: 1, currency: 'eur' }
  t.match((await stripeClient(await api.behind('before')).charges.create(charge)).lastResponse.headers, {
    'idempotent-replayed': 'true'
  })
  t.equal(api.runs(), 1)
  const stripe = stripeClient(await api.behind('within'))
  t.match(await failure(stripe.charges.create(charge)), { type: 'StripeConnectionError' })
  t.equal(api.runs(), 2)
  await stripe.charges.create(charge)
  t.equal(api.runs(), 3)
})

t.test('stripe-node: a response cut within its body is an error; the same call with its key is answered', async t => {
  const api = await startStripe(t)
  const stripe = stripeClient(await api.behind('within'))
  const key = randomUUID()
  t.match(await failure(payWithStripe(stripe, 1, key)), { type: 'StripeConnectionError' })
  t.match((await payWithStripe(stripe, 1, key)).lastResponse.headers, { 'idempotent-replayed': 'true' })
  t.equal(api.runs(), 1)
})

t.test('stripe-node: waits for a first attempt that still runs, and gets its answer', async t => {
  const running = gate()
  const api = await startStripe(t, { errors: 'throw' }, async () => await running.promise)
  const key = randomUUID()
  const conflict = event('conflicted', key)
  const first = payWithStripe(stripeClient(api.url), 1, key)
  await startedFirst(api)
  const second = payWithStripe(stripeClient(api.url), 1, key)
  await conflict
  running.open()
  t.equal((await second).id, (await first).id)
  t.match((await second).lastResponse.headers, { 'idempotent-replayed': 'true' })
  t.equal(api.runs(), 1)
})

for (const errors of ['throw', 'envelope'] as const) {
  const outcome = errors === 'throw'
    ? 'an error, and not tried again'
    : 'tried again, and then taken for a success, unless it has a member `error`'
  t.test(`stripe-node: a mismatch is ${outcome}`, async t => {
    const api = await startStripe(t, { errors })
    const key = randomUUID()
    await api.post(key, 'amount=2', form)
    let refusals = 0
    const count = (message: unknown): void => { if ((message as IdempotencyEvent).key === key) refusals++ }
    subscribe('fastify-idempotency:mismatched', count)
    t.teardown(() => unsubscribe('fastify-idempotency:mismatched', count))
    const stripe = stripeClient(api.url)
    if (errors === 'throw') {
      t.match(await failure(payWithStripe(stripe, 1, key)), {
        type: 'StripeAPIError', rawType: 'idempotency_error', statusCode: 409, code: 'idempotency_key_mismatch'
      })
      t.equal(refusals, 1)
    } else {
      t.match(await stripe.charges.create({ amount: 1 }, { idempotencyKey: key, maxNetworkRetries: 1 }), {
        status: 'error', code: 'idempotency_key_mismatch'
      })
      t.equal(refusals, 2)
    }
    t.equal(api.runs(), 1)
  })
}
