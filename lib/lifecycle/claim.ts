import type { FastifyReply, FastifyRequest } from 'fastify'
import type { RouteConfig } from '../config/config.ts'
import { loggable, publish } from '../events.ts'
import { Lease } from '../lease/lease.ts'
import { StoreTimeout, type Operation } from '../lease/store-calls.ts'
import { IdempotencyError } from '../protocol/errors.ts'
import { idOf, isLarge } from '../protocol/fingerprint.ts'
import { keyError, readKey } from '../protocol/key.ts'
import { evaluateClaim, fingerprintIn, needsBody, type Taken, type Verdict } from '../protocol/verdict.ts'
import { cutOff } from '../request/body.ts'
import { copyOfHeaders } from '../response/reply-headers.ts'
import { claimIn, StoreAnswerError, type IdempotencyStore, type StoreClaim } from '../stores/contract.ts'
import { UnreadableRecordError } from '../stores/record.ts'
import { errorFrom, isThenable, promiseOf } from '../util/promise.ts'
import { releaseUnused, watchClose } from './after-close.ts'
import { answer, refuse } from './answer.ts'
import type { Core } from './core.ts'
import { refuseForeign } from './binding.ts'
import { recoverRawBody } from './early-body.ts'
import { hasClosed, type Exchange, type Holding } from './exchange.ts'
import { watchReply } from './handler.ts'
import { unwatchEarly } from './outgoing.ts'
import { Waiter } from './wait.ts'

type Done = (error?: Error) => void

/** Of claims that were granted too late to count. */
const MAX_ROUNDS = 3

/** Key, scope, claim: takes the key for this request, or learns who has it. */
export function claimKey (exchange: Exchange, done: Done): void {
  const { core, request, route } = exchange
  let key
  try {
    key = route.key === undefined ? readKey(request, core.config) : route.key(request)
    if (isThenable(key)) return whenKnown(exchange, key, done)
  } catch (thrown) {
    return keyFailed(exchange, thrown, done)
  }
  withKey(exchange, key, done)
}

/** Functions of their own where an answer is waited for: the usual way makes no closures. */
function whenKnown (exchange: Exchange, key: PromiseLike<string | undefined>, done: Done): void {
  promiseOf(key).then(key => withKey(exchange, key, done), (thrown: unknown) => keyFailed(exchange, thrown, done))
}

function keyFailed (exchange: Exchange, thrown: unknown, done: Done): void {
  const error = errorFrom(thrown)
  if (error instanceof IdempotencyError) stop(exchange, error, done)
  else done(error)
}

function withKey (exchange: Exchange, key: string | undefined, done: Done): void {
  const { request, route } = exchange
  if (key === undefined) {
    if (route.required) return stop(exchange, keyMissing(route, request), done)
    exchange.stepAside()
    unwatchEarly(exchange.reply)
    return done()
  }
  const error = keyError(key, route)
  if (error instanceof IdempotencyError) return stop(exchange, error, done)
  if (error !== null) return done(error)
  let scope
  try {
    scope = route.scope(request)
    if (isThenable(scope)) return whenScoped(exchange, key, scope, done)
  } catch (thrown) {
    return done(errorFrom(thrown))
  }
  withScope(exchange, key, scope, done)
}

function whenScoped (exchange: Exchange, key: string, scope: PromiseLike<string | undefined>, done: Done): void {
  promiseOf(scope).then(scope => withScope(exchange, key, scope, done), (thrown: unknown) => done(errorFrom(thrown)))
}

function withScope (exchange: Exchange, key: string, scope: string | undefined, done: Done): void {
  try {
    exchange.id = idOf(scope, key)
    exchange.storeKey = exchange.core.config.keyPrefix + exchange.id
  } catch (error) {
    return done(errorFrom(error))
  }
  exchange.key = key
  exchange.scope = scope
  claim(exchange, done)
}

function keyMissing ({ key, keyName }: RouteConfig, { method }: FastifyRequest): IdempotencyError {
  return new IdempotencyError('idempotency_key_missing',
    `This ${method} requires ${key === undefined ? `the ${keyName} header` : `an ${keyName}`}. ` +
    'Send a fresh value, such as a UUID, for each operation, and the same one with each retry.')
}

/** Refuses a request without its key before anything else is done for it. */
export function refuseMissing (
  core: Core, request: FastifyRequest, reply: FastifyReply, route: RouteConfig, done: Done
): void {
  refuse(core, request, reply, route, keyMissing(route, request), done)
}

/** Refuses a request that has no claim, and does nothing more for it. */
function stop (exchange: Exchange, error: IdempotencyError, done: Done): void {
  exchange.stepAside()
  answer(exchange, { refuse: error }, done)
}

/** Asks the store for the key. */
function claim (exchange: Exchange, done: Done): void {
  new Question(exchange, claimed, done).ask()
}

function claimed (
  exchange: Exchange, error: Error | null, found: StoreClaim | undefined, sent: number, done: Done
): void {
  if (error !== null) storeFailed(exchange, error, done)
  else granted(exchange, found as StoreClaim, sent, done)
}

/** Asks for the key of a request. A grant that came too late to count is asked for again. */
class Question implements Operation<StoreClaim> {
  readonly #exchange: Exchange
  /** Hears the claim's answer, and when it was asked for. */
  readonly #heard: typeof claimed
  readonly #done: Done
  #sent = 0
  #round = 0

  constructor (exchange: Exchange, heard: typeof claimed, done: Done) {
    this.#exchange = exchange
    this.#heard = heard
    this.#done = done
  }

  ask (): void {
    this.#round++
    this.#sent = performance.now()
    this.#exchange.core.calls.run(this)
  }

  send (store: IdempotencyStore): unknown {
    const { storeKey, token, route } = this.#exchange
    const { lease, ttl, abandoned } = route
    return store.claim(storeKey, { token, lease, ttl, takeover: abandoned === 'retry' })
  }

  check (answer: unknown): StoreClaim {
    return claimIn(answer)
  }

  answered (error: unknown, found?: StoreClaim): void {
    const { lease } = this.#exchange.route
    if (found === undefined) return this.#tell(errorFrom(error), undefined)
    // Frozen since then: the key may have been taken over already. The token keeps it if not.
    if (found.outcome === 'acquired' && performance.now() - this.#sent >= lease) {
      if (this.#round < MAX_ROUNDS) return this.ask()
      return this.#tell(new Error(`The store takes longer to answer than the lease of ${lease} ms lasts`), undefined)
    }
    this.#tell(null, found)
  }

  /** Granted after the request went on without it. A later claim may have it: the token is the same. */
  late (_error: unknown, found?: StoreClaim): void {
    const exchange = this.#exchange
    const unused = exchange.lease === undefined && exchange.waiter === undefined
    if (unused && (found === undefined || found.outcome === 'acquired')) exchange.core.backlog.giveBack(exchange)
  }

  #tell (error: Error | null, found: StoreClaim | undefined): void {
    this.#heard(this.#exchange, error, found, this.#sent, this.#done)
  }
}

function storeFailed (exchange: Exchange, cause: Error, done: Done): void {
  const { core, request, route, id } = exchange
  const bypass = mayBypass(exchange, cause)
  const then = bypass ? 'run unprotected' : 'refused'
  request.log.error(
    { idempotencyId: id, err: loggable(cause) }, `idempotency: the key could not be claimed; the request is ${then}`
  )
  if (mayBeGranted(cause)) core.backlog.giveBack(exchange)
  if (bypass) {
    publish('store-error', request, exchange, { error: cause })
    exchange.claim = 'bypassed'
    exchange.reply.raw.once('close', () => exchange.body.discard())
    return done()
  }
  const message = 'The idempotency store cannot be reached; the request was not run. Retry later.'
  answer(exchange, {
    refuse: new IdempotencyError('idempotency_store_unavailable', message, { retryAfter: route.retryAfter, cause })
  }, done)
}

/** The answer alone may be lost. After a timeout, the late answer tells; a record that stands there is an answer. */
function mayBeGranted (cause: Error): boolean {
  return !(cause instanceof StoreTimeout || cause instanceof UnreadableRecordError)
}

/** A store that is away may be bypassed; a record that cannot be read, or an answer that is none, may not. */
function mayBypass ({ route }: Exchange, cause: Error): boolean {
  return route.onStoreError === 'bypass' && !(
    cause instanceof UnreadableRecordError || cause instanceof StoreAnswerError
  )
}

function granted (exchange: Exchange, found: StoreClaim, sent: number, done: Done): void {
  exchange.claim = found
  if (found.outcome !== 'acquired') return done()
  startLease(exchange, found.takeover, sent)
  // The client left, or was answered by a timeout, before anything ran: nobody will settle the key later.
  if (hasClosed(exchange)) leaveUnused(exchange, done)
  else done()
}

function leaveUnused (exchange: Holding, done: Done): void {
  // Nor is the error an outcome that its client, who is gone, is answered with.
  exchange.refuseBody()
  releaseUnused(exchange, () => done(cutOff()))
}

function startLease (exchange: Exchange, takeover: boolean, sent: number): asserts exchange is Holding {
  const { core, request, attempt, id } = exchange
  exchange.lease = new Lease(exchange, sent)
  exchange.headersBefore = copyOfHeaders(exchange.reply)
  core.renewals.add(exchange.lease)
  watchReply(exchange.reply)
  watchClose(exchange)
  if (!takeover) return
  request.log.warn({ idempotencyId: id, attempt }, 'idempotency: the holder had died; its key was taken over')
  publish('abandoned', request, exchange)
}

/** Replay or run: acts on what `claimKey` has learned. `waited`: the holder has been waited for long enough. */
export function replayOrRun (exchange: Exchange, done: Done, waited = false): void {
  const { claim: found } = exchange
  if (typeof found !== 'object') done()
  else if (found.outcome === 'acquired') goOn(exchange, done)
  else compare(exchange, found, done, waited)
}

/** Somebody else has the key. */
function compare (exchange: Exchange, found: Taken, done: Done, waited: boolean): void {
  const { core, route, body, storeKey } = exchange
  // A holder in this process has told nobody yet what it read.
  if (found.outcome === 'held' && found.fingerprint === '') found.fingerprint = core.renewals.fingerprintOf(storeKey)
  const patience = found.outcome === 'held' && route.inFlight !== 'reject' && !waited ? route.inFlight.wait : 0
  // A body that has been compared could not be parsed any more if the key came free.
  if (patience > 0 && !body.whole) return waitAndSee(exchange, patience, done)
  if (!needsBody(found)) return give(exchange, evaluateClaim(found, '', route), patience, done)
  // Where its bytes may stand elsewhere, they are compared once the parser is done.
  if (body.readEarly && !body.whole && !recoverRawBody(exchange)) return done()
  body.drain('compare', error => {
    if (error !== undefined) return notCompared(exchange, error, done)
    try {
      give(exchange, evaluateClaim(found, exchange.fingerprint, route), patience, done)
    } catch (thrown) {
      // A route's own fingerprint function, or a kept response that cannot be sent: nobody else would catch it.
      done(errorFrom(thrown))
    }
  }, limitFor(exchange, found))
}

/** `patience`: milliseconds that a holder is waited for. */
function give (exchange: Exchange, verdict: Verdict, patience: number, done: Done): void {
  const running = 'refuse' in verdict && verdict.refuse.code === 'idempotency_in_progress'
  if (running && patience > 0) waitAndSee(exchange, patience, done)
  else answer(exchange, verdict, done)
}

function waitAndSee (exchange: Exchange, patience: number, done: Done): void {
  exchange.waiter ??= new Waiter(exchange, patience)
  waitForHolder(exchange, exchange.waiter, stillHeld => replayOrRun(exchange, done, stillHeld), done)
}

/** The largest body that can be the same: Fastify's parsers would refuse a larger one, too. */
function limitFor ({ route }: Exchange, taken: Taken): number {
  // A larger one is not held in memory for the route's own function.
  return isLarge(fingerprintIn(taken)) && route.fingerprint === undefined ? Infinity : route.bodyLimit
}

function notCompared ({ request, reply }: Exchange, error: Error, done: Done): void {
  // As Fastify does: the rest of the body is not wanted.
  const unwanted = (error as { statusCode?: number }).statusCode === 413
  if (unwanted && request.raw.httpVersionMajor === 1) reply.header('connection', 'close')
  done(error)
}

/** The key is this request's, unless it is bound to another: that is told as soon as the body is known. */
function goOn (exchange: Exchange, done: Done): void {
  try {
    if (exchange.boundTo !== '' && exchange.body.whole && refuseForeign(exchange, done)) return
  } catch (thrown) {
    return done(errorFrom(thrown))
  }
  done()
}

/** Waits, asks again, and calls `next` with what it has learned. */
function waitForHolder (exchange: Exchange, waiter: Waiter, next: (stillHeld: boolean) => void, done: Done): void {
  waiter.turn(stillHeld => {
    if (stillHeld) {
      endWaiting(exchange, waiter)
      return next(true)
    }
    new Question(exchange, (_exchange, error, found, sent) => {
      if (error !== null && mayBypass(exchange, error)) {
        // The holder is known to run: while the store is away, nobody may run beside it.
        waiter.uncertain = true
        return waitForHolder(exchange, waiter, next, done)
      }
      if (error === null && found?.outcome === 'held') {
        exchange.claim = found
        return next(false)
      }
      exchange.waiter = undefined
      if (error !== null) return storeFailed(exchange, error, done)
      granted(exchange, found as StoreClaim, sent, error => error === undefined ? next(false) : done(error))
    }, done).ask()
  }, () => endWaiting(exchange, waiter))
}

/** A claim that was granted after its time must not keep a key that nobody uses. */
function endWaiting (exchange: Exchange, waiter: Waiter): void {
  exchange.waiter = undefined
  if (waiter.uncertain) exchange.core.backlog.giveBack(exchange)
}
