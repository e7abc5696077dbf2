/**
 * The example API, and the playground at `/`. `PORT` (default 3000), `REDIS_URL` (default: the in-process store).
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import redis from '@fastify/redis'
import Fastify from 'fastify'
import idempotency from '../lib/index.ts'
import { playground } from './playground/index.ts'

const app = Fastify({ logger: { level: process.env.LOG_LEVEL ?? 'warn' } })
if (process.env.REDIS_URL !== undefined) await app.register(redis, { url: process.env.REDIS_URL })
await app.register(idempotency)
await app.register(playground)

app.post<{ Body: { amount: number } }>('/payments', {
  schema: { body: { type: 'object', required: ['amount'], properties: { amount: { type: 'integer', minimum: 1 } } } }
}, async (request, reply) => reply.code(201).send({ id: randomUUID(), amount: request.body.amount, status: 'succeeded' }))

// Takes two seconds: time to see the 409 that a duplicate gets meanwhile.
app.post('/slow', async (_request, reply) => {
  await sleep(2_000)
  return await reply.code(201).send({ id: randomUUID() })
})
app.post('/missing', async (_request, reply) => await reply.code(404).send({ error: 'no such customer', id: randomUUID() }))
app.post('/broken', async () => { throw new Error(`failure ${randomUUID()}`) })
app.post('/search', { config: { idempotency: false } }, async () => ({ id: randomUUID() }))

const address = await app.listen({ port: Number(process.env.PORT ?? 3000), host: '127.0.0.1' })
console.log(`The example API listens on ${address}, ${process.env.REDIS_URL === undefined ? 'with the in-process store' : 'with Redis'}.
Send this twice; the second answer is the first one's, with "idempotent-replayed: true":

  curl -i ${address}/payments -H 'Content-Type: application/json' -H 'Idempotency-Key: order-1' -d '{"amount":4200}'

Or see what it does, and what it does not: open ${address}/ in a browser.
`)
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => { app.close().then(() => process.exit(0), () => process.exit(1)) })
