/** The plugin, and a handler that takes steps: as many as the app's name says. */
import type { Server } from 'node:http'
import { Redis } from 'ioredis'
import idempotency, { type FastifyIdempotencyOptions } from '../../lib/index.ts'
import { answer } from '../payloads.ts'
import { executed } from './executions.ts'
import { createApp, listen, schema } from './routes.ts'

async function start (steps: number, options: FastifyIdempotencyOptions): Promise<Server> {
  const app = createApp()
  await app.register(idempotency, options)
  app.post('/payments', { schema }, async (request, reply) => {
    executed()
    const { step } = request.idempotency
    for (let i = 0; i < steps; i++) await step(`step ${i}`, () => ({ id: 'ch_1' }))
    reply.code(201)
    return answer
  })
  return await listen(app)
}

export const withSteps = (steps: number) => async (): Promise<Server> => await start(steps, {})
export const withStepsOnRedis = (steps: number) => async (redisPort: number): Promise<Server> =>
  await start(steps, { redis: new Redis(redisPort) })
