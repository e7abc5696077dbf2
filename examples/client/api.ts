/**
 * One instance of the demo's API, a process with an IPC channel to demo.ts, on the Redis that is named by its
 * argument.
 */
import { randomUUID } from 'node:crypto'
import type { AddressInfo } from 'node:net'
import redis from '@fastify/redis'
import Fastify from 'fastify'
import idempotency from '../../lib/index.ts'

process.on('disconnect', () => process.exit())

const app = Fastify()
await app.register(redis, { url: String(process.argv[2]) })
// A short lease: a crash is over soon. 30 seconds are the default.
await app.register(idempotency, { lease: 2_000 })

app.post<{ Body: { amount: number, fault?: '503' | 'crash' } }>('/payments', async (request, reply) => {
  const { attempt = 0 } = request.idempotency ?? {}
  const { amount, fault } = request.body
  process.send?.({ running: attempt })
  if (attempt === 1 && fault === '503') return await reply.code(503).send({ error: 'the bank is away' })
  // The parent kills this process meanwhile.
  if (attempt === 1 && fault === 'crash') await new Promise(() => {})
  return await reply.code(201).send({ id: randomUUID(), amount, attempt, pid: process.pid })
})

await app.listen({ port: 0, host: '127.0.0.1' })
process.send?.({ port: (app.server.address() as AddressInfo).port })
