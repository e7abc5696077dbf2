import type { IdempotencyError } from '../protocol/errors.ts'
import { matches } from '../protocol/fingerprint.ts'
import { mismatch } from '../protocol/verdict.ts'
import { answer } from './answer.ts'
import type { Exchange } from './exchange.ts'
import { setRefusal } from './refusal.ts'

/**
 * Refuses a request that is not the one that its key is bound to; `true`: it has been answered, and nothing may run.
 * To be called once the body is whole.
 * @throws what the route's own `fingerprint` throws.
 */
export function refuseForeign (exchange: Exchange, done: (error?: Error) => void): boolean {
  const error = foreign(exchange)
  if (error === undefined) return false
  const { core, request, route } = exchange
  setRefusal(request, { core, route, error, rendered: true })
  answer(exchange, { refuse: error }, done)
  return true
}

/** What refuses such a request; `undefined` for others. */
export function foreign (exchange: Exchange): IdempotencyError | undefined {
  const { boundTo, route: { keyName } } = exchange
  if (boundTo === '' || matches(boundTo, exchange.fingerprint)) return undefined
  return mismatch(boundTo, exchange.fingerprint, keyName)
}
