import type { Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteOptions as FastifyRoute } from 'fastify'
import type { RouteContext } from '../config/config.ts'
import { constraintsOf } from '../config/constraints.ts'
import { participants } from '../config/participants.ts'
import { isLate, routeConfig } from '../config/route-config.ts'
import { RequestBody } from '../request/body.ts'
import { noteRefusal, replayFailed } from './answer.ts'
import { markPart, mayHaveKey } from './before-key.ts'
import { claimKey, refuseMissing, replayOrRun } from './claim.ts'
import type { Core } from './core.ts'
import { Exchange, exchangeOf, hasClosed } from './exchange.ts'
import { isTimeout, noteTimeout, watchReply, wrapHandler } from './handler.ts'
import { onSend } from './on-send.ts'
import { hasBegun, noteFailing } from './outgoing.ts'

export type Done = (error?: Error) => void

/**
 * Puts the plugin on one route that is being declared: every hook at the end of its stage.
 * Arrays are copied: those in `route` are the user's own.
 */
export function addRouteHooks (core: Core, instance: FastifyInstance, declared: FastifyRoute): void {
  const methods = [declared.method].flat().map(method => method.toUpperCase())
  const found = routeConfig(core.config, declared.config?.idempotency, methods, declared.url)
  if (found === undefined) return markPart(declared, null)
  const { route: config, covered } = found
  participants.set(declared, { config: { ...core.config, route: config }, covered, instance })
  const route: RouteContext = {
    ...config,
    bodyLimit: declared.bodyLimit ?? instance.initialConfig.bodyLimit as number,
    constraints: constraintsOf(declared.constraints as Record<string, unknown> | undefined)
  }
  markPart(declared, { route, covered })
  const several = methods.some(method => !covered.has(method))
  const takesPart = (request: FastifyRequest): boolean => !several || covered.has(request.method)

  let last: boolean | undefined
  const onRequest = (request: FastifyRequest, reply: FastifyReply, done: Done): void => {
    if (!takesPart(request)) return done()
    // A hook has replied, and Fastify cannot tell.
    if (hasBegun(reply)) return
    const exchange = begin(core, request, reply, route, request.raw, false)
    if (exchange === undefined) return needKey(core, request, reply, route, done)
    // A hook that another plugin has added after this one runs first.
    last ??= [declared.onRequest].flat().at(-1) === onRequest
    if (last && route.hook === 'onRequest') return claimKey(exchange, done)
    watchReply(reply)
    done()
  }
  const watch = (request: FastifyRequest, reply: FastifyReply, done: Done): void => {
    if (takesPart(request) && mayHaveKey(core, request, route)) watchReply(reply)
    done()
  }
  const guards = [declared.onRequest ?? []].flat()
  declared.onRequest = guards.length === 0 ? [onRequest] : [watch, ...guards, onRequest]
  const preParsing = (
    request: FastifyRequest, _reply: FastifyReply, payload: Readable, done: Done
  ): void => endOfPreParsing(request, payload, done)
  append(declared, 'preParsing', preParsing)
  const late = (request: FastifyRequest, _reply: FastifyReply, done: Done): void => claimAndAct(
    exchangeOf(request), done
  )
  if (isLate(route.hook)) append(declared, route.hook, late)
  append(declared, 'onError', (request: FastifyRequest, reply: FastifyReply, error: Error, done: Done) => {
    const exchange = exchangeOf(request)
    noteRefusal(core, request, reply, route, error, exchange)
    noteError(reply, exchange, error, done)
  })
  // What is kept is uncompressed: each client gets an encoding that it accepts.
  const own = [declared.onSend ?? []].flat()
  let final: boolean | undefined
  const isLast = (): boolean => {
    final ??= [declared.onSend].flat().at(-1) === storing
    return final
  }
  const storing = onSend(false, isLast)
  declared.onSend = core.compressed ? [storing, ...own] : [...own, storing]
  declared.handler = wrapHandler(declared.handler)
  const claiming = { onRequest: undefined, preParsing, preValidation: late, preHandler: late }[route.hook]
  core.warnings.add(
    { route: declared, instance, config, taking: claiming, afterOurs: core.compressed ? own.length : 0 }
  )
}

/** Starts to watch the request's body if the request may carry a key. */
export function begin (
  core: Core, request: FastifyRequest, reply: FastifyReply, route: RouteContext, stream: Readable,
  declaredEarly: boolean
): Exchange | undefined {
  if (!mayHaveKey(core, request, route)) return undefined
  const body = new RequestBody(request, stream, route.fingerprint !== undefined)
  return new Exchange(core, request, reply, route, body, declaredEarly)
}

export function needKey (
  core: Core, request: FastifyRequest, reply: FastifyReply, route: RouteContext, done: Done
): void {
  if (route.required) refuseMissing(core, request, reply, route, done)
  else done()
}

function endOfPreParsing (request: FastifyRequest, payload: Readable, done: Done): void {
  const exchange = exchangeOf(request)
  if (exchange === undefined) return done()
  const { body, route } = exchange
  exchange.admit()
  // A hook that has read the body may have made another stream of its bytes.
  if (body.readEarly && payload !== request.raw) {
    exchange.body = new RequestBody(request, payload, route.fingerprint !== undefined)
  } else body.replacedBy(payload)
  if (isLate(route.hook)) done()
  else claimAndAct(exchange, done)
}

/** Takes the key, unless that was done before, and acts on the answer. */
export function claimAndAct (exchange: Exchange | undefined, done: Done): void {
  if (exchange === undefined) return done()
  // A hook has replied, and Fastify cannot tell.
  if (hasBegun(exchange.reply)) return
  if (exchange.claim === undefined) claimNow(exchange, done)
  else replayOrRun(exchange, done)
}

function claimNow (exchange: Exchange, done: Done): void {
  claimKey(exchange, error => {
    if (error !== undefined) done(error)
    else replayOrRun(exchange, done)
  })
}

/**
 * Marks replies that Fastify sends in a handler's place, or in that of a replay which failed, and bodies that a
 * parser refused.
 */
export function noteError (reply: FastifyReply, exchange: Exchange | undefined, error: Error, done: Done): void {
  noteFailing(reply)
  if (exchange === undefined) return done()
  exchange.hasFailed = true
  const { replay, run, body, declaredEarly } = exchange
  // The client has left before the first byte: the stream still decides, and nobody is there for an error.
  if (isStreamOfNobody(exchange, error)) return
  if (replay !== undefined) {
    // Answered: nothing of the error goes on.
    if (replayFailed(exchange, error)) return
  } else if (isTimeout(error)) {
    noteTimeout(exchange)
  } else if (run === undefined && !body.whole) {
    exchange.refuseBody()
  } else if (declaredEarly && body.present) {
    // No hook of ours stands between the parser and the hooks of a route declared earlier.
    exchange.admit()
  }
  done()
}

function isStreamOfNobody (exchange: Exchange, error: Error): boolean {
  const { code } = error as NodeJS.ErrnoException
  const { lease } = exchange
  return lease !== undefined && lease.state !== 'held' && code === 'ERR_STREAM_PREMATURE_CLOSE' && hasClosed(exchange)
}

type HookName = 'onRequest' | 'preParsing' | 'preValidation' | 'preHandler' | 'onError'

function append (route: FastifyRoute, name: HookName, hook: unknown): void {
  const hooks = route as unknown as Record<HookName, unknown>
  hooks[name] = [...[hooks[name] ?? []].flat(), hook]
}
