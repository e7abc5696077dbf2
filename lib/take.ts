import type { FastifyReply, FastifyRequest } from 'fastify'
import { answer, refuse } from './answer.ts'
import { cutOff } from './body.ts'
import type { Core } from './core.ts'
import { isPromise, StoreTimeout } from './deadline.ts'
import { IdempotencyError } from './errors.ts'
import { loggable, publish } from './events.ts'
import { hasLeft, type Exchange } from './exchange.ts'
import { storeKey } from './fingerprint.ts'
import { keyError, readKey } from './key.ts'
import { settle, settleOnClose } from './settle.ts'
import type { Claim } from './store.ts'
import { judge, needsBody, type Verdict } from './verdict.ts'
import { waitForHolder } from './wait.ts'

type Done = (error?: Error) => void

/** Of claims that were granted too late to count. */
const MAX_ROUNDS = 3

/** Key, scope, claim: takes the key for this request, or learns who has it. */
export function take (core: Core, exchange: Exchange, done: Done): void {
  const { request, route } = exchange
  exchange.taken = true
  let found
  try {
    found = route.key === undefined ? readKey(request, core.config) : route.key(request)
  } catch (error) {
    return failed(core, exchange, error, done)
  }
  if (isPromise(found)) found.then(key => withKey(core, exchange, key, done), (error: unknown) => failed(core, exchange, error, done))
  else withKey(core, exchange, found, done)
}

function withKey (core: Core, exchange: Exchange, key: string | undefined, done: Done): void {
  const { request, route } = exchange
  if (key === undefined) {
    if (route.required) return stop(core, exchange, missing(core, request), done)
    stepAside(exchange)
    return done()
  }
  const error = keyError(key, route.maxKeyLength)
  if (error !== null) return failed(core, exchange, error, done)
  exchange.key = key
  let scope
  try {
    scope = route.scope(request)
  } catch (thrown) {
    return done(thrown as Error)
  }
  if (isPromise(scope)) scope.then(scope => withScope(core, exchange, scope, done), (error: unknown) => done(error as Error))
  else withScope(core, exchange, scope, done)
}

function withScope (core: Core, exchange: Exchange, scope: string | undefined, done: Done): void {
  try {
    exchange.storeKey = storeKey(core.config.prefix, scope, exchange.key)
  } catch (error) {
    return done(error as Error)
  }
  claim(core, exchange, done)
}

function failed (core: Core, exchange: Exchange, error: unknown, done: Done): void {
  if (error instanceof IdempotencyError) stop(core, exchange, error, done)
  else done(error as Error)
}

export function missing (core: Core, { method }: FastifyRequest): IdempotencyError {
  return new IdempotencyError('idempotency_key_missing', `This ${method} requires the ${core.config.headerName} header. Send a fresh value, such as a UUID, for each operation, and the same one with each retry.`)
}

function stop (core: Core, exchange: Exchange, error: IdempotencyError, done: Done): void {
  exchange.request.idempotency = null
  answer(core, exchange, { refuse: error }, done)
}

/** Asks the store for the key. */
function claim (core: Core, exchange: Exchange, done: Done, rounds = 1): void {
  const { route, storeKey, token } = exchange
  const request = { token, lease: route.lease, ttl: route.ttl, takeover: route.abandoned === 'retry' }
  const sent = performance.now()
  core.bounded(() => core.store.claim(storeKey, request), (error, found) => {
    if (found?.outcome === undefined) {
      // It may have been granted all the same: the answer alone was lost.
      if (!(error instanceof StoreTimeout)) giveBack(core, exchange)
      return storeFailed(core, exchange, error ?? new TypeError('The store has answered a claim without an outcome'), done)
    }
    // Frozen since then: the key may have been taken over already. The token keeps it if not.
    if (found.outcome === 'acquired' && performance.now() - sent >= route.lease) {
      if (rounds < MAX_ROUNDS) return claim(core, exchange, done, rounds + 1)
      giveBack(core, exchange)
      return storeFailed(core, exchange, new Error(`The store takes longer to answer than the lease of ${route.lease} ms lasts`), done)
    }
    hold(core, exchange, found, sent)
    if (!exchange.holding || !hasLeft(exchange)) return done()
    // The client left, or was answered by a timeout, before anything ran: nobody will settle the key later.
    settle(core, exchange, undefined, () => done(cutOff()))
  }, (_error, late) => {
    // Nobody will use a key that was granted after the request was answered.
    if (late === undefined || late.outcome === 'acquired') giveBack(core, exchange)
  })
}

function giveBack (core: Core, { storeKey, token, route }: Exchange): void {
  core.bounded(() => core.store.release(storeKey, token, route.ttl, false), () => {})
}

function storeFailed (core: Core, exchange: Exchange, cause: unknown, done: Done): void {
  const { request, route } = exchange
  request.log.error({ err: loggable(cause) }, `idempotency: the key could not be claimed; the request is ${route.onStoreError === 'bypass' ? 'run unprotected' : 'refused'}`)
  if (route.onStoreError === 'reject') {
    return stop(core, exchange, new IdempotencyError('idempotency_store_unavailable', 'The idempotency store cannot be reached; the request was not run. Retry later.', { retryAfter: route.retryAfter, cause }), done)
  }
  publish('store-error', request, exchange, { error: cause })
  stepAside(exchange)
  done()
}

/** From here on the plugin does nothing for this request, but let a body pass that nobody reads. */
function stepAside ({ request, reply, body }: Exchange): void {
  request.idempotency = null
  reply.raw.once('close', () => body.discard())
}

function hold (core: Core, exchange: Exchange, claim: Claim, sent: number): void {
  exchange.claim = claim
  exchange.attempt = claim.attempt
  if (claim.outcome !== 'acquired') return
  exchange.holding = true
  exchange.headersBefore = exchange.reply.getHeaders()
  exchange.takenAt = exchange.renewedAt = exchange.confirmedAt = sent
  core.leases.add(exchange)
  settleOnClose(core, exchange)
  if (claim.takeover) {
    exchange.request.log.warn({ attempt: claim.attempt }, 'idempotency: the holder had died; its key was taken over')
    publish('abandoned', exchange.request, exchange)
  }
}

/** Run or replay: acts on what `take` has learned. `waited`: the holder has been waited for long enough. */
export function act (core: Core, exchange: Exchange, done: Done, waited = false): void {
  const { claim: found, route, body, storeKey } = exchange
  if (found === undefined || found.outcome === 'acquired') return done()
  // A holder in this process has told nobody yet what it read.
  if (found.outcome === 'held' && found.fingerprint === '') found.fingerprint = core.leases.fingerprintOf(storeKey)
  const { inFlight } = route
  const mayWait = found.outcome === 'held' && inFlight !== 'reject' && !waited
  // A body that has been compared could not be parsed any more if the key came free.
  if (mayWait && !body.whole) return wait(inFlight.wait)
  if (!needsBody(found)) return give(judge(found, '', route.retryAfter))
  body.drain('compare', error => {
    if (error !== undefined) return done(error)
    try {
      give(judge(found, exchange.fingerprint, route.retryAfter))
    } catch (thrown) {
      // A route's own fingerprint function, or a kept response that cannot be sent: nobody else would catch it.
      done(thrown as Error)
    }
  })

  function give (verdict: Verdict): void {
    if (mayWait && 'refuse' in verdict && verdict.refuse.code === 'idempotency_in_progress') wait(inFlight.wait)
    else answer(core, exchange, verdict, done)
  }

  function wait (ms: number): void {
    waitForHolder(core.store, exchange, ms, stillHeld => {
      if (stillHeld) return act(core, exchange, done, true)
      claim(core, exchange, error => {
        if (error !== undefined) return done(error)
        act(core, exchange, done)
      })
    })
  }
}

/** Refuses a request without its key before anything else is done for it. */
export function refuseMissing (core: Core, request: FastifyRequest, reply: FastifyReply, route: Exchange['route'], done: Done): void {
  refuse(core, request, reply, route, missing(core, request), done)
}
