import type { FastifyInstance } from 'fastify'
import type { IdempotencyStore } from '../stores/contract.ts'
import { MemoryStore } from '../stores/memory/store.ts'
import { RedisStore, wrongClient, type RedisStoreClient } from '../stores/redis/store.ts'
import type { Config } from './config.ts'

export interface Chosen {
  store: IdempotencyStore
  /** Whether a shared client was registered too late. */
  fellBack: () => boolean
}

/** The store that the options ask for; else Redis, where @fastify/redis is registered; else one in process. */
export function chooseStore (instance: FastifyInstance, { store, redis, minReplicas, storeTimeout }: Config): Chosen {
  const options = { minReplicas, replicaTimeout: Math.ceil(storeTimeout / 2) }
  const chosen = (store: IdempotencyStore): Chosen => ({ store, fellBack: () => false })
  if (store !== undefined) return chosen(store)
  if (redis !== undefined) return chosen(new RedisStore(redis, options))
  const shared = redisOf(instance)
  if (shared !== undefined) return chosen(new RedisStore(clientIn(shared), options))
  if (minReplicas > 0) {
    throw new TypeError('fastify-idempotency: option "minReplicas" needs Redis; give a client with the option ' +
      '"redis", or register @fastify/redis first')
  }
  // One instance's keys protect nobody from the others, and in production there are others, sooner or later.
  const level = process.env.NODE_ENV === 'production' ? 'warn' : 'info'
  instance.log[level]('idempotency: no Redis client at hand; keys are kept in this process only, and end with it. ' +
    'Register @fastify/redis first or give the option "redis"; where it is meant, say so: store: new MemoryStore()')
  return { store: new MemoryStore(), fellBack: () => redisOf(instance) !== undefined }
}

/** What @fastify/redis has put there, a client or several by name. */
function redisOf (instance: FastifyInstance): (Partial<RedisStoreClient> & object) | undefined {
  return (instance as { redis?: Partial<RedisStoreClient> & object }).redis
}

function clientIn (shared: Partial<RedisStoreClient> & object): RedisStoreClient {
  if (shared.callBuffer !== undefined) return shared as RedisStoreClient
  const clients = shared as Record<string, Partial<RedisStoreClient> | null | undefined>
  const names = Object.keys(shared)
    .filter(name => clients[name]?.callBuffer !== undefined)
    .map(name => `fastify.redis.${name}`)
  if (names.length === 0) throw wrongClient('fastify.redis', shared)
  throw new TypeError('fastify-idempotency: fastify.redis holds namespaces; choose one with the option "redis": ' +
    names.join(' or '))
}
