import { channel, type Channel } from 'node:diagnostics_channel'
import type { FastifyRequest } from 'fastify'

const NAMES = ['executed', 'replayed', 'mismatched', 'conflicted', 'invalid', 'released', 'abandoned', 'lease-lost', 'store-error', 'unreplayable'] as const

export type EventName = typeof NAMES[number]

/** What subscribers of `fastify-idempotency:<event>` receive. */
export interface IdempotencyEvent {
  request: FastifyRequest
  /** As the client sent it; empty where none could be read. */
  key: string
  /** Executions of the key so far; 0 where none is known. */
  attempt: number
  /** The status of the outcome, where there is one. */
  status?: number
  /** `store-error` only: what the store or the deadline said. */
  error?: unknown
}

const channels = Object.fromEntries(NAMES.map(name => [name, channel(`fastify-idempotency:${name}`)])) as Record<EventName, Channel>

/** Costs one property read when nobody listens. */
export function publish (name: EventName, request: FastifyRequest, exchange: { key: string, attempt: number } | undefined, more?: Partial<IdempotencyEvent>): void {
  const { [name]: target } = channels
  if (target.hasSubscribers) target.publish({ request, key: exchange?.key ?? '', attempt: exchange?.attempt ?? 0, ...more } satisfies IdempotencyEvent)
}
