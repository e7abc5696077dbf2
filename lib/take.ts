import type { FastifyReply, FastifyRequest } from 'fastify'
import { answer, refuse } from './answer.ts'
import { cutOff } from './body.ts'
import type { Core } from './core.ts'
import { whenReady, within } from './deadline.ts'
import { IdempotencyError } from './errors.ts'
import { publish } from './events.ts'
import { hasLeft, type Exchange } from './exchange.ts'
import { storeKey } from './fingerprint.ts'
import { keyError, readKey } from './key.ts'
import { settle, settleOnClose } from './settle.ts'
import type { Claim } from './store.ts'
import { inProgress, judge, needsBody } from './verdict.ts'

type Done = (error?: Error) => void

/** Key, scope, claim: takes the key for this request, or learns who has it. */
export function take (core: Core, exchange: Exchange, done: Done): void {
  const { request, reply, route } = exchange
  exchange.taken = true
  keyOf(core, exchange, (error, key) => {
    if (error instanceof IdempotencyError) return stop(core, exchange, error, done)
    if (error !== null) return done(error as Error)
    if (key === undefined) {
      if (!route.required) {
        stepAside(exchange)
        return done()
      }
      return stop(core, exchange, missing(core, request), done)
    }
    exchange.key = key
    let scope
    try {
      scope = route.scope(request)
    } catch (thrown) {
      return done(thrown as Error)
    }
    whenReady(scope, (error, scope) => {
      if (error !== null) return done(error as Error)
      exchange.storeKey = storeKey(core.config.prefix, scope, key)
      exchange.headersBefore = { ...reply.getHeaders() }
      claim(core, exchange, done)
    })
  })
}

export function missing (core: Core, { method }: FastifyRequest): IdempotencyError {
  return new IdempotencyError('idempotency_key_missing', `This ${method} requires the ${core.config.headerName} header. Send a fresh value, such as a UUID, for each operation, and the same one with each retry.`)
}

function stop (core: Core, exchange: Exchange, error: IdempotencyError, done: Done): void {
  exchange.request.idempotency = null
  answer(core, exchange, { refuse: error }, done)
}

function keyOf (core: Core, { request, route }: Exchange, done: (error: unknown, key?: string) => void): void {
  let found
  try {
    found = route.key === undefined ? readKey(request, core.config) : route.key(request)
  } catch (error) {
    return done(error)
  }
  whenReady(found, (error, key) => done(error ?? (key === undefined ? null : keyError(key, route.maxKeyLength)), key))
}

function claim (core: Core, exchange: Exchange, done: Done): void {
  const { route, storeKey, token } = exchange
  const request = { token, lease: route.lease, ttl: route.ttl, takeover: route.abandoned === 'retry' }
  within(core.config.storeTimeout, () => core.store.claim(storeKey, request), (error, claim) => {
    if (error !== null) return storeFailed(core, exchange, error, done)
    hold(core, exchange, claim as Claim)
    if (!exchange.holding || !hasLeft(exchange)) return done()
    // The client left, or was answered by a timeout, before anything ran: nobody will settle the key later.
    settle(core, exchange, undefined, () => done(cutOff()))
  }, late => {
    // Nobody will use a key that was granted after the request was answered.
    if (late.outcome === 'acquired') within(core.config.storeTimeout, () => core.store.release(storeKey, token, route.ttl), () => {})
  })
}

function storeFailed (core: Core, exchange: Exchange, cause: unknown, done: Done): void {
  const { request, route } = exchange
  request.log.error({ err: cause }, `idempotency: the key could not be claimed; the request is ${route.onStoreError === 'bypass' ? 'run unprotected' : 'refused'}`)
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

function hold (core: Core, exchange: Exchange, claim: Claim): void {
  exchange.claim = claim
  exchange.attempt = claim.attempt
  if (claim.outcome !== 'acquired') return
  exchange.holding = true
  core.leases.add(exchange)
  settleOnClose(core, exchange)
  if (claim.takeover) {
    exchange.request.log.warn({ attempt: claim.attempt }, 'idempotency: the holder had died; its key was taken over')
    publish('abandoned', exchange.request, exchange)
  }
}

/** Run or replay: acts on what `take` has learned. */
export function act (core: Core, exchange: Exchange, done: Done, deadline?: number): void {
  const { claim, route, body } = exchange
  if (claim === undefined || claim.outcome === 'acquired') return done()
  const wait = route.inFlight !== 'reject' && claim.outcome === 'held' ? route.inFlight.wait : 0
  if (!needsBody(claim)) {
    if (wait > 0) return pause(core, exchange, done, deadline ?? performance.now() + wait)
    return answer(core, exchange, judge(claim, '', route.retryAfter), done)
  }
  body.drain(error => {
    if (error !== undefined) return done(error)
    let verdict
    try {
      verdict = judge(claim, exchange.fingerprint, route.retryAfter)
    } catch (thrown) {
      return done(thrown as Error)
    }
    if (wait > 0 && 'refuse' in verdict && verdict.refuse.code === 'idempotency_in_progress') return pause(core, exchange, done, deadline ?? performance.now() + wait)
    answer(core, exchange, verdict, done)
  })
}

const POLL_MS = 25

/** Waits a little, with jitter, and asks again: one store command a turn. */
function pause (core: Core, exchange: Exchange, done: Done, deadline: number): void {
  const { reply, route } = exchange
  const left = deadline - performance.now()
  if (left <= 0) return answer(core, exchange, { refuse: inProgress(route.retryAfter) }, done)
  setTimeout(() => {
    // Answered by a timeout, or the client has left: nobody is here to run the handler for.
    if (reply.sent || hasLeft(exchange)) return
    claim(core, exchange, error => {
      if (error !== undefined) return done(error)
      act(core, exchange, done, deadline)
    })
  }, Math.min(left, POLL_MS * (0.5 + Math.random()))).unref()
}

/** Refuses a request without its key before anything else is done for it. */
export function refuseMissing (core: Core, request: FastifyRequest, reply: FastifyReply, route: Exchange['route'], done: Done): void {
  refuse(core, request, reply, route, missing(core, request), done)
}
