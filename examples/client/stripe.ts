import type { FastifyInstance } from 'fastify'
import Stripe from 'stripe'
import type { IdempotencyError } from '../../lib/index.ts'

/**
 * stripe-node against an API of your own. It makes a key for each call and keeps it over its
 * retries, but not over yours: a call that failed for good (a response that is cut off within
 * its body does so at once) and is made again is a new operation, unless you name the key.
 */
export function client (url: string): Stripe {
  const { protocol, hostname, port } = new URL(url)
  return new Stripe('sk_test_example', {
    host: hostname,
    port,
    protocol: protocol === 'http:' ? 'http' : 'https',
    telemetry: false,
    maxNetworkRetries: 5
  })
}

/** `key`: one for each operation, made before the first attempt and stored with it. */
export async function pay (stripe: Stripe, amount: number, key: string): Promise<Stripe.Response<Stripe.Charge>> {
  return await stripe.charges.create({ amount, currency: 'eur', source: 'tok_visa' }, { idempotencyKey: key })
}

/**
 * The API's side, with the plugin's option `errors: 'throw'`. stripe-node takes every JSON without
 * a member `error` for a success, whatever its status, the plugin's 409 included. It retries
 * every 409 that does not forbid it, and does not look at Retry-After.
 */
export function answerAsStripe (app: FastifyInstance): void {
  app.setErrorHandler<IdempotencyError>((error, _request, reply) => {
    if (error.name !== 'IdempotencyError') throw error
    reply.code(error.statusCode).header('stripe-should-retry', String(error.retryAfter !== undefined))
    return { error: { type: 'idempotency_error', code: error.code, message: error.message } }
  })
}
