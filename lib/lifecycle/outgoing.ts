import type { FastifyReply } from 'fastify'
import { resetHeaders } from '../response/outcome.ts'
import { copyOfHeaders, hasHeaders } from '../response/reply-headers.ts'
import { exchangeOf, type Exchange } from './exchange.ts'

/**
 * A reply that is on its way counts as sent, though Fastify says so only once it has left: no other reply overtakes
 * it, and no hook and no handler starts after it. Two are on their way: one that was begun before the handler,
 * wherever it waits, and one that our own onSend hook holds back.
 */

/** A reply in our onSend hook. `passing`: the hook has not returned yet, and a reply that goes on at once stays so. */
export type OutgoingReply = 'passing' | HeldBack

/** What the reply was when it came, since others may go on to change it. */
interface HeldBack {
  status: number
  headers: Record<string, unknown>
}

/**
 * The reply before the handler, while it is watched. `failing`: an error handler, which may be asynchronous, has not
 * replied yet, so that Fastify must be able to send.
 */
type EarlyReply = 'none' | 'begun' | 'failing'

const kEarly = Symbol('fastify-idempotency early reply')
/** Calls of `send` that are under way: Fastify's own question is whether it may go on. */
const kSending = Symbol('fastify-idempotency sending')
type Slot = { [kEarly]?: EarlyReply | undefined, [kSending]?: number }

/** From here on, until `unwatchEarly`, what is sent is a reply in the handler's stead. */
export function watchEarly (reply: FastifyReply): void {
  const slot = reply as Slot
  slot[kEarly] ??= 'none'
}

/** To be called where the handler starts, or the plugin has nothing to protect. */
export function unwatchEarly (reply: FastifyReply): void {
  const slot = reply as Slot
  if (slot[kEarly] !== undefined) slot[kEarly] = undefined
}

/** A reply was begun before the handler: nothing may start any more. */
export function hasBegun (reply: FastifyReply): boolean {
  const early = (reply as Slot)[kEarly]
  return early === 'begun' || early === 'failing'
}

/** To be called where a reply is begun before the handler; `failing`: with an error. */
export function noteBegun (reply: FastifyReply, failing = false): void {
  const slot = reply as Slot
  if (!hasBegun(reply)) Object.defineProperty(reply, 'sent', SENT)
  slot[kEarly] = failing ? 'failing' : 'begun'
}

/** An early reply, if there is one, has failed: an error handler replies in its place. */
export function noteFailing (reply: FastifyReply): void {
  if (hasBegun(reply)) noteBegun(reply, true)
}

/** Sends by `own`, the reply's method; what is sent before the handler counts as sent from here on. */
export function sendBy (own: FastifyReply['send'], reply: FastifyReply, payload: unknown): FastifyReply {
  const slot = reply as Slot
  if (slot[kEarly] === undefined) return own.call(reply, payload)
  noteBegun(reply, payload instanceof Error)
  slot[kSending] = (slot[kSending] ?? 0) + 1
  try {
    return own.call(reply, payload)
  } finally {
    slot[kSending]--
    // Fastify's default error handler has replied: only its bodies have their length so early.
    if (slot[kEarly] === 'failing' && reply.hasHeader('content-length')) slot[kEarly] = 'begun'
  }
}

/** Holds a reply back in our onSend hook. */
export function holdBack (exchange: Exchange): void {
  const { reply } = exchange
  exchange.outgoing = { status: reply.statusCode, headers: copyOfHeaders(reply) ?? {} }
  Object.defineProperty(reply, 'sent', SENT)
}

/** Tells the log of a reply that is not sent, since another one is on its way. */
export function tellDropped ({ request, id }: Exchange, payload: unknown): void {
  const told = 'idempotency: a reply is already on its way; this one is dropped'
  if (payload instanceof Error) request.log.error({ idempotencyId: id, err: payload }, told)
  else request.log.warn({ idempotencyId: id }, told)
}

/**
 * To be called where a reply that was held back goes on. What was done to its status and headers meanwhile, by another
 * reply or by whoever sent this one, would have come too late without the plugin, and is not in what is kept.
 */
export function undoLate ({ outgoing, reply }: Exchange): void {
  if (outgoing === undefined || outgoing === 'passing' || reply.raw.headersSent) return
  const { status, headers } = outgoing
  if (!hasHeaders(reply, headers)) resetHeaders(reply, headers)
  if (reply.statusCode !== status) reply.code(status)
}

/** Whether the response has ended, or was hijacked: what Fastify calls sent. */
export function hasEnded (reply: FastifyReply): boolean {
  return Reflect.get(Object.getPrototypeOf(reply) as object, 'sent', reply) as boolean
}

const SENT: PropertyDescriptor & ThisType<FastifyReply> = {
  configurable: true,
  enumerable: true,
  get () {
    const outgoing = exchangeOf(this.request)?.outgoing
    return outgoing !== undefined || isOnItsWay(this) || hasEnded(this)
  }
}

function isOnItsWay (reply: FastifyReply): boolean {
  const slot = reply as Slot
  return slot[kEarly] === 'begun' && !slot[kSending]
}
