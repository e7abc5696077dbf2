import type { FastifyReply, RouteHandlerMethod } from 'fastify'
import type { Core } from './core.ts'
import type { Exchange } from './exchange.ts'
import { withdraw } from './response.ts'
import { handlerEnded, handlerFailed } from './settle.ts'

/**
 * Watches a handler to its end, which no hook tells where the client has left or Fastify
 * has answered in the handler's place.
 */
export function watchHandler (core: Core, handler: RouteHandlerMethod): RouteHandlerMethod {
  return function (request, reply) {
    const exchange = request.idempotency as Exchange | null
    if (exchange === null || !exchange.holding) return handler.call(this, request, reply)
    watchReply(core, exchange)
    const result: unknown = handler.call(this, request, reply)
    if (typeof (result as PromiseLike<unknown> | undefined)?.then === 'function') watchPromise(core, exchange, result as PromiseLike<unknown>)
    else if (result !== undefined) exchange.handler = 'ended'
    return result
  }
}

/** Notes calls of `reply.send`, and that a handler has returned the reply itself. */
export function watchReply (core: Core, exchange: Exchange): void {
  const { reply } = exchange
  exchange.handler = 'running'
  exchange.send = reply.send
  exchange.then = reply.then
  reply.send = core.watched.send
  reply.then = core.watched.then
}

/** What replaces a reply's methods; the same functions for all, since V8 promotes objects that each have their own. */
export function watchedMethods (core: () => Core): Pick<FastifyReply, 'send' | 'then'> {
  return {
    send (this: FastifyReply, payload?: unknown) {
      const exchange = this.request.idempotency as Exchange
      if (isTimeout(payload)) {
        noteTimeout(exchange)
      } else if (!exchange.timedOut) {
        exchange.sendCalled = true
      } else if (this.sent && exchange.handler === 'running') {
        // The late reply of a handler that was answered for is all that is heard of its end.
        exchange.sendCalled = true
        if (payload instanceof Error) handlerFailed(core(), exchange)
        else handlerEnded(core(), exchange, payload)
      }
      return exchange.send.call(this, payload)
    },
    then (this: FastifyReply, fulfilled, rejected) {
      const exchange = this.request.idempotency as Exchange
      exchange.delegated = true
      return exchange.then.call(this, fulfilled, rejected)
    }
  } as Pick<FastifyReply, 'send' | 'then'>
}

export function watchPromise (core: Core, exchange: Exchange, result: PromiseLike<unknown>): void {
  exchange.promised = true
  result.then(value => handlerEnded(core, exchange, value), () => handlerFailed(core, exchange))
}

/** Marks replies that Fastify sends in a handler's place, or in that of a replay which failed, and bodies that a parser refused. */
export function noteError (core: Core, exchange: Exchange, error: unknown): void {
  const { body, handler, unseen, replay, reply } = exchange
  if (replay !== undefined) {
    exchange.replay = undefined
    exchange.replayed = false
    return withdraw(reply, replay, core.config.replayedHeaderName)
  }
  if (isTimeout(error)) noteTimeout(exchange)
  else if (handler === 'none' && !body.whole) exchange.refusedBody = true
  // No hook of ours stands between the parser and the hooks of a route declared earlier.
  else if (unseen && body.present) exchange.letThrough = true
}

/** A reply that is on its way already is not overtaken. */
function noteTimeout (exchange: Exchange): void {
  if (!exchange.passing) exchange.timedOut = true
}

function isTimeout (error: unknown): boolean {
  return (error as { code?: unknown } | null | undefined)?.code === 'FST_ERR_HANDLER_TIMEOUT'
}
