/** Express, bare and with express-idempotency and its in-process store, as its README shows. */
import { once } from 'node:events'
import type { Server } from 'node:http'
import express, { type Express } from 'express'
import { getSharedIdempotencyService, idempotency } from 'express-idempotency'
import { answer } from '../payloads.ts'
import { executed } from './executions.ts'

async function listen (app: Express): Promise<Server> {
  const server = app.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return server
}

export async function bareExpress (): Promise<Server> {
  const app = express()
  app.use(express.json())
  app.post('/payments', (_request, response) => {
    executed()
    response.status(201).json(answer)
  })
  return await listen(app)
}

export async function expressIdempotency (): Promise<Server> {
  const app = express()
  app.use(express.json())
  app.use(idempotency())
  app.post('/payments', (request, response) => {
    // It calls the handler for a replay too, which has to leave.
    if (getSharedIdempotencyService().isHit(request)) return
    executed()
    response.status(201).json(answer)
  })
  return await listen(app)
}
