import { tracingChannel } from 'node:diagnostics_channel'
import type { Readable } from 'node:stream'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { errorFrom } from '../util/promise.ts'
import { handlerEnded, handlerFailed } from './after-close.ts'
import { noteRefusal } from './answer.ts'
import { refuseForeign } from './binding.ts'
import { tellBeforeKey } from './before-key.ts'
import type { Core } from './core.ts'
import { answerEarlyBody } from './early-body.ts'
import { EarlyRoutes, listEarlyRoutes, mayHaveEarlyRoutes, routeOf } from './early-routes.ts'
import { exchangeOf, type Exchange } from './exchange.ts'
import { checkFingerprint, startRun, watchReply } from './handler.ts'
import { onSend } from './on-send.ts'
import { hasBegun, unwatchEarly } from './outgoing.ts'
import { begin, claimAndAct, needKey, noteError, type Done } from './route-hooks.ts'

/**
 * The second way in, for routes that were declared before the plugin was loaded: hooks of the instance, each of
 * which runs after all of the stage before it. Where no such route can take part, there are none.
 */
export function addInstanceHooks (core: Core, instance: FastifyInstance): void {
  if (!mayHaveEarlyRoutes(instance)) return tellBeforeKey(core, instance, () => undefined)
  const listed = listEarlyRoutes(core, instance)
  if (listed.length > 0) {
    instance.log.info({ routes: listed }, 'idempotency: these routes were declared before the plugin was loaded. ' +
      'Those of them that take part are served by hooks of the instance; `await app.register(idempotency)` before ' +
      'them would be better: it costs less, and hook: \'preHandler\' and OpenAPI need it')
  }
  const routes = new EarlyRoutes(core)
  tellBeforeKey(core, instance, request => routes.find(request))
  const tracing = new HandlerTracing(core)
  // What hooks reply before ours of their stage must be known.
  instance.addHook('onRequest', (request, reply, done) => {
    if (routes.mayHaveKey(request)) watchReply(reply)
    done()
  })
  instance.addHook('preParsing', (request, reply, payload, done) => {
    if (exchangeOf(request) !== undefined) return done()
    if (hasBegun(reply)) return
    let route
    try {
      route = routes.of(request)
    } catch (error) {
      return done(error as Error)
    }
    if (route === undefined) return done()
    tracing.start()
    const exchange = begin(core, request, reply, route, payload as Readable, true)
    if (exchange === undefined) return needKey(core, request, reply, route, done as Done)
    if (route.hook === 'preHandler') return done(tooLate(request))
    if (route.hook === 'onRequest') return claimAndAct(exchange, done as Done)
    done()
  })
  instance.addHook('preValidation', (request, _reply, done) => {
    const exchange = earlyOf(request)
    if (exchange === undefined) return done()
    exchange.admit()
    if (exchange.route.hook !== 'preParsing') return beforeHandler(exchange, done as Done)
    claimAndAct(exchange, error => {
      if (error !== undefined) done(error)
      else beforeHandler(exchange, done as Done)
    })
  })
  instance.addHook('preHandler', (request, _reply, done) => {
    const exchange = earlyOf(request)
    if (exchange !== undefined && hasBegun(exchange.reply)) return
    if (exchange?.route.hook !== 'preValidation') return done()
    claimAndAct(exchange, error => {
      if (error !== undefined) done(error)
      else beforeHandler(exchange, done as Done)
    })
  })
  instance.addHook('onError', (request, reply, error, done) => {
    const exchange = earlyOf(request)
    if (exchange !== undefined) noteRefusal(core, request, reply, exchange.route, error, exchange)
    noteError(reply, exchange, error, done as Done)
  })
  instance.addHook('onSend', onSend(true, () => false))
  instance.addHook('onClose', (_instance, done) => {
    tracing.stop()
    done()
  })
}

/** The state of a request whose route was declared earlier. */
function earlyOf (request: FastifyRequest): Exchange | undefined {
  const exchange = exchangeOf(request)
  return exchange?.declaredEarly === true ? exchange : undefined
}

/** What the handler's wrapper does elsewhere: no hook of ours comes later. */
function beforeHandler (exchange: Exchange, done: Done): void {
  if (hasBegun(exchange.reply)) return
  try {
    if (exchange.body.readEarly && answerEarlyBody(exchange)) return
    if (exchange.lease !== undefined) checkFingerprint(exchange)
    if (exchange.boundTo !== '' && exchange.body.whole && refuseForeign(exchange, done)) return
  } catch (thrown) {
    return done(errorFrom(thrown))
  }
  done()
}

/**
 * Handlers of routes declared earlier cannot be wrapped; Fastify's tracing channels tell their start, and their end
 * unless they hijack. Listened to from the first request of such a route on.
 */
class HandlerTracing {
  readonly #core: Core
  readonly #channel = tracingChannel('fastify.request.handler')
  #started = false

  constructor (core: Core) {
    this.#core = core
  }

  start (): void {
    if (this.#started) return
    this.#started = true
    this.#channel.start.subscribe(this.#onStart)
    this.#channel.asyncEnd.subscribe(this.#onAsyncEnd)
  }

  stop (): void {
    this.#channel.start.unsubscribe(this.#onStart)
    this.#channel.asyncEnd.unsubscribe(this.#onAsyncEnd)
  }

  #onStart = (message: unknown): void => {
    const exchange = this.#exchangeIn(message)
    if (exchange?.lease?.state === 'held') startRun(exchange)
    else if (exchange !== undefined) unwatchEarly(exchange.reply)
  }

  #onAsyncEnd = (message: unknown): void => {
    const exchange = this.#exchangeIn(message)
    if (exchange === undefined) return
    if ((message as { error?: unknown }).error === undefined) handlerEnded(exchange, undefined)
    else handlerFailed(exchange)
  }

  /** The channels are the process's: other instances' handlers are told as well. */
  #exchangeIn (message: unknown): Exchange | undefined {
    const exchange = earlyOf((message as { request: FastifyRequest }).request)
    return exchange?.core === this.#core ? exchange : undefined
  }
}

function tooLate (request: FastifyRequest): Error {
  return new Error(`fastify-idempotency: ${routeOf(request)} was declared before ` +
    'the plugin was loaded, so that hook: \'preHandler\' cannot be honoured; write `await app.register(idempotency)` ' +
    'before the route')
}
