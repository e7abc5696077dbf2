import type { FastifyInstance, RouteOptions as FastifyRoute } from 'fastify'
import { STAGES, type IdempotencyStage } from '../config/options.ts'

/** A route that takes part, as `onRoute` saw it: later plugins change the same object. */
interface Seen {
  route: FastifyRoute
  stage: IdempotencyStage
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

  add (route: FastifyRoute, stage: IdempotencyStage, taking: unknown, afterOurs: number): void {
    this.#seen.push({ route, stage, taking, count: hooksOf(route, stage).length, afterOurs })
  }

  /** To be called when all plugins are there. `forgotten`: whether a Redis client came too late to be used. */
  tell (forgotten: () => boolean): void {
    const { log } = this.#instance
    if (forgotten()) log.warn('idempotency: @fastify/redis was registered after fastify-idempotency, which keeps its keys in this process only; register @fastify/redis first')
    const warn = (is: (seen: Seen) => boolean, text: string): void => {
      const routes = this.#seen.filter(is).map(({ route }) => `${String(route.method)} ${route.url}`)
      if (routes.length > 0) log.warn({ routes }, `idempotency: ${text}`)
    }
    warn(authenticatesLater, '@fastify/auth checks requests of these routes in a later stage than "hook": a replay is sent to anybody who has key, body and scope; set "hook" to that stage')
    warn(isOvertaken, 'hooks that a plugin registered after fastify-idempotency has added to the stage of "hook" do not see replays on these routes; register that plugin first')
    warn(({ afterOurs }) => afterOurs > this.#added, 'the response of these routes is kept before their own onSend hooks, which act on replays once more; register fastify-idempotency before @fastify/compress')
    this.#seen = []
  }
}

function hooksOf (route: FastifyRoute, stage: IdempotencyStage): unknown[] {
  return [route[stage] ?? []].flat()
}

/** The function that `fastify.auth()` makes is told by its name alone. */
function authenticatesLater ({ route, stage }: Seen): boolean {
  const later = STAGES.slice(STAGES.indexOf(stage) + 1)
  return later.some(name => hooksOf(route, name).some(hook => (hook as { name?: string }).name === 'bound _auth'))
}

/** A hook that is not found has been wrapped, as @fastify/otel does, which changes no order. */
function isOvertaken ({ route, stage, taking, count }: Seen): boolean {
  const hooks = hooksOf(route, stage)
  return taking !== undefined && hooks.length > count && hooks.at(-1) !== taking
}
