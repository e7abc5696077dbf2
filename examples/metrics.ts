/**
 * Prometheus metrics of every app in this process that uses the plugin:
 *
 *     const registry = new Registry()
 *     const stop = registerMetrics(registry)
 *     serveMetrics(app, registry)
 *
 * Labels are bounded: a route's pattern, never a URL or a key. Worth an alert:
 *
 *     increase(idempotency_faults_total{fault="store-error"}[5m]) > 0      requests are refused or run unprotected
 *     increase(idempotency_faults_total{fault="lease-lost"}[5m]) > 0       a handler may have run beside another
 *     increase(idempotency_faults_total{fault="abandoned"}[5m]) > 0        a holder died before its outcome was kept
 *     increase(idempotency_faults_total{fault="unreplayable"}[1h]) > 0     retries cannot get their response
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { FastifyInstance } from 'fastify'
import { Counter, Histogram, type Registry } from 'prom-client'
// In your code: 'fastify-idempotency'.
import { IDEMPOTENCY_EVENTS, type IdempotencyEventName, type IdempotencyEvent } from '../lib/index.ts'

const FAULTS: IdempotencyEventName[] = ['store-error', 'lease-lost', 'abandoned', 'unreplayable']
/** What became of a key that the request held. */
const OUTCOMES: IdempotencyEventName[] = ['executed', 'released', 'unreplayable']

/** Counts from now on; the function that comes back ends it. */
export function registerMetrics (registry: Registry): () => void {
  const registers = [registry]
  const events = new Counter({
    name: 'idempotency_events_total',
    help: 'What became of requests with an Idempotency-Key',
    labelNames: ['event', 'method', 'route', 'status'],
    registers
  })
  const faults = new Counter(
    { name: 'idempotency_faults_total', help: 'What an operator should look at', labelNames: ['fault'], registers }
  )
  const held = new Histogram({
    name: 'idempotency_held_seconds',
    help: 'How long a key was held: upload, handler, and the way to the store',
    labelNames: ['event', 'method', 'route'],
    registers
  })
  const steps = new Counter({
    name: 'idempotency_steps_total',
    help: 'Steps whose result was recorded, or reused by a later execution',
    labelNames: ['event', 'method', 'route', 'step'],
    registers
  })
  // From 0, so that increase() sees the first one too.
  for (const fault of FAULTS) faults.inc({ fault }, 0)

  const subscriptions = IDEMPOTENCY_EVENTS.map(event => {
    const channel = `fastify-idempotency:${event}`
    const listener = (message: unknown): void => {
      const {
        request: { method, routeOptions: { url: route = '' } }, status = '', code, heldFor, step
      } = message as IdempotencyEvent
      // Names of steps must not be made of what a client sends.
      if (step !== undefined) return steps.inc({ event, method, route, step })
      events.inc({ event, method, route, status })
      if (FAULTS.includes(event)) faults.inc({ fault: event })
      if (OUTCOMES.includes(event) && code === undefined && heldFor !== undefined) {
        held.observe({ event, method, route }, heldFor / 1_000)
      }
    }
    subscribe(channel, listener)
    return () => { unsubscribe(channel, listener) }
  })
  return () => { for (const end of subscriptions) end() }
}

export function serveMetrics (app: FastifyInstance, registry: Registry): void {
  app.get('/metrics', async (_request, reply) => await reply.type(registry.contentType).send(await registry.metrics()))
}
