import type { FastifyContextConfig, FastifyInstance, FastifyRequest, RouteOptions as FastifyRoute } from 'fastify'
import type { RouteContext } from '../config/config.ts'
import { countLines } from '../protocol/key.ts'
import type { Core } from './core.ts'
import { isWithoutState } from './exchange.ts'

/**
 * Hooks of onRequest may run before the plugin's own, which gives a request its state. What they may not do before
 * the key is known must be refused by what the route and the header say.
 */

/** How a route takes part that `onRoute` has shown; `null`: not at all. */
export type Part = { route: RouteContext, covered: ReadonlySet<string> } | null

/** Marks the config of such a route. */
const kPart = Symbol('fastify-idempotency part')
type Marked = FastifyContextConfig & { [kPart]?: Part }

export function markPart (declared: FastifyRoute, part: Part): void {
  // A copy: the user's own object may also serve a route that was declared earlier. Fastify makes another one of it,
  // with all that it has.
  const config: Marked = { ...declared.config, [kPart]: part }
  declared.config = config
}

/** `undefined`: `onRoute` has not shown it. */
export function partOf (config: FastifyContextConfig): Part | undefined {
  return (config as Marked)[kPart]
}

const kMayGetKey = Symbol('fastify-idempotency may get a key')
type Instance = { [kMayGetKey]?: (request: FastifyRequest) => boolean }

/** `early`: the route of a request whose route was declared before the plugin, where it takes part. */
export function tellBeforeKey (
  core: Core, instance: FastifyInstance, early: (request: FastifyRequest) => RouteContext | undefined
): void {
  instance.decorate(kMayGetKey, (request: FastifyRequest) => {
    if (request.is404) return false
    const part = partOf(request.routeOptions.config)
    const route = part?.covered.has(request.method) === true ? part.route : early(request)
    return route !== undefined && mayHaveKey(core, request, route) && wasSent(core, request, route)
  })
}

/** Whether a request that has no state may have a key all the same, since the plugin's own hook has not run. */
export function mayGetKey (request: FastifyRequest): boolean {
  return isWithoutState(request) && (request.server as Instance)[kMayGetKey]?.(request) === true
}

export function mayHaveKey ({ config }: Core, { headers }: FastifyRequest, { key }: RouteContext): boolean {
  return key !== undefined || headers[config.header] !== undefined
}

/** A header that the client has not sent was set by a hook, after the plugin's own perhaps, for somebody else. */
function wasSent ({ config }: Core, { raw }: FastifyRequest, { key }: RouteContext): boolean {
  return key !== undefined || countLines(raw.rawHeaders, config.header) > 0
}
