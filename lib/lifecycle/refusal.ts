import type { FastifyRequest } from 'fastify'
import type { RouteConfig } from '../config/config.ts'
import type { IdempotencyError } from '../protocol/errors.ts'
import type { Core } from './core.ts'

const kRefusal = Symbol('fastify-idempotency refusal')

/** A refusal of a request that was let in, or has thrown one of the plugin's errors. It is never kept. */
export interface Refusal {
  core: Core
  route: RouteConfig
  error: IdempotencyError
  /** The reply has its form: a hook of ours has sent it, or the route wants its error handler to give it one. */
  rendered: boolean
}
type Slot = { [kRefusal]?: Refusal }

export function setRefusal (request: FastifyRequest, refusal: Refusal): void {
  const slot = request as Slot
  slot[kRefusal] = refusal
}

/** Whether the reply that is on its way is a refusal. */
export function isRefused (request: FastifyRequest): boolean {
  return (request as Slot)[kRefusal] !== undefined
}

/** The refusal that is to replace what an error handler has made of it: once. */
export function takeRefusal (request: FastifyRequest): Refusal | undefined {
  const refusal = (request as Slot)[kRefusal]
  if (refusal === undefined || refusal.rendered) return undefined
  refusal.rendered = true
  return refusal
}
