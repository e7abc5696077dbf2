import type { Core } from './core.ts'
import { within } from './deadline.ts'
import { publish } from './events.ts'
import { hasLeft, type Exchange } from './exchange.ts'
import { capture, unreplayable } from './response.ts'
import type { Claim, Outcome } from './store.ts'
import { judge, type Verdict } from './verdict.ts'

/** Ends the holding of a key: its outcome is kept, or the key is freed. */

/** `undefined`: the client may see the reply. `instead`: it must see this, the lease was lost. */
export type Settled = { instead: Verdict } | undefined

/** Keeps `outcome`, or frees the key without one. Calls back when the reply may leave. */
export function settle (core: Core, exchange: Exchange, outcome: Outcome | undefined, done: (settled: Settled) => void): void {
  exchange.settling = true
  step(core, exchange, outcome, (error, accepted) => {
    if (error !== null) {
      storeFailed(core, exchange, outcome, error)
      return done(undefined)
    }
    if (accepted !== true) return recover(core, exchange, outcome, done)
    finish(core, exchange, outcome)
    done(undefined)
  })
}

function step (core: Core, { storeKey, token, route }: Exchange, outcome: Outcome | undefined, done: (error: unknown, accepted?: boolean) => void): void {
  within(core.config.storeTimeout, () => outcome === undefined
    ? core.store.release(storeKey, token, route.ttl)
    : core.store.complete(storeKey, token, outcome, route.ttl), done)
}

function finish (core: Core, exchange: Exchange, outcome: Outcome | undefined): void {
  exchange.holding = false
  exchange.settling = false
  exchange.settled = true
  core.leases.delete(exchange)
  const { request } = exchange
  if (outcome === undefined) {
    publish('released', request, exchange)
  } else if (outcome.replayable) {
    publish('executed', request, exchange, { status: outcome.status })
  } else {
    request.log.warn({ status: outcome.status }, 'idempotency: the response cannot be kept; retries get idempotency_response_unavailable')
    publish('unreplayable', request, exchange, { status: outcome.status })
  }
}

/**
 * The token no longer holds the key. Claiming again, with the same token, tells what came
 * of it: a winner's response, somebody who runs now, or nobody (the store lost the record).
 */
function recover (core: Core, exchange: Exchange, outcome: Outcome | undefined, done: (settled: Settled) => void): void {
  const { storeKey, token, route } = exchange
  loseLease(exchange)
  within(core.config.storeTimeout, () => core.store.claim(storeKey, { token, lease: route.lease, ttl: route.ttl, takeover: true }), (error, claim) => {
    if (error !== null) {
      storeFailed(core, exchange, outcome, error)
      return done(undefined)
    }
    const found = claim as Claim
    if (found.outcome === 'acquired') {
      exchange.lost = false
      return step(core, exchange, outcome, error => {
        if (error !== null) storeFailed(core, exchange, outcome, error)
        else finish(core, exchange, outcome)
        done(undefined)
      })
    }
    exchange.holding = false
    exchange.settling = false
    core.leases.delete(exchange)
    done({ instead: judge(found, exchange.body.whole ? exchange.fingerprint : '', route.retryAfter) })
  })
}

function loseLease (exchange: Exchange): void {
  exchange.lose()
  exchange.request.log.warn('idempotency: the lease was lost before the outcome was kept')
  publish('lease-lost', exchange.request, exchange)
}

const RETRY_MS = 100

/** The reply has its result; what remains is to tell the store, for as long as the lease lasts. */
function storeFailed (core: Core, exchange: Exchange, outcome: Outcome | undefined, error: unknown, delay = RETRY_MS): void {
  const { request, route } = exchange
  request.log.error({ err: error }, `idempotency: the ${outcome === undefined ? 'key could not be freed' : 'response could not be kept'}; it is tried again in the background`)
  publish('store-error', request, exchange, { error })
  exchange.settling = false
  const retrying = exchange.retrying = {}
  setTimeout(() => {
    if (exchange.settled || exchange.retrying !== retrying) return
    if (exchange.lost) return core.leases.delete(exchange)
    step(core, exchange, outcome, (error, accepted) => {
      if (error !== null) return storeFailed(core, exchange, outcome, error, Math.min(delay * 2, route.lease / 3))
      if (accepted === true) return finish(core, exchange, outcome)
      exchange.settled = true
      core.leases.delete(exchange)
      loseLease(exchange)
    })
  }, delay).unref()
}

const ignore = (): void => {}

/** The response's 'close' always comes, also where no hook runs: hijacked, raw, cut off. */
export function settleOnClose (core: Core, exchange: Exchange): void {
  const { reply } = exchange
  reply.raw.once('close', () => {
    if (!isOpen(exchange) || exchange.sending) return
    if (exchange.handler === 'none') return settle(core, exchange, undefined, ignore)
    // Replied past Fastify (hijack, raw, its last resort): done, though nobody saw with what.
    if (reply.sent && !exchange.timedOut) settleUnseen(core, exchange)
    else if (exchange.handler === 'ended') handlerEnded(core, exchange, undefined)
  })
}

/** Called when an async handler has settled, with what it resolved to. */
export function handlerEnded (core: Core, exchange: Exchange, value: unknown): void {
  const { reply } = exchange
  if (exchange.delegated && !exchange.sendCalled) return
  exchange.handler = 'ended'
  if (!isOpen(exchange)) return
  if (exchange.timedOut) return settleUnseen(core, exchange)
  // Fastify sends nothing, and calls no hook, for an undefined result once the client has left.
  if (value !== undefined || exchange.sendCalled || !hasLeft(exchange)) return
  if (reply.sent) return settleUnseen(core, exchange)
  whenWhole(core, exchange, () => settle(core, exchange, exchange.route.cacheable(reply.statusCode) ? capture(reply, exchange.fingerprint, exchange.route.replayHeaders) : undefined, ignore))
}

/** Called when a handler has failed after Fastify answered in its place. */
export function handlerFailed (core: Core, exchange: Exchange): void {
  exchange.handler = 'ended'
  if (exchange.timedOut && isOpen(exchange)) settle(core, exchange, undefined, ignore)
}

function settleUnseen (core: Core, exchange: Exchange): void {
  const { route, reply, timedOut } = exchange
  const { statusCode } = reply.raw
  if (!timedOut && !route.cacheable(statusCode)) return settle(core, exchange, undefined, ignore)
  whenWhole(core, exchange, () => settle(core, exchange, unreplayable(statusCode, exchange.fingerprint), ignore))
}

/** A key settles only for a whole body; one that was cut off frees it. */
function whenWhole (core: Core, exchange: Exchange, done: () => void): void {
  exchange.body.drain(error => error === undefined ? done() : settle(core, exchange, undefined, ignore))
}

function isOpen ({ holding, settling, settled, retrying }: Exchange): boolean {
  return holding && !settling && !settled && retrying === undefined
}
