/** The server that is measured, in a process of its own; tells its parent the ports. */
import type { AddressInfo } from 'node:net'
import Fastify, { type RouteHandlerMethod } from 'fastify'
import idempotency from '../lib/index.ts'

const app = Fastify()
await app.register(idempotency)

const schema = {
  body: { type: 'object', required: ['amount'], properties: { amount: { type: 'integer' }, currency: { type: 'string' }, reference: { type: 'string' }, note: { type: 'string' } } },
  response: { 201: { type: 'object', properties: { id: { type: 'string' }, amount: { type: 'integer' }, status: { type: 'string' }, note: { type: 'string' } } } }
}
const answer = { id: 'pay_1', amount: 4200, status: 'succeeded', note: 'x'.repeat(230) }
const pay: RouteHandlerMethod = async (_request, reply) => {
  reply.code(201)
  return answer
}

// The bare route is on an instance that has never heard of the plugin.
const bare = Fastify()
bare.post('/payments', { schema }, pay)
app.post('/out', { schema, config: { idempotency: false } }, pay)
app.post('/payments', { schema }, pay)

const listen = async (instance: typeof app): Promise<number> => {
  await instance.listen({ port: 0, host: '127.0.0.1' })
  return (instance.server.address() as AddressInfo).port
}
process.send?.({ bare: await listen(bare), ours: await listen(app) })
