import type { FastifyInstance, RouteOptions as FastifyRoute } from 'fastify'
import { hasDefaultScope, type RouteConfig } from '../config/config.ts'
import { STAGES, type IdempotencyStage } from '../config/options.ts'

/** A route that takes part, as `onRoute` saw it: later plugins change the same object. */
interface Seen {
  route: FastifyRoute
  /** Where it was declared. */
  instance: FastifyInstance
  config: RouteConfig
  /** The hook that takes the key in a later stage, and how many there were with it. */
  taking: unknown
  count: number
  /** The onSend hooks that run after the response was kept. */
  afterOurs: number
}

/** Tells at start-up, once for each kind, of neighbours in an order that their user would regret. */
export class StartupWarnings {
  #seen: Seen[] = []
  readonly #instance: FastifyInstance
  /** The onSend hooks that earlier plugins have added to a route; more are its own. */
  readonly #added: number

  constructor (instance: FastifyInstance) {
    this.#instance = instance
    this.#added = ['@fastify/compress', '@fastify/otel'].filter(name => instance.hasPlugin(name)).length
  }

  add (seen: Omit<Seen, 'count'>): void {
    this.#seen.push({ ...seen, count: hooksOf(seen.route, seen.config.hook).length })
  }

  /** To be called when all plugins are there. `forgotten`: whether a Redis client came too late to be used. */
  tell (forgotten: () => boolean): void {
    const { log } = this.#instance
    if (forgotten()) {
      log.warn('idempotency: @fastify/redis was registered after fastify-idempotency, which keeps ' +
      'its keys in this process only; register @fastify/redis first')
    }
    const warn = (is: (seen: Seen) => boolean, text: string): void => {
      const routes = this.#seen.filter(is).map(({ route }) => `${String(route.method)} ${route.url}`)
      if (routes.length > 0) log.warn({ routes }, `idempotency: ${text}`)
    }
    warn(authenticatesLater, '@fastify/auth checks requests of these routes in a later stage than "hook": a ' +
      'replay is sent to anybody who has key, body and scope; set "hook" to that stage')
    warn(isOvertaken, 'hooks that a plugin registered after fastify-idempotency has added to the stage of "hook" ' +
      'do not see replays on these routes; register that plugin first')
    warn(({ afterOurs }) => afterOurs > this.#added, 'the response of these routes is kept before their own ' +
      'onSend hooks, which act on replays once more; register fastify-idempotency before @fastify/compress')
    warn(knowsCallersByCookie, 'a cookie or session plugin is there, and these routes have no "scope": callers told ' +
      "apart by a cookie alone share the anonymous scope, and one may get another's response; set " +
      "\"scope\" to a function of the caller, or to 'credentials' where Authorization or x-api-key tells callers apart")
    this.#seen = []
  }
}

function hooksOf (route: FastifyRoute, stage: IdempotencyStage): unknown[] {
  return [route[stage] ?? []].flat()
}

/** The function that `fastify.auth()` makes is told by its name alone. */
function authenticatesLater ({ route, config }: Seen): boolean {
  const later = STAGES.slice(STAGES.indexOf(config.hook) + 1)
  return later.some(name => hooksOf(route, name).some(hook => (hook as { name?: string }).name === 'bound _auth'))
}

/** A hook that is not found has been wrapped, as @fastify/otel does, which changes no order. */
function isOvertaken ({ route, config, taking, count }: Seen): boolean {
  const hooks = hooksOf(route, config.hook)
  return taking !== undefined && hooks.length > count && hooks.at(-1) !== taking
}

/** What @fastify/cookie, @fastify/session, @fastify/secure-session and @fastify/passport put on each request. */
const COOKIE_DECORATORS = ['cookies', 'session', 'passport']

function knowsCallersByCookie ({ instance, config }: Seen): boolean {
  return hasDefaultScope(config) && COOKIE_DECORATORS.some(name => instance.hasRequestDecorator(name))
}
