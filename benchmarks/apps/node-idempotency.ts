/**
 * @node-idempotency/core with its own adapters, in the hooks that its own Fastify plugin uses:
 * preHandler and onSend. That plugin stores a replay once more in onSend; this does not, which
 * is in the peer's favour.
 */
import type { Server } from 'node:http'
import { Idempotency, type IdempotencyParams } from '@node-idempotency/core'
import { MemoryStorageAdapter } from '@node-idempotency/storage-adapter-memory'
import { RedisStorageAdapter } from '@node-idempotency/storage-adapter-redis'
import type { FastifyRequest } from 'fastify'
import { addRoutes, createApp, listen } from './routes.ts'

declare module 'fastify' {
  interface FastifyRequest { replayed: boolean }
}

const params = ({ headers, body, url, method }: FastifyRequest): IdempotencyParams =>
  ({ headers, body: body as Record<string, unknown>, path: url, method })

async function start (storage: MemoryStorageAdapter | RedisStorageAdapter): Promise<Server> {
  const idempotency = new Idempotency(storage)
  const app = createApp()
  app.decorateRequest('replayed', false)
  app.addHook('preHandler', async (request, reply) => {
    const kept = await idempotency.onRequest<string, string>(params(request))
    if (kept === undefined) return
    request.replayed = true
    const { statusCode, contentType } = kept.additional as { statusCode: number, contentType: string }
    reply.code(statusCode).header('content-type', contentType).header('idempotent-replayed', 'true')
    return reply.send(kept.body ?? kept.error)
  })
  app.addHook('onSend', async (request, reply, payload) => {
    if (request.replayed) return
    const { statusCode } = reply
    const additional = { statusCode, contentType: reply.getHeader('content-type') }
    await idempotency.onResponse(
      params(request), { additional, ...(statusCode < 400 ? { body: payload } : { error: payload }) }
    )
  })
  addRoutes(app)
  return await listen(app)
}

export const nodeIdempotency = async (): Promise<Server> => await start(new MemoryStorageAdapter())

export async function nodeIdempotencyRedis (redisPort: number): Promise<Server> {
  const storage = new RedisStorageAdapter({ socket: { port: redisPort, host: '127.0.0.1' } })
  await storage.connect()
  return await start(storage)
}
