import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { attachToInstance, attachToRoute } from './attach.ts'
import { Backlog } from './backlog.ts'
import type { Core } from './core.ts'
import { bounded } from './deadline.ts'
import type { RequestIdempotency } from './exchange.ts'
import { watchedMethods } from './handler.ts'
import { Leases } from './leases.ts'
import { createOperator, type Operator } from './operator.ts'
import { parseOptions, type Config, type FastifyIdempotencyOptions, type IdempotencyRouteOptions } from './options.ts'
import { Order } from './order.ts'
import { settleOver } from './settle.ts'
import type { Store } from './store.ts'
import { MemoryStore } from './stores/memory.ts'
import { RedisStore, wrongClient, type RedisClient } from './stores/redis.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** `false` opts the route out, `true` opts it in, an object tunes it. */
    idempotency?: boolean | IdempotencyRouteOptions
  }
  interface FastifyRequest {
    /** `null` where the plugin does nothing for this request. */
    idempotency: RequestIdempotency | null
  }
  interface FastifyInstance {
    idempotency: Operator
  }
}

/** Registers the plugin. @throws {TypeError} naming a wrong or unknown option. @throws {Error} where it is registered already. */
async function plugin (instance: FastifyInstance, options: FastifyIdempotencyOptions): Promise<void> {
  if (instance.hasDecorator('idempotency')) {
    throw new Error('fastify-idempotency is registered already, on this instance or on one around it; register it once, and tune single routes by config.idempotency')
  }
  const config = parseOptions(options, instance.supportedMethods)
  const fellBack = config.store === undefined && config.redis === undefined && redisOf(instance) === undefined
  const store = chooseStore(instance, config)
  const way = bounded(config.storeTimeout)
  const keeping = { store, bounded: way, leases: new Leases(store, way, exchange => settleOver(core, exchange)) }
  const compressed = instance.hasPlugin('@fastify/compress')
  const order = new Order(instance)
  const core: Core = { ...keeping, config, backlog: new Backlog(keeping), watched: watchedMethods(() => core), compressed, order }

  instance.decorate('idempotency', createOperator(core))
  instance.decorateRequest('idempotency', null)
  instance.addHook('onRoute', function (route) { attachToRoute(core, this, route) })
  if (hasRoutes(instance)) attachToInstance(core, instance)
  instance.addHook('onReady', done => {
    order.tell(fellBack && redisOf(instance) !== undefined)
    done()
  })
  instance.addHook('onClose', async () => {
    await core.leases.idle()
    await core.backlog.flush()
    core.leases.stop()
    await store.close?.()
  })
}

function chooseStore (instance: FastifyInstance, { store, redis, minReplicas, storeTimeout }: Config): Store {
  if (store !== undefined) return store
  const options = { minReplicas, replicaTimeout: Math.ceil(storeTimeout / 2) }
  if (redis !== undefined) return new RedisStore(redis, options)
  const shared = redisOf(instance)
  if (shared === undefined) {
    if (minReplicas > 0) throw new TypeError('fastify-idempotency: option "minReplicas" needs Redis; give a client with the option "redis", or register @fastify/redis first')
    instance.log.info('idempotency: no Redis client at hand; keys are kept in this process only')
    return new MemoryStore()
  }
  if (shared.callBuffer === undefined) {
    const names = Object.keys(shared).filter(name => (shared as Record<string, Partial<RedisClient> | null | undefined>)[name]?.callBuffer !== undefined).map(name => `fastify.redis.${name}`)
    if (names.length === 0) throw wrongClient('fastify.redis', shared)
    throw new TypeError(`fastify-idempotency: fastify.redis holds namespaces; choose one with the option "redis": ${names.join(' or ')}`)
  }
  return new RedisStore(shared as RedisClient, options)
}

/** What @fastify/redis has put there, a client or several by name. */
function redisOf (instance: FastifyInstance): (Partial<RedisClient> & object) | undefined {
  return (instance as { redis?: Partial<RedisClient> & object }).redis
}

/** Whether a route may exist that `onRoute` has not seen; without one no hook runs for routes that take no part. */
function hasRoutes (instance: FastifyInstance): boolean {
  return instance.printRoutes() !== '(empty tree)'
}

export const fastifyIdempotency = fp(plugin, { fastify: '5.x', name: 'fastify-idempotency' })
export default fastifyIdempotency

export { IdempotencyError, type ErrorForm, type IdempotencyErrorCode } from './errors.ts'
export { EVENT_NAMES, type EventName, type IdempotencyEvent } from './events.ts'
export type { RequestIdempotency } from './exchange.ts'
export type { Inspection, KeyOf, Operator } from './operator.ts'
export type { FastifyIdempotencyOptions, IdempotencyRouteOptions, Stage } from './options.ts'
export type { Awaitable, Claim, ClaimRequest, Entry, Outcome, Store } from './store.ts'
export { MemoryStore, type MemoryStoreOptions } from './stores/memory.ts'
export { decodeOutcome, encodeOutcome } from './stores/record.ts'
export { RedisStore, type RedisClient, type RedisStoreOptions } from './stores/redis.ts'
