import type { FastifyReply, FastifyRequest, onSendHookHandler } from 'fastify'
import { settle } from '../lease/settle.ts'
import { unreplayable, whenReplying } from '../protocol/settlement.ts'
import { capture, endsAtOnce, isAscii, isResponse, unwrapResponse } from '../response/outcome.ts'
import { headersOf } from '../response/reply-headers.ts'
import { cancel, held, isStream, tee, type ByteStream } from '../response/tee.ts'
import type { StoreOutcome } from '../stores/contract.ts'
import { errorFrom } from '../util/promise.ts'
import { isBetterAsBytes, refusedPayload, replacedPayload, replayedPayload } from './answer.ts'
import { exchangeOf, holdsKey, type Exchange, type Holding } from './exchange.ts'
import { holdBack, noteBegun, tellDropped, undoLate } from './outgoing.ts'
import { isRefused, takeRefusal } from './refusal.ts'

type Done = (error?: Error | null, payload?: unknown) => void

/**
 * The onSend hook: the outcome is in the store before the reply leaves. It costs a property read where nothing is
 * to be stored. `isLast`: whether no hook of another comes after it.
 */
export function onSend (declaredEarly: boolean, isLast: () => boolean): onSendHookHandler<unknown> {
  return (request, reply, payload, done) => {
    const exchange = exchangeOf(request)
    if (exchange?.declaredEarly !== declaredEarly) {
      if (exchange === undefined && isRefused(request)) return refuseInPlace(request, reply, undefined, done as Done)
      return done()
    }
    // A second reply, which Fastify would refuse.
    if (exchange.outgoing !== undefined) return tellDropped(exchange, payload)
    const { replay, claim, body } = exchange
    if (replay !== undefined) return done(null, replayedPayload(exchange, replay, isLast()))
    if (!holdsKey(exchange) || exchange.lease.isFinal) {
      // Answered by another hook, before the key was claimed, or with a refusal.
      if (claim !== 'bypassed') body.discard()
      return isRefused(request) ? refuseInPlace(request, reply, exchange, done as Done) : done()
    }
    if (exchange.lease.isOver && reply.raw.headersSent) return done()
    pass(exchange, payload, isLast(), done as Done)
  }
}

/** What an error handler has made of a refusal is answered in the route's form. */
function refuseInPlace (
  request: FastifyRequest, reply: FastifyReply, exchange: Exchange | undefined, done: Done
): void {
  const refused = refusedPayload(request, reply, exchange)
  if (refused === undefined) done()
  else done(refused.error, refused.payload)
}

function pass (exchange: Holding, payload: unknown, last: boolean, done: Done): void {
  exchange.outgoing = 'passing'
  exchange.passes++
  if (exchange.run === undefined) noteBegun(exchange.reply)
  try {
    decide(exchange, payload, last, done)
  } catch (error) {
    // A function among the options has failed, or it is a response that cannot be sent; unless Fastify has thrown.
    if (exchange.outgoing === undefined) throw error
    leave(exchange, done, errorFrom(error))
  }
  if (exchange.outgoing === 'passing') holdBack(exchange)
}

function decide (exchange: Holding, payload: unknown, last: boolean, done: Done): void {
  const { request, reply, body, admission, answeredFor, started } = exchange
  const content = isResponse(payload) ? unwrapResponse(reply, payload) : payload
  const cacheable = !answeredFor && !isRefused(request) && exchange.isCacheable(reply.statusCode)
  switch (whenReplying({ answeredFor, cacheable, admission, bodyWhole: body.whole, started })) {
    case 'leave':
      // Fastify's timeout has come before the end of a stream, which decides no more.
      if (exchange.lease.state === 'collecting') exchange.lease.to('held')
      return leave(exchange, done, null, content)
    case 'release': return release(exchange, content, done)
    case 'complete': return complete(exchange, content, last, done)
    case 'read':
      if (isStream(content)) return complete(exchange, content, last, done)
      return readBody(exchange, copyOf(content), last, done)
  }
}

/** The rest of the body decides: whole, the reply is an outcome; cut off, it is none. */
function readBody (exchange: Holding, content: unknown, last: boolean, done: Done): void {
  exchange.lease.to('collecting')
  exchange.readRest('keep', error => {
    undoLate(exchange)
    // The body is there: the reply decides again, or what comes in its place where an option fails now.
    if (exchange.lease.state === 'collecting') exchange.lease.to('held')
    try {
      if (error === undefined) complete(exchange, content, last, done)
      else release(exchange, content, done)
    } catch (thrown) {
      if (exchange.outgoing === undefined) throw thrown
      leave(exchange, done, errorFrom(thrown))
    }
  })
}

function release (exchange: Holding, content: unknown, done: Done): void {
  if (isStream(content)) return settleReply(exchange, undefined, held(content), done)
  // A stream may be the request's own body, read by the response.
  exchange.body.letPass()
  settleReply(exchange, undefined, copyOf(content), done)
}

function complete (exchange: Holding, content: unknown, last: boolean, done: Done): void {
  const { reply, route } = exchange
  const headers = headersOf(reply)
  const fingerprint = exchange.body.whole ? fingerprintOf(exchange) : ''
  let outcome = capture(reply, headers, fingerprint, route.replayHeaders)
  // Fastify sends a 204 without the type that it has given a payload (RFC 9110, section 8.6).
  if (outcome.status === 204 && content !== undefined && content !== null) {
    outcome.headers = outcome.headers.filter(([name]) => name !== 'content-type')
  }
  if (isStream(content)) {
    if (!endsAtOnce(reply)) return leave(exchange, done, null, storeStream(exchange, outcome, content))
    return settleReply(exchange, outcome, held(content), done)
  }
  let payload = copyOf(content)
  if (typeof content === 'string' || Buffer.isBuffer(content)) {
    outcome.text = typeof content === 'string'
    if (outcome.text && last && isBetterAsBytes(content) && isAscii(Object.values(headers))) {
      payload = Buffer.from(content)
    }
    outcome.body = payload as string | Buffer
    if (isLonger(outcome.body, route.maxResponseBytes)) {
      outcome = unreplayable(outcome.status, outcome.fingerprint)
    }
  } else if (content !== undefined && content !== null) {
    // Fastify refuses such a payload after onSend (FST_ERR_REP_INVALID_PAYLOAD_TYPE).
    return leave(exchange, done, null, content)
  }
  settleReply(exchange, outcome, payload, done)
}

/** Whether a body has more than `limit` bytes. A character has three at most: most texts need not be counted. */
function isLonger (body: string | Buffer, limit: number): boolean {
  return body.length * 3 > limit && Buffer.byteLength(body) > limit
}

/** Where the route's own function fails after the handler, the outcome is known to none: it must not run again. */
function fingerprintOf (exchange: Exchange): string {
  try {
    return exchange.fingerprint
  } catch (error) {
    if (!exchange.started) throw error
    exchange.request.log.error({ idempotencyId: exchange.id, err: error }, 'idempotency: the option ' +
      '"fingerprint" has failed after the handler')
    return ''
  }
}

function settleReply (exchange: Holding, outcome: StoreOutcome | undefined, payload: unknown, done: Done): void {
  const { core, lease, request, reply } = exchange
  settle(core, lease, { outcome, status: reply.statusCode }, instead => {
    undoLate(exchange)
    const refusal = takeRefusal(request)
    const verdict = instead ?? (refusal === undefined ? undefined : { refuse: refusal.error })
    if (verdict === undefined) return leave(exchange, done, null, payload)
    if (isStream(payload)) cancel(payload)
    const { error, payload: replacement } = replacedPayload(exchange, verdict)
    leave(exchange, done, error, replacement)
  })
}

/**
 * The reply may wait for the store, and its outcome for longer: whoever made the payload may use its memory again, as
 * without the plugin, where Node.js has written it by then.
 */
function copyOf (payload: unknown): unknown {
  return Buffer.isBuffer(payload) ? Buffer.from(payload) : payload
}

/**
 * Stores a stream when it ends, once the request's body is whole as well, and unless another reply has come instead.
 */
function storeStream (exchange: Holding, outcome: StoreOutcome, source: ByteStream): unknown {
  const { core, lease, body, route, passes } = exchange
  lease.to('collecting')
  const end = (result: StoreOutcome | undefined): Promise<boolean> => new Promise(resolve => {
    if (passes !== exchange.passes) return resolve(true)
    settle(core, lease, { outcome: result, status: outcome.status }, instead => resolve(instead === undefined))
  })
  const whole = (): Promise<boolean> => new Promise(resolve => {
    if (body.whole) resolve(true)
    else exchange.readRest('keep', error => resolve(error === undefined))
  })
  return tee(source, route.maxResponseBytes,
    async bytes => {
      if (!await whole()) return await end(undefined)
      const fingerprint = fingerprintOf(exchange)
      return await end(
        bytes === undefined ? unreplayable(outcome.status, fingerprint) : { ...outcome, fingerprint, body: bytes }
      )
    },
    async () => { if (lease.state === 'collecting') await end(undefined) })
}

function leave (exchange: Exchange, done: Done, error: Error | null, payload?: unknown): void {
  const { outgoing } = exchange
  exchange.outgoing = undefined
  if (outgoing === 'passing') return done(error, payload)
  try {
    done(error, payload)
  } catch (thrown) {
    sendFailed(exchange, thrown)
  }
}

/** Fastify throws from `done` what writeHead refuses; after a wait for the store nobody else would catch it. */
function sendFailed (exchange: Exchange, error: unknown): void {
  const { request, reply, id } = exchange
  exchange.hasFailed = true
  if (reply.raw.headersSent) {
    request.log.error({ idempotencyId: id, err: error }, 'idempotency: the reply could not be sent')
    reply.raw.destroy()
  } else {
    reply.send(error)
  }
}
