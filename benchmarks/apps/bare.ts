/** The anchor: parses, validates, runs an empty handler, serializes. Has never heard of the plugin. */
import type { Server } from 'node:http'
import { addRoutes, createApp, listen } from './routes.ts'

export async function bare (): Promise<Server> {
  const app = createApp()
  addRoutes(app)
  return await listen(app)
}
