/** The routes, the same for the bare app, for ours and for a peer under Fastify. */
import { once } from 'node:events'
import type { Server } from 'node:http'
import type { Readable } from 'node:stream'
import Fastify, { type FastifyContextConfig, type FastifyInstance } from 'fastify'
import { answer, largeAnswer } from '../payloads.ts'
import { executed } from './executions.ts'

export const schema = {
  body: {
    type: 'object',
    required: ['amount', 'currency'],
    properties: {
      amount: { type: 'integer', minimum: 1 },
      currency: { type: 'string', minLength: 3, maxLength: 3 },
      reference: { type: 'string' },
      note: { type: 'string' }
    }
  },
  response: {
    201: {
      type: 'object',
      required: ['id', 'amount', 'status'],
      properties: {
        id: { type: 'string' }, amount: { type: 'integer' }, status: { type: 'string' }, note: { type: 'string' }
      }
    }
  }
}

export const createApp = (): FastifyInstance => Fastify({ logger: false })

export async function listen (app: FastifyInstance): Promise<Server> {
  await app.listen({ port: 0, host: '127.0.0.1' })
  return app.server
}

export function addRoutes (app: FastifyInstance, config: FastifyContextConfig = {}): void {
  app.post('/payments', { schema, config }, async (_request, reply) => {
    executed()
    reply.code(201)
    return answer
  })
  app.post('/large', { schema, config }, async (_request, reply) => {
    executed()
    reply.code(201)
    return largeAnswer
  })

  // A large body that the handler consumes as it arrives; nothing buffers it.
  app.addContentTypeParser('application/octet-stream', (_request, payload, done) => { done(null, payload) })
  app.post<{ Body: Readable }>('/upload', { config }, async ({ body }, reply) => {
    executed()
    let bytes = 0
    body.on('data', (chunk: Buffer) => { bytes += chunk.length })
    await once(body, 'end')
    reply.code(201)
    return { bytes }
  })
}
