import { tracingChannel } from 'node:diagnostics_channel'
import type { Readable } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteOptions as FastifyRoute } from 'fastify'
import { RequestBody } from './body.ts'
import type { Core } from './core.ts'
import { Exchange } from './exchange.ts'
import { noteError, watchHandler, watchReply } from './handler.ts'
import { onSend } from './keep.ts'
import { parseRouteOptions, type Config, type RouteConfig, type Stage } from './options.ts'
import { participants } from './routes.ts'
import { handlerEnded, handlerFailed } from './settle.ts'
import { act, refuseMissing, take } from './take.ts'

type Done = (error?: Error) => void

/** Whether and how a route takes part. @throws {TypeError} naming the route when its options are wrong. */
export function routeConfig (config: Config, given: unknown, methods: string[], url: string): RouteConfig | undefined {
  if (given === false || (given === undefined && !config.global)) return undefined
  const takesPart = methods.some(method => config.methods.has(method))
  if (given === undefined) return takesPart ? config.route : undefined
  const name = `${methods.join(',')} ${url}`
  const route = parseRouteOptions(given, config, name)
  if (!takesPart && methods.join() !== 'HEAD') {
    throw new TypeError(`fastify-idempotency: config.idempotency of ${name} has no effect: the option "methods" covers ${[...config.methods].join(', ')} only; add the method there, or remove the config`)
  }
  return takesPart ? route : undefined
}

/**
 * Puts the plugin on one route that is being declared: every hook at the end of its stage.
 * Arrays are made anew: those in `route` are the user's own.
 */
export function attachToRoute (core: Core, instance: FastifyInstance, declared: FastifyRoute): void {
  const methods = [declared.method].flat().map(method => method.toUpperCase())
  const route = routeConfig(core.config, declared.config?.idempotency, methods, declared.url)
  if (route === undefined) return
  participants.set(declared, { config: { ...core.config, route }, instance })
  const several = methods.some(method => !core.config.methods.has(method))
  const takesPart = (request: FastifyRequest): boolean => !several || core.config.methods.has(request.method)

  let last: boolean | undefined
  const onRequest = (request: FastifyRequest, reply: FastifyReply, done: Done): void => {
    if (!takesPart(request)) return done()
    const exchange = begin(core, request, reply, route, request.raw, false)
    if (exchange === undefined) return needKey(core, request, reply, route, done)
    // A hook that another plugin has put behind this one must have its say first.
    last ??= [declared.onRequest].flat().at(-1) === onRequest
    if (last && route.hook === 'onRequest') take(core, exchange, done)
    else done()
  }
  append(declared, 'onRequest', onRequest)
  const preParsing = (request: FastifyRequest, _reply: FastifyReply, payload: Readable, done: Done): void => endOfPreParsing(core, request, payload, done)
  append(declared, 'preParsing', preParsing)
  const late = (request: FastifyRequest, _reply: FastifyReply, done: Done): void => takeAndAct(core, request, done)
  if (isLate(route.hook)) append(declared, route.hook, late)
  append(declared, 'onError', (request: FastifyRequest, _reply: FastifyReply, error: Error, done: Done) => {
    const exchange = request.idempotency as Exchange | null
    if (exchange !== null) noteError(core, exchange, error)
    done()
  })
  // What is kept is uncompressed: each client gets an encoding that it accepts.
  const own = [declared.onSend ?? []].flat()
  let final: boolean | undefined
  const isFinal = (): boolean => {
    final ??= [declared.onSend].flat().at(-1) === keeping
    return final
  }
  const keeping = onSend(core, false, isFinal)
  declared.onSend = core.compressed ? [keeping, ...own] : [...own, keeping]
  declared.handler = watchHandler(core, declared.handler)
  core.order.add(declared, route.hook, { onRequest: undefined, preParsing, preValidation: late, preHandler: late }[route.hook], core.compressed ? own.length : 0)
}

/**
 * Puts the plugin on the routes that were declared before it was loaded, through hooks of
 * the instance: each runs after all of the stage before it.
 */
export function attachToInstance (core: Core, instance: FastifyInstance): void {
  const known = new WeakMap<object, RouteConfig | null>()
  const seen = new WeakSet<object>()
  instance.addHook('onRoute', route => {
    // A copy: the user's own object may also serve a route that was declared earlier.
    route.config = { ...route.config }
    seen.add(route.config)
  })
  const routeOf = (request: FastifyRequest): RouteConfig | null => {
    if (!core.config.methods.has(request.method) || request.is404) return null
    const { config, method, url } = request.routeOptions
    let route = known.get(config)
    if (route === undefined) {
      route = routeConfig(core.config, config.idempotency, [method].flat(), String(url)) ?? null
      known.set(config, route)
    }
    return route
  }
  const unseen = (request: FastifyRequest): Exchange | undefined => {
    const exchange = request.idempotency as Exchange | null
    return exchange?.unseen === true ? exchange : undefined
  }

  instance.addHook('preParsing', (request, reply, payload, done) => {
    // A child plugin that was loaded earlier knows nothing of our decorator.
    request.idempotency ??= null
    if (request.idempotency !== null) return done()
    let route
    try {
      route = routeOf(request)
    } catch (error) {
      return done(error as Error)
    }
    if (route === null || seen.has(request.routeOptions.config)) return done()
    const exchange = begin(core, request, reply, route, payload as Readable, true)
    if (exchange === undefined) return needKey(core, request, reply, route, done as Done)
    if (route.hook === 'preHandler') return done(tooLate(request))
    if (route.hook === 'onRequest') return takeAndAct(core, request, done as Done)
    done()
  })
  instance.addHook('preValidation', (request, _reply, done) => {
    const exchange = unseen(request)
    if (exchange === undefined) return done()
    exchange.letThrough = true
    if (exchange.route.hook === 'preParsing') takeAndAct(core, request, done as Done)
    else done()
  })
  instance.addHook('preHandler', (request, _reply, done) => {
    if (unseen(request)?.route.hook === 'preValidation') takeAndAct(core, request, done as Done)
    else done()
  })
  instance.addHook('onError', (request, _reply, error, done) => {
    const exchange = unseen(request)
    if (exchange !== undefined) noteError(core, exchange, error)
    done()
  })
  instance.addHook('onSend', onSend(core, true, () => false))
  watchTracedHandlers(core, instance)
}

/** Handlers of routes declared earlier cannot be wrapped; Fastify's tracing channels tell their start, and their end unless they hijack. */
function watchTracedHandlers (core: Core, instance: FastifyInstance): void {
  const exchangeOf = (message: unknown): Exchange | undefined => {
    const { idempotency } = (message as { request: FastifyRequest }).request
    // The channels are the process's: another instance's handlers are told as well.
    return idempotency instanceof Exchange && idempotency.owner === core && idempotency.unseen && idempotency.holding ? idempotency : undefined
  }
  const started = (message: unknown): void => {
    const exchange = exchangeOf(message)
    if (exchange !== undefined) watchReply(core, exchange)
  }
  const ended = (message: unknown): void => {
    const exchange = exchangeOf(message)
    if (exchange === undefined) return
    if ((message as { error?: unknown }).error === undefined) handlerEnded(core, exchange, undefined)
    else handlerFailed(core, exchange)
  }
  const { start, asyncEnd } = tracingChannel('fastify.request.handler')
  start.subscribe(started)
  asyncEnd.subscribe(ended)
  instance.addHook('onClose', (_instance, done) => {
    start.unsubscribe(started)
    asyncEnd.unsubscribe(ended)
    done()
  })
}

/** Starts to watch the request's body if the request may carry a key. */
function begin (core: Core, request: FastifyRequest, reply: FastifyReply, route: RouteConfig, stream: Readable, unseen: boolean): Exchange | undefined {
  if (route.key === undefined && request.headers[core.config.header] === undefined) return undefined
  const body = new RequestBody(request, stream, route.fingerprint !== undefined)
  const exchange = new Exchange(core, request, reply, route, body, unseen)
  request.idempotency = exchange
  return exchange
}

function needKey (core: Core, request: FastifyRequest, reply: FastifyReply, route: RouteConfig, done: Done): void {
  if (route.required) refuseMissing(core, request, reply, route, done)
  else done()
}

function endOfPreParsing (core: Core, request: FastifyRequest, payload: Readable, done: Done): void {
  const exchange = request.idempotency as Exchange | null
  if (exchange === null) return done()
  exchange.letThrough = true
  exchange.body.replacedBy(payload)
  if (isLate(exchange.route.hook)) done()
  else takeAndAct(core, request, done)
}

function takeAndAct (core: Core, request: FastifyRequest, done: Done): void {
  const exchange = request.idempotency as Exchange | null
  if (exchange === null) return done()
  if (exchange.taken) return act(core, exchange, done)
  take(core, exchange, error => {
    if (error !== undefined) done(error)
    else act(core, exchange, done)
  })
}

function isLate (hook: Stage): hook is 'preValidation' | 'preHandler' {
  return hook === 'preValidation' || hook === 'preHandler'
}

function tooLate (request: FastifyRequest): Error {
  return new Error(`fastify-idempotency: ${request.method} ${String(request.routeOptions.url)} was declared before the plugin was loaded, so that hook: 'preHandler' cannot be honoured; write \`await app.register(idempotency)\` before the route`)
}

type HookName = 'onRequest' | 'preParsing' | 'preValidation' | 'preHandler' | 'onError'

function append (route: FastifyRoute, name: HookName, hook: unknown): void {
  const hooks = route as unknown as Record<HookName, unknown>
  hooks[name] = [...[hooks[name] ?? []].flat(), hook]
}
