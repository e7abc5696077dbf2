/** The plugin without its events, and with somebody who listens to them. */
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import type { Server } from 'node:http'
import { Registry } from 'prom-client'
import { registerMetrics } from '../../examples/metrics.ts'
import type { fastifyIdempotency } from '../../lib/index.ts'
import { ours } from './ours.ts'
import { addRoutes, createApp, listen } from './routes.ts'

// From benchmarks/.build/benchmarks/apps, where this runs.
const lib = new URL('../../lib/', import.meta.url)
const copy = new URL('../../lib-without-events/', import.meta.url)

/** A copy of the build whose `publish` is empty. */
export async function oursWithoutEvents (): Promise<Server> {
  cpSync(lib, copy, { recursive: true })
  const events = new URL('events.js', copy)
  const source = readFileSync(events, 'utf8')
  const without = source.replace('export function publish(', 'export function publish() { }\nfunction unused(')
  if (without === source) throw new Error('lib/events.ts has no function "publish" any more')
  writeFileSync(events, without)
  const { default: idempotency } = await import(new URL('index.js', copy).href) as {
    default: typeof fastifyIdempotency
  }
  const app = createApp()
  await app.register(idempotency)
  addRoutes(app)
  return await listen(app)
}

export async function oursWithMetrics (): Promise<Server> {
  registerMetrics(new Registry())
  return await ours()
}
