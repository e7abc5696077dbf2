import type { FastifyRequest } from 'fastify'
import { IdempotencyError } from '../protocol/errors.ts'
import type { Wording } from '../protocol/verdict.ts'
import { errorFrom } from '../util/promise.ts'
import { mayGetKey } from './before-key.ts'
import { exchangeOf, type Exchange } from './exchange.ts'

/** What `fastify-idempotency/sql` may know of a request that has a key, and nothing else. */
export interface Execution extends Wording {
  /** Names scope and key, hashed. */
  readonly id: string
  /** A UUID: whoever carries it holds the key, in the store. */
  readonly token: string
  /** 1 for the first execution of this key; 0 where the store was away and the request runs all the same. */
  readonly attempt: number
  /** Milliseconds that a kept response lives. */
  readonly ttl: number
  /** Milliseconds after which a holder that has gone silent loses the key. */
  readonly lease: number
  /**
   * Waits for the whole body. Where nobody has begun to read it, rejects with an Error: waiting would never end.
   * Rejects with what the route's own function `fingerprint` throws.
   */
  fingerprint (): Promise<string>
  /**
   * Asks the store whether this execution still holds the key, and extends its lease if so. If not, the lease is
   * lost, and the handler's signal aborted. Rejects with `idempotency_store_unavailable` where the store fails.
   */
  renew (): Promise<boolean>
}

/**
 * The execution that a request is; `undefined` where the plugin does nothing for it.
 * @throws {Error} where a hook asks before the key was claimed, or once it is known that nothing will run.
 */
export function executionOf (request: FastifyRequest): Execution | undefined {
  const exchange = exchangeOf(request)
  if (exchange === undefined) {
    if (mayGetKey(request)) throw unclaimed()
    return undefined
  }
  const { claim, id, token, attempt, route } = exchange
  if (claim !== 'bypassed' && exchange.lease === undefined) {
    throw unclaimed()
  }
  const { ttl, lease, retryAfter, keyName } = route
  return {
    id,
    token,
    attempt,
    ttl,
    lease,
    retryAfter,
    keyName,
    fingerprint: async () => await fingerprintOf(exchange),
    renew: async () => await renew(exchange)
  }
}

function unclaimed (): Error {
  return new Error('fastify-idempotency: the key of this request is not claimed; call this from the handler')
}

async function fingerprintOf (exchange: Exchange): Promise<string> {
  const { body } = exchange
  if (!body.whole) {
    if (!body.isRead) {
      throw new Error('fastify-idempotency: the request body must be read, or be under way, before this is called')
    }
    await new Promise<void>((resolve, reject) => {
      exchange.readRest('keep', error => {
        if (error === undefined) resolve()
        else reject(error)
      })
    })
  }
  return exchange.fingerprint
}

async function renew ({ core, lease, route }: Exchange): Promise<boolean> {
  const renewed = await new Promise<boolean>((resolve, reject) => {
    if (lease === undefined) return reject(unavailable(undefined, route.retryAfter))
    core.renewals.renew(lease, performance.now(), (error, renewed) => {
      if (error === null) resolve(renewed === true)
      else reject(unavailable(errorFrom(error), route.retryAfter))
    })
  })
  if (!renewed) lease?.lose()
  return renewed
}

function unavailable (cause: Error | undefined, retryAfter: number): IdempotencyError {
  const message = 'The idempotency store cannot be reached; whether this request may go on is not known. Retry later.'
  return new IdempotencyError('idempotency_store_unavailable', message, { retryAfter, cause })
}
