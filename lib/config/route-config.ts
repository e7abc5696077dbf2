import { inspect } from 'node:util'
import { parseRouteOptions, type Config, type RouteConfig } from './config.ts'
import type { IdempotencyStage } from './options.ts'
import { NEVER } from './rules.ts'

/**
 * Whether and how a route takes part, and with which of its methods: those of the option "methods", and with a
 * config of its own all that can.
 * @throws {TypeError} naming the route when its options are wrong, or have no effect.
 */
export function routeConfig (
  config: Config, given: unknown, methods: string[], url: string
): { route: RouteConfig, covered: ReadonlySet<string> } | undefined {
  if (given === false || (given === undefined && !config.global)) return undefined
  const takesPart = (method: string): boolean => given === undefined ? config.methods.has(method) : !NEVER.has(method)
  const covered = new Set(methods.filter(takesPart))
  const where = `fastify-idempotency: config.idempotency of ${methods.join(',')} ${url}`
  const route = given === true || given === undefined ? config.route : readConfig(given, config, where)
  if (covered.size > 0) return { route, covered }
  // Fastify makes HEAD routes of GET routes by itself, with the same config.
  if (given === undefined || methods.join() === 'HEAD') return undefined
  throw new TypeError(`${where} has no effect: ${[...NEVER].join(', ')} never take part; remove the config`)
}

function readConfig (given: unknown, config: Config, where: string): RouteConfig {
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw new TypeError(`${where}: must be true, false or an object of options, got ${inspect(given)}`)
  }
  return parseRouteOptions(given, config, `${where}: `)
}

export function isLate (hook: IdempotencyStage): hook is 'preValidation' | 'preHandler' {
  return hook === 'preValidation' || hook === 'preHandler'
}
