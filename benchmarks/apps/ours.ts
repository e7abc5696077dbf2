/** The plugin, registered the usual way. */
import type { Server } from 'node:http'
import { Redis } from 'ioredis'
import idempotency, { type IdempotencyStore } from '../../lib/index.ts'
import { addRoutes, createApp, listen } from './routes.ts'

export async function ours (): Promise<Server> {
  const app = createApp()
  await app.register(idempotency)
  addRoutes(app)
  return await listen(app)
}

export async function oursRedis (redisPort: number): Promise<Server> {
  const app = createApp()
  await app.register(idempotency, { redis: new Redis(redisPort) })
  addRoutes(app)
  return await listen(app)
}

/** With a store that does nothing: what is left is the plugin's own. */
export async function oursWithoutStore (): Promise<Server> {
  const app = createApp()
  const store: IdempotencyStore = {
    claim: () => ({ outcome: 'acquired', attempt: 1, takeover: false }),
    renew: () => true,
    complete: () => true,
    release: () => true,
    read: () => undefined,
    remove: () => true
  }
  await app.register(idempotency, { store })
  addRoutes(app)
  return await listen(app)
}

export async function oursOptedOut (): Promise<Server> {
  const app = createApp()
  await app.register(idempotency)
  addRoutes(app, { idempotency: false })
  return await listen(app)
}
