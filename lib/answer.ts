import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Core } from './core.ts'
import { IdempotencyError, renderError, typeOf } from './errors.ts'
import { publish, type EventName } from './events.ts'
import type { Exchange } from './exchange.ts'
import type { RouteConfig } from './options.ts'
import { payloadOf, resetHeaders, restore } from './response.ts'
import type { Verdict } from './verdict.ts'

/** The one place that answers in the handler's stead. */

const EVENT_OF: Record<IdempotencyError['code'], EventName> = {
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
export function answer (core: Core, exchange: Exchange, verdict: Verdict, done: Done): void {
  if ('refuse' in verdict) {
    exchange.body.discard()
    return refuse(core, exchange.request, exchange.reply, exchange.route, verdict.refuse, done, exchange)
  }
  const { reply } = exchange
  markReplay(exchange, verdict)
  restore(reply, verdict.replay, core.config.replayedHeaderName)
  reply.send(exchange.replayPayload ?? undefined)
}

/** Refuses a request from a hook, in the form that its route asks for. */
export function refuse (core: Core, request: FastifyRequest, reply: FastifyReply, route: RouteConfig, error: IdempotencyError, done: Done, exchange?: Exchange): void {
  report(core, request, error, exchange)
  setRetryAfter(reply, error)
  const { thrown, payload } = render(core, request, reply, route, error)
  if (thrown !== undefined) return done(thrown)
  reply.send(payload)
}

/** Replaces a reply that is on its way in onSend: the lease was lost, its outcome must not be seen. */
export function replaceReply (core: Core, exchange: Exchange, verdict: Verdict, done: (error: Error | null, payload?: unknown) => void): void {
  const { request, reply, route } = exchange
  resetHeaders(reply, exchange.headersBefore)
  exchange.dropped = false
  if ('replay' in verdict) {
    markReplay(exchange, verdict)
    restore(reply, verdict.replay, core.config.replayedHeaderName)
    return done(null, exchange.replayPayload)
  }
  report(core, request, verdict.refuse, exchange)
  setRetryAfter(reply, verdict.refuse)
  const { thrown, payload } = render(core, request, reply, route, verdict.refuse)
  if (thrown !== undefined) done(thrown)
  else done(null, payload)
}

function markReplay (exchange: Exchange, { replay }: { replay: Exchange['replay'] & object }): void {
  exchange.replay = replay
  exchange.replayPayload = payloadOf(replay)
  exchange.replayed = true
  exchange.request.log.debug({ status: replay.status }, 'idempotency: replayed')
  publish('replayed', exchange.request, exchange, { status: replay.status })
}

function report ({ config }: Core, request: FastifyRequest, error: IdempotencyError, exchange: Exchange | undefined): void {
  const { code, cause } = Object.assign(error, config.profile.answers[error.code])
  request.log.debug({ code }, 'idempotency: refused')
  publish(EVENT_OF[code], request, exchange, { status: error.statusCode, code, ...(cause === undefined ? {} : { error: cause }) })
}

function setRetryAfter (reply: FastifyReply, { retryAfter }: IdempotencyError): void {
  if (retryAfter !== undefined) reply.header('retry-after', retryAfter)
}

/** The payload of a refusal, or the error that is to go through Fastify's error handler instead. */
function render (core: Core, request: FastifyRequest, reply: FastifyReply, { errors }: RouteConfig, error: IdempotencyError): { thrown?: Error, payload?: Buffer } {
  const { profile, docsUrl } = core.config
  if (errors === 'throw') return { thrown: error }
  let rendered
  try {
    rendered = renderError(error, request, errors, docsUrl)
  } catch (thrown) {
    return { thrown: thrown as Error }
  }
  reply.code(error.statusCode).header('content-type', rendered.contentType)
  if (errors === 'problem') reply.headers(profile.fields(typeOf(error.code, docsUrl)))
  // Bytes: the route's response schema would strip fields, and Fastify adds a charset to a string's type.
  return { payload: Buffer.from(rendered.payload) }
}
