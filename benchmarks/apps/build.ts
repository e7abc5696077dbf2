/** Another build of the plugin: the environment variable BENCH_BUILD is the address of its entry. */
import type { Server } from 'node:http'
import type { FastifyContextConfig } from 'fastify'
import { Redis } from 'ioredis'
import type { fastifyIdempotency, FastifyIdempotencyOptions } from '../../lib/index.ts'
import { addRoutes, createApp, listen } from './routes.ts'

async function start (options: FastifyIdempotencyOptions, config?: FastifyContextConfig): Promise<Server> {
  const { default: idempotency } = await import(String(process.env['BENCH_BUILD'])) as {
    default: typeof fastifyIdempotency
  }
  const app = createApp()
  await app.register(idempotency, options)
  addRoutes(app, config)
  return await listen(app)
}

export const build = async (): Promise<Server> => await start({})
export const buildRedis = async (redisPort: number): Promise<Server> => await start({ redis: new Redis(redisPort) })
export const buildOptedOut = async (): Promise<Server> => await start({}, { idempotency: false })
