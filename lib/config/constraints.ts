import { inspect } from 'node:util'
import type { FastifyInstance, FastifyRequest } from 'fastify'

/** What a request presented for the constraints of its route, where it has any. */
export type Constraints = ((request: FastifyRequest) => string) | undefined

/** What Fastify's own strategies look at. */
const PRESENTED = ['host', 'version']

/** What a request presents for the constraints that its route was declared with. */
export function constraintsOf (constraints: Record<string, unknown> | undefined): Constraints {
  const entries = Object.entries(constraints ?? {})
  if (entries.length === 0) return undefined
  // What a strategy of the application's own derives is not public; the route's value tells routes apart.
  return request => entries.map(([name, value]) => `\n${name} ${presented(request, name) ?? inspect(value)}`).join('')
}

/** The same for a route that was declared before the plugin: what counts for any route of the instance. */
export function presentedConstraints (instance: FastifyInstance): Constraints {
  const names = PRESENTED.filter(name => instance.hasConstraintStrategy(name))
  if (names.length === 0) return undefined
  return request => names.map(name => `\n${name} ${presented(request, name)}`).join('')
}

/**
 * The constraint strategies of the application's own that routes of an instance use. A route that was declared before
 * the plugin does not tell its values of them.
 */
export function customStrategies (instance: FastifyInstance): string[] {
  const tree = instance.printRoutes({ commonPrefix: false })
  const names = Array.from(tree.matchAll(/[{,]"([^"]+)":/g), ([, name]) => name as string)
  return [...new Set(names)].filter(name => !PRESENTED.includes(name) && instance.hasConstraintStrategy(name))
}

/** As Fastify's own strategies derive it. */
function presented ({ headers }: FastifyRequest, name: string): string | undefined {
  if (name === 'host') return String(headers.host ?? headers[':authority'])
  return name === 'version' ? String(headers['accept-version']) : undefined
}
