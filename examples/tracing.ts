/**
 * OpenTelemetry: what happened to the key, on the span that @fastify/otel has made for the request.
 *
 *     await app.register(idempotency)
 *     await app.register(new FastifyOtelInstrumentation().plugin())
 *     const stop = registerTracing()
 *
 * @fastify/otel ends that span in its onSend hook. Registered after the plugin, that is after the
 * outcome was kept. What comes later (a stream's end, an outcome that the store takes in the
 * background, and every outcome if @fastify/otel was registered first) becomes a short span of its
 * own, a child of the ended one.
 *
 * The request's own span is asked for, never the active one: a lease is lost in a timer, and a
 * waiter woken by another request, in whose context it would be somebody else's.
 */
import type {} from '@fastify/otel' // the type of request.opentelemetry()
import { hash } from 'node:crypto'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { Attributes } from '@opentelemetry/api'
// In your code: 'fastify-idempotency'.
import { IDEMPOTENCY_EVENTS, type IdempotencyEventName, type IdempotencyEvent } from '../lib/index.ts'

/** Traces all apps in this process from now on; the function that comes back ends it. */
export function registerTracing (): () => void {
  const subscriptions = IDEMPOTENCY_EVENTS.map(name => {
    const channel = `fastify-idempotency:${name}`
    const listener = (message: unknown): void => { record(name, message as IdempotencyEvent) }
    subscribe(channel, listener)
    return () => { unsubscribe(channel, listener) }
  })
  return () => { for (const end of subscriptions) end() }
}

function record (name: IdempotencyEventName, event: IdempotencyEvent): void {
  const { request } = event
  // Without @fastify/otel there is no such method, and no context where it is off for the route.
  const { span: own, context, tracer } = (request as Partial<typeof request>).opentelemetry?.call(request) ?? {}
  if (context == null || tracer === undefined) return
  const span = own?.isRecording() === true ? own : tracer.startSpan(`idempotency ${name}`, {}, context)
  const attributes = attributesOf(name, event)
  span.setAttributes(attributes)
  // The attributes tell the last event of a request, these all of them.
  span.addEvent(`idempotency.${name}`, attributes)
  // Name, message and stack; nothing else of it leaves.
  if (event.error instanceof Error) span.recordException(event.error)
  if (span !== own) span.end()
}

function attributesOf (
  name: IdempotencyEventName, { key, attempt, status, code, heldFor, step }: IdempotencyEvent
): Attributes {
  return {
    'idempotency.event': name,
    'idempotency.replayed': name === 'replayed',
    ...(attempt === 0 ? {} : { 'idempotency.attempt': attempt }),
    // To find the retries of a request by; the key itself may be a secret.
    ...(key === '' ? {} : { 'idempotency.key.hash': hash('sha256', key).slice(0, 16) }),
    ...(status === undefined ? {} : { 'idempotency.status_code': status }),
    ...(code === undefined ? {} : { 'idempotency.error.code': code }),
    ...(step === undefined ? {} : { 'idempotency.step': step }),
    ...(heldFor === undefined ? {} : { 'idempotency.held_ms': heldFor })
  }
}
