import type { FastifyReply, RouteHandlerMethod } from 'fastify'
import { isThenable, promiseOf } from '../util/promise.ts'
import { handlerEnded, handlerFailed } from './after-close.ts'
import { refuseForeign } from './binding.ts'
import { answerEarlyBody } from './early-body.ts'
import { exchangeOf, type Exchange } from './exchange.ts'
import { HandlerRun } from './handler-run.ts'
import { hasBegun, hasEnded, noteBegun, sendBy, tellDropped, unwatchEarly, watchEarly } from './outgoing.ts'

/** Watches a handler to its end, which no hook tells where the client has left or Fastify has answered in its place. */
export function wrapHandler (handler: RouteHandlerMethod): RouteHandlerMethod {
  return function (request, reply) {
    const exchange = exchangeOf(request)
    if (exchange === undefined) return handler.call(this, request, reply)
    // A hook has replied, and Fastify cannot tell: its reply still waits, for an error handler perhaps.
    if (hasBegun(reply)) return undefined
    if (exchange.body.readEarly && answerEarlyBody(exchange)) return undefined
    if (exchange.lease === undefined) {
      unwatchEarly(reply)
      return handler.call(this, request, reply)
    }
    checkFingerprint(exchange)
    if (isForeign(exchange)) return undefined
    const run = startRun(exchange)
    const result: unknown = handler.call(this, request, reply)
    if (result === undefined) return undefined
    if (!isThenable(result)) {
      run.to('ended')
      return result
    }
    if ((result as unknown) === reply) return watchDelegated(exchange, run, result)
    const promise = promiseOf(result)
    run.promised(promise)
    return promise
  }
}

/** The handler has returned the reply itself, which tells when it was sent. */
function watchDelegated (exchange: Exchange, run: HandlerRun, reply: PromiseLike<unknown>): unknown {
  run.to('promise')
  reply.then(value => handlerEnded(exchange, value), () => handlerFailed(exchange))
  return reply
}

/** Notes that the handler starts: what is sent from here on is its reply. */
export function startRun (exchange: Exchange): HandlerRun {
  unwatchEarly(exchange.reply)
  exchange.run = new HandlerRun()
  return exchange.run
}

/**
 * Whether its key is bound to another request, which has been answered then. Where the handler reads the body, a step
 * asks again.
 */
function isForeign (exchange: Exchange): boolean {
  return exchange.boundTo !== '' && exchange.body.whole && refuseForeign(
    exchange, error => { exchange.reply.send(error) }
  )
}

/** A route's own `fingerprint` is asked before the handler: where it fails, nothing has happened yet. */
export function checkFingerprint (exchange: Exchange): void {
  if (exchange.route.fingerprint === undefined || !exchange.body.whole) return
  try {
    exchange.ensureFingerprint()
  } catch (error) {
    exchange.refuseBody()
    throw error
  }
}

/**
 * Notes what is sent from the claim on; the same functions for all, since V8 promotes objects that each have their own.
 */
export function watchReply (reply: FastifyReply): void {
  const watched = reply as WatchedReply
  watchEarly(reply)
  if (watched[kSend] !== undefined) return
  watched[kSend] = reply.send
  watched[kThen] = reply.then
  reply.send = send
  reply.then = then
}

const kSend = Symbol('fastify-idempotency send')
const kThen = Symbol('fastify-idempotency then')
interface WatchedReply { [kSend]?: FastifyReply['send'], [kThen]?: FastifyReply['then'] }

const send = function (this: FastifyReply, payload?: unknown) {
  const exchange = exchangeOf(this.request)
  if (exchange !== undefined) {
    if (isSecond(exchange, payload)) {
      tellDropped(exchange, payload)
      return this
    }
    noteSend(exchange, payload)
  }
  try {
    return sendBy((this as WatchedReply)[kSend] as FastifyReply['send'], this, payload)
  } catch (error) {
    if (exchange !== undefined) exchange.hasFailed = true
    throw error
  }
} as FastifyReply['send']

const then: FastifyReply['then'] = function (this: FastifyReply, fulfilled, rejected) {
  const run = exchangeOf(this.request)?.run
  // Of a reply that has left, it says nothing.
  if (run !== undefined && !this.sent) run.noteReturnedReply()
  return ((this as WatchedReply)[kThen] as FastifyReply['then']).call(this, fulfilled, rejected)
}

/**
 * Whether the handler has replied before: its first reply is sent, and kept, whichever is through the hooks first. Of
 * one that has ended, Fastify tells. Fastify's timeout takes the place of a reply that is not kept yet, and of a
 * stream, which may never end.
 */
function isSecond (exchange: Exchange, payload: unknown): boolean {
  const { reply, run, lease, hasFailed, answeredFor, passes } = exchange
  if (run?.replied !== true || hasFailed || answeredFor || hasEnded(reply)) return false
  return !(isTimeout(payload) && (passes === 0 || lease?.state === 'collecting'))
}

function noteSend (exchange: Exchange, payload: unknown): void {
  const { run } = exchange
  if (isTimeout(payload)) return noteTimeout(exchange)
  if (run === undefined) return
  if (!exchange.answeredFor) {
    run.noteReply()
  } else if (exchange.reply.sent && !run.hasEnded) {
    // The late reply of a handler that was answered for is all that is heard of its end.
    run.noteReply()
    if (payload instanceof Error) handlerFailed(exchange)
    else handlerEnded(exchange, payload)
  }
}

/** Fastify answers in the handler's place. A reply that is on its way already is not overtaken. */
export function noteTimeout (exchange: Exchange): void {
  if (exchange.outgoing !== undefined) return
  exchange.answeredFor = true
  if (exchange.run === undefined) noteBegun(exchange.reply, true)
  else listenForLateReply(exchange)
}

export function isTimeout (error: unknown): boolean {
  return (error as { code?: unknown } | null | undefined)?.code === 'FST_ERR_HANDLER_TIMEOUT'
}

/** What a callback handler may still do to a reply that has left, beside `send`: all that is heard of its end. */
function listenForLateReply (exchange: Exchange): void {
  const { reply } = exchange
  const late = (): void => {
    if (reply.sent && exchange.run?.phase !== 'promise') handlerEnded(exchange, undefined)
  }
  const { hijack, callNotFound } = reply
  reply.hijack = function () {
    late()
    return hijack.call(this)
  }
  reply.callNotFound = function () {
    late()
    return callNotFound.call(this)
  }
  const { raw } = reply
  const end = raw.end as (...args: unknown[]) => typeof raw
  raw.end = ((...args: unknown[]) => {
    late()
    return end.apply(raw, args)
  }) as typeof raw.end
}
