import type { FastifyReply, FastifyRequest } from 'fastify'
import type { RouteConfig } from '../config/config.ts'
import { publish, type IdempotencyEventName } from '../events.ts'
import { IdempotencyError, renderError, typeOf } from '../protocol/errors.ts'
import type { Verdict } from '../protocol/verdict.ts'
import { isAscii, payloadOf, resetHeaders, restore, sendable, withdraw, withdrawEncoding } from '../response/outcome.ts'
import type { StoreOutcome } from '../stores/contract.ts'
import { errorFrom } from '../util/promise.ts'
import type { Core } from './core.ts'
import type { Exchange } from './exchange.ts'
import { isRefused, setRefusal, takeRefusal } from './refusal.ts'

/** The one place that answers in the handler's stead. */

const EVENT_OF: Record<IdempotencyError['code'], IdempotencyEventName> = {
  idempotency_key_invalid: 'invalid',
  idempotency_key_missing: 'invalid',
  idempotency_key_mismatch: 'mismatched',
  idempotency_in_progress: 'conflicted',
  idempotency_outcome_unknown: 'abandoned',
  idempotency_response_unavailable: 'unreplayable',
  idempotency_store_unavailable: 'store-error'
}

type Done = (error?: Error) => void

/**
 * Sends a replay or a refusal from a hook. `done` is never called after a reply was sent:
 * that alone keeps Fastify from running the handler when the client leaves meanwhile.
 */
export function answer (exchange: Exchange, verdict: Verdict, done: Done): void {
  const { core, request, reply, route } = exchange
  if ('refuse' in verdict) {
    exchange.body.discard()
    return refuse(core, request, reply, route, verdict.refuse, done, exchange)
  }
  const { payload } = beginReplay(exchange, verdict.replay)
  reply.send(payload ?? undefined)
}

/** Refuses a request from a hook, in the form that its route asks for. */
export function refuse (
  core: Core, request: FastifyRequest, reply: FastifyReply, route: RouteConfig, error: IdempotencyError, done: Done,
  exchange?: Exchange
): void {
  const { thrown, payload } = render(core, request, reply, route, error, exchange)
  if (thrown !== undefined) return done(thrown)
  reply.send(payload)
}

/** What replaces a reply that is on its way in onSend: the lease was lost, its outcome must not be seen. */
export function replacedPayload (exchange: Exchange, verdict: Verdict): { error: Error | null, payload?: unknown } {
  const { core, request, reply, route, headersBefore = {} } = exchange
  resetHeaders(reply, headersBefore)
  if ('replay' in verdict) return { error: null, payload: beginReplay(exchange, verdict.replay).payload }
  const { thrown = null, payload } = render(core, request, reply, route, verdict.refuse, exchange)
  return { error: thrown, payload }
}

/**
 * To be called with each error that goes to the error handler: one of the plugin's own is answered in the route's
 * form.
 */
export function noteRefusal (
  core: Core, request: FastifyRequest, reply: FastifyReply, route: RouteConfig, error: unknown,
  exchange: Exchange | undefined
): void {
  if (!(error instanceof IdempotencyError) || isRefused(request)) return
  if (route.errors === 'throw') render(core, request, reply, route, error, exchange)
  else setRefusal(request, { core, route, error, rendered: false })
}

/**
 * What goes out in the place of an error handler's reply where there is nothing to settle; `undefined`: that reply.
 */
export function refusedPayload (
  request: FastifyRequest, reply: FastifyReply, exchange: Exchange | undefined
): { error: Error | null, payload?: unknown } | undefined {
  const refusal = takeRefusal(request)
  if (refusal === undefined) return undefined
  if (reply.hasHeader('content-length')) reply.removeHeader('content-length')
  const { thrown = null, payload } = render(refusal.core, request, reply, refusal.route, refusal.error, exchange)
  return { error: thrown, payload }
}

function beginReplay (exchange: Exchange, outcome: StoreOutcome): NonNullable<Exchange['replay']> {
  const { core, request, reply, id } = exchange
  const replay = exchange.replay = { outcome, payload: payloadOf(outcome) }
  request.log.debug({ idempotencyId: id, status: outcome.status }, 'idempotency: replayed')
  publish('replayed', request, exchange, { status: outcome.status })
  restore(reply, outcome, core.config.replayedHeaderName)
  return replay
}

/**
 * The payload of a replay in onSend: hooks before ours have acted on it a second time, which this undoes. `last`:
 * nobody else sees the payload.
 */
export function replayedPayload (
  { core, reply }: Exchange, { outcome, payload }: NonNullable<Exchange['replay']>, last: boolean
): string | Buffer | null {
  restore(reply, outcome, core.config.replayedHeaderName)
  const { body, headers } = outcome
  return last && isBetterAsBytes(body) && isAscii(headers.map(([, value]) => value)) ? body : payload
}

/** Node.js writes a large body faster as bytes; a small string goes together with the header. */
export function isBetterAsBytes (body: string | Buffer): boolean {
  return body.length >= 4_096
}

/**
 * A hook has failed on a replay; `true` where the kept bytes have been sent in spite of it. A hook that refuses on
 * purpose, with a status below 500, is obeyed: its error takes the replay's place.
 */
export function replayFailed (exchange: Exchange, error: Error): boolean {
  const { core, request, reply, replay, id } = exchange
  if (replay === undefined || reply.raw.headersSent) return false
  const { outcome } = replay
  const refused = ((error as { statusCode?: number } | null)?.statusCode ?? 500) < 500
  if (refused || !sendAsKept(exchange, outcome)) {
    exchange.replay = undefined
    withdraw(reply, outcome, core.config.replayedHeaderName)
    return false
  }
  request.log.error({ idempotencyId: id, err: errorFrom(error) }, 'idempotency: an onSend hook has failed on a ' +
    'replay; the kept response is sent as it is')
  return true
}

/** Sends a kept response past all hooks; `false` where Node.js refuses it. */
function sendAsKept ({ core, reply }: Exchange, outcome: StoreOutcome): boolean {
  const { body, status } = outcome
  withdrawEncoding(reply)
  restore(reply, outcome, core.config.replayedHeaderName)
  const headers = sendable(reply, outcome)
  if (status >= 200 && status !== 204 && status !== 304) headers['content-length'] = Buffer.byteLength(body)
  try {
    reply.raw.writeHead(status, headers)
  } catch {
    return false
  }
  reply.hijack()
  if (body.length > 0) reply.raw.end(body)
  else reply.raw.end()
  return true
}

function report (
  { config }: Core, request: FastifyRequest, error: IdempotencyError, exchange: Exchange | undefined
): void {
  const { code, cause } = Object.assign(error, config.profile.answers[error.code])
  // Refused for its key, a request has no id.
  request.log.debug({ idempotencyId: exchange?.id || undefined, code }, 'idempotency: refused')
  publish(EVENT_OF[code], request, exchange, {
    status: error.statusCode, code, ...(cause === undefined ? {} : { error: cause })
  })
}

/** The payload of a refusal, or the error that is to go through Fastify's error handler instead. */
function render (
  core: Core, request: FastifyRequest, reply: FastifyReply, route: RouteConfig, error: IdempotencyError,
  exchange: Exchange | undefined
): { thrown?: Error, payload?: Buffer } {
  const { profile, docsUrl } = core.config
  const { errors } = route
  report(core, request, error, exchange)
  if (error.retryAfter !== undefined) reply.header('retry-after', error.retryAfter)
  if (errors === 'throw') {
    setRefusal(request, { core, route, error, rendered: true })
    return { thrown: error }
  }
  let rendered, fields
  try {
    rendered = renderError(error, request, errors, docsUrl)
    fields = errors === 'problem' ? profile.fields(typeOf(error.code, docsUrl)) : {}
  } catch (thrown) {
    return { thrown: errorFrom(thrown) }
  }
  reply.code(error.statusCode).header('content-type', rendered.contentType).headers(fields)
  // Bytes: the route's response schema would strip fields, and Fastify adds a charset to a string's type.
  return { payload: Buffer.from(rendered.payload) }
}
