/** The anchors with Redis: the least that a route can do there by hand, with ioredis as it comes. */
import type { Server } from 'node:http'
import { Redis } from 'ioredis'
import { answer, expected } from '../payloads.ts'
import { executed } from './executions.ts'
import { createApp, listen, schema } from './routes.ts'

const DAY = 86_400_000

/** Reads the response from Redis and sends its bytes. */
export async function redisGet (redisPort: number): Promise<Server> {
  const redis = new Redis(redisPort)
  await redis.set('response', expected['/payments'])
  const app = createApp()
  app.post('/payments', { schema }, async (_request, reply) => {
    executed()
    const bytes = await redis.getBuffer('response')
    reply.code(201).header('content-type', 'application/json; charset=utf-8')
    return bytes
  })
  return await listen(app)
}

/** Takes the key before the work and keeps the response after it: two commands, no guarantees. */
export async function redisSetTwice (redisPort: number): Promise<Server> {
  const redis = new Redis(redisPort)
  const app = createApp()
  app.post('/payments', { schema }, async (request, reply) => {
    executed()
    const key = `bare:${String(request.headers['idempotency-key'])}`
    await redis.set(key, 'held', 'PX', 30_000, 'NX')
    await redis.set(key, expected['/payments'], 'PX', DAY)
    reply.code(201)
    return answer
  })
  return await listen(app)
}
