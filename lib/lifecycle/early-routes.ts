import type { FastifyInstance, FastifyRequest, HTTPMethods } from 'fastify'
import type { RouteContext } from '../config/config.ts'
import { customStrategies, presentedConstraints } from '../config/constraints.ts'
import { routeConfig } from '../config/route-config.ts'
import { NEVER } from '../config/rules.ts'
import { mayHaveKey, partOf, type Part } from './before-key.ts'
import type { Core } from './core.ts'

/**
 * Whether the server has a route whose method can take part. Its config is not to be had before its first request:
 * nothing public of Fastify tells it, nor which instance the route belongs to.
 */
export function mayHaveEarlyRoutes (instance: FastifyInstance): boolean {
  const methods = instance.supportedMethods.filter(method => !NEVER.has(method))
  return methods.some(method => treeOf(instance, method) !== '(empty tree)')
}

/** The routes of the server so far that take part if their config does not say otherwise. */
export function listEarlyRoutes ({ config }: Core, instance: FastifyInstance): string[] {
  return Array.from(config.methods).flatMap(method => {
    return urlsIn(treeOf(instance, method), ` (${method})`).map(url => `${method} ${url}`)
  })
}

function treeOf (instance: FastifyInstance, method: string): string {
  return instance.printRoutes({ method: method as HTTPMethods })
}

const LINE = /^((?:│ {3}| {4})*)[├└]── (.*)$/

/** The URLs in Fastify's tree: each line has its depth, its piece of the URL, and `mark` where a route ends. */
function urlsIn (tree: string, mark: string): string[] {
  const pieces: string[] = []
  const urls: string[] = []
  for (const line of tree.split('\n')) {
    const [, indent = '', text] = LINE.exec(line) ?? []
    if (text === undefined) continue
    const [piece = ''] = text.split(mark)
    pieces.splice(indent.length / 4, Infinity, piece === '(empty root node)' ? '' : piece)
    if (text.includes(mark)) urls.push(pieces.join(''))
  }
  return urls
}

/** Whether and how routes take part that `onRoute` has not shown. */
export class EarlyRoutes {
  readonly #core: Core
  readonly #known = new WeakMap<object, Part>()
  #strategies: string[] | undefined

  constructor (core: Core) {
    this.#core = core
  }

  /** Whether a request may carry a key. */
  mayHaveKey (request: FastifyRequest): boolean {
    const route = this.find(request)
    return route !== undefined && mayHaveKey(this.#core, request, route)
  }

  /** The same as `of`; wrong options of a route are told later. */
  find (request: FastifyRequest): RouteContext | undefined {
    try {
      return this.of(request)
    } catch {
      return undefined
    }
  }

  /** @throws {TypeError} naming the route when its options are wrong. */
  of (request: FastifyRequest): RouteContext | undefined {
    if (request.is404) return undefined
    const { config, method, url, bodyLimit } = request.routeOptions
    if (partOf(config) !== undefined) return undefined
    let known = this.#known.get(config)
    if (known === undefined) {
      const found = routeConfig(this.#core.config, config.idempotency, [method].flat(), String(url))
      const constraints = presentedConstraints(request.server)
      known = found === undefined
        ? null
        : { route: { ...found.route, bodyLimit: bodyLimit as number, constraints }, covered: found.covered }
      this.#known.set(config, known)
    }
    if (known?.covered.has(request.method) !== true) return undefined
    this.#refuseStrategies(request)
    return known.route
  }

  /** @throws {Error} where two routes could not be told apart, so that one would replay the other's response. */
  #refuseStrategies (request: FastifyRequest): void {
    this.#strategies ??= customStrategies(request.server)
    const [name] = this.#strategies
    if (name === undefined) return
    throw new Error(`fastify-idempotency: ${routeOf(request)} was declared before the plugin was loaded, so that its ` +
      `value of the constraint '${name}' cannot be told; write \`await app.register(idempotency)\` before the route`)
  }
}

/** As messages name it. */
export function routeOf ({ method, routeOptions }: FastifyRequest): string {
  return `${method} ${String(routeOptions.url)}`
}
