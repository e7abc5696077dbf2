import { channel, type Channel } from 'node:diagnostics_channel'
import type { FastifyRequest } from 'fastify'
import type { IdempotencyErrorCode } from './protocol/errors.ts'
import { errorFrom } from './util/promise.ts'

/** Each has the channel `fastify-idempotency:<name>` of node:diagnostics_channel. */
export const IDEMPOTENCY_EVENTS = [
  'executed', 'replayed', 'mismatched', 'conflicted', 'invalid', 'released', 'abandoned', 'lease-lost', 'store-error',
  'unreplayable', 'step-recorded', 'step-reused'
] as const

export type IdempotencyEventName = typeof IDEMPOTENCY_EVENTS[number]

/** What subscribers of `fastify-idempotency:<event>` receive. */
export interface IdempotencyEvent {
  request: FastifyRequest
  /** As the client sent it; empty where none could be read. */
  key: string
  /**
   * Names scope and key, hashed, as `inspect` and `forget` take it and log lines have it; empty where no key could be
   * read.
   */
  id: string
  /** Executions of the key so far; 0 where none is known. */
  attempt: number
  /** What this request is answered with, where it is known by now. */
  status?: number
  /** The code of the plugin's own answer, where that is what this request gets. */
  code?: IdempotencyErrorCode
  /** Milliseconds since this request took the key, where it has taken it: upload, handler, and the way to the store. */
  heldFor?: number
  /** `step-recorded` and `step-reused` only: the step's name. */
  step?: string
  /**
   * `store-error` only: what the store or the deadline said, as it came. An error of ioredis carries the arguments of
   * its command: bodies too.
   */
  error?: unknown
}

const channels = Object.fromEntries(IDEMPOTENCY_EVENTS.map(name => [
  name, channel(`fastify-idempotency:${name}`)
])) as Record<IdempotencyEventName, Channel>

/** What an event is about: a key, and the request that it is of. */
export interface Subject {
  readonly key: string
  readonly id: string
  readonly attempt: number
  /** When the claim was sent that took the key, by the monotonic clock; 0 where it was not taken. */
  readonly heldSince: number
}
const NOBODY: Subject = { key: '', id: '', attempt: 0, heldSince: 0 }

/** Costs one property read when nobody listens. */
export function publish (
  name: IdempotencyEventName, request: FastifyRequest, subject: Subject | undefined, more?: Partial<IdempotencyEvent>
): void {
  const { [name]: target } = channels
  if (target.hasSubscribers) target.publish(eventOf(request, subject, more))
}

function eventOf (
  request: FastifyRequest, { key, id, attempt, heldSince }: Subject = NOBODY, more?: Partial<IdempotencyEvent>
): IdempotencyEvent {
  return { request, key, id, attempt, ...(heldSince === 0 ? {} : { heldFor: performance.now() - heldSince }), ...more }
}

/**
 * What the log may have of a store's error: ioredis puts the arguments of the command on it,
 * which are a response's body among others.
 */
export function loggable (error: unknown): Error {
  const { name, message, stack, code } = errorFrom(error) as NodeJS.ErrnoException
  return Object.assign(new Error(message), { name, stack, code })
}
