import type { FastifyReply, FastifyRequest, onSendHookHandler } from 'fastify'
import { replaceReply } from './answer.ts'
import type { Core } from './core.ts'
import type { Exchange } from './exchange.ts'
import { capture, isAscii, resetHeaders, restore, unreplayable, unwrapResponse } from './response.ts'
import { settle } from './settle.ts'
import type { Outcome } from './store.ts'
import { isStream, tee, type ByteStream } from './tee.ts'
import { settlement } from './verdict.ts'

type Done = (error?: Error | null, payload?: unknown) => void

/** The onSend hook: the outcome is in the store before the reply leaves. */
export function keep (core: Core, exchange: Exchange, payload: unknown, done: Done): void {
  const { reply } = exchange
  if (exchange.replay !== undefined) {
    // Hooks before this one have run over the kept payload a second time; undo it.
    restore(reply, exchange.replay, core.config.replayedHeaderName)
    const { body, headers } = exchange.replay
    return done(null, isBetterAsBytes(exchange, body) && isAscii(headers.map(([, value]) => value)) ? body : exchange.replayPayload)
  }
  if (!exchange.holding && !exchange.settled) {
    // Answered by another hook, before the key was taken or with a refusal.
    exchange.body.discard()
    return done()
  }
  const body = isResponse(payload) ? unwrapResponse(reply, payload) : payload
  switch (settlement(exchange, reply.statusCode)) {
    case 'leave': return done(null, body)
    case 'free': return free(core, exchange, body, done)
    case 'keep': return keepBody(core, exchange, body, done)
    case 'wait':
      if (isStream(body)) return keepBody(core, exchange, body, done)
      exchange.sending = true
      exchange.body.drain('keep', error => {
        undoDropped(exchange)
        if (error === undefined) keepBody(core, exchange, body, done)
        else free(core, exchange, body, done)
      })
  }
}

function free (core: Core, exchange: Exchange, body: unknown, done: Done): void {
  // The stream may be the request's own body, read by the response.
  if (!isStream(body)) exchange.body.discard()
  settleReply(core, exchange, undefined, body, done)
}

function keepBody (core: Core, exchange: Exchange, body: unknown, done: Done): void {
  const { reply, route } = exchange
  const headers = exchange.leaving = reply.getHeaders()
  let outcome
  try {
    outcome = capture(reply, headers, exchange.body.whole ? exchange.fingerprint : '', route.replayHeaders)
  } catch (error) {
    return done(error as Error)
  }
  // Fastify sends a 204 without the type that it has given a payload (RFC 9110, section 8.6).
  if (outcome.status === 204 && body !== undefined && body !== null) outcome.headers = outcome.headers.filter(([name]) => name !== 'content-type')
  if (isStream(body)) return keepStream(core, exchange, outcome, body, done)
  let payload = body
  if (typeof body === 'string' || Buffer.isBuffer(body)) {
    outcome.text = typeof body === 'string'
    if (isBetterAsBytes(exchange, body) && isAscii(Object.values(headers))) payload = typeof body === 'string' ? Buffer.from(body) : body
    outcome.body = payload as string | Buffer
    if (Buffer.byteLength(outcome.body) > route.maxResponseBytes) outcome = unreplayable(outcome.status, outcome.fingerprint)
  } else if (body !== undefined && body !== null) {
    // Fastify refuses such a payload after onSend (FST_ERR_REP_INVALID_PAYLOAD_TYPE).
    return done(null, body)
  }
  settleReply(core, exchange, outcome, payload, done)
}

function settleReply (core: Core, exchange: Exchange, outcome: Outcome | undefined, body: unknown, done: Done): void {
  exchange.sending = true
  settle(core, exchange, outcome, settled => {
    exchange.sending = false
    if (settled === undefined) done(null, body)
    else replaceReply(core, exchange, settled.instead, done)
  })
}

/** Keeps a stream when it ends, once the request's body is whole as well. */
function keepStream (core: Core, exchange: Exchange, outcome: Outcome, source: ByteStream, done: Done): void {
  exchange.sending = true
  const end = (result: Outcome | undefined): Promise<boolean> => new Promise(resolve => {
    settle(core, exchange, result, settled => {
      exchange.sending = false
      resolve(settled === undefined)
    })
  })
  const whole = (): Promise<boolean> => new Promise(resolve => exchange.body.drain('keep', error => resolve(error === undefined)))
  done(null, tee(source, exchange.route.maxResponseBytes,
    async body => {
      if (!await whole()) return await end(undefined)
      const { fingerprint } = exchange
      return await end(body === undefined ? unreplayable(outcome.status, fingerprint) : { ...outcome, fingerprint, body })
    },
    async () => { if (exchange.holding) await end(undefined) }))
}

function isResponse (payload: unknown): payload is Response {
  return typeof payload === 'object' && Object.prototype.toString.call(payload) === '[object Response]'
}

/** Node.js writes a large body faster as bytes; a small string goes together with the header. Nobody else may see the difference. */
function isBetterAsBytes ({ final }: Exchange, body: string | Buffer): boolean {
  return final && body.length >= 4_096
}

/**
 * The hook in Fastify's form; costs a property read where nothing is to be kept. `isFinal`:
 * whether no hook of another comes behind it.
 */
export function onSend (core: Core, unseen: boolean, isFinal: () => boolean): onSendHookHandler<unknown> {
  return (request, reply, payload, done) => {
    const exchange = request.idempotency as Exchange | null | undefined
    if (exchange?.unseen !== unseen) return done()
    // A second reply behind one that was kept and has left is Fastify's to refuse.
    if (exchange.settled && reply.raw.headersSent) return done()
    if (exchange.passing) {
      // Sent twice, or a timeout: the first reply leaves as soon as the store has it.
      exchange.dropped = true
      return request.log.warn('idempotency: a reply is already on its way; this one is dropped')
    }
    exchange.passing = true
    exchange.final = isFinal()
    exchange.leaving = undefined
    exchange.waiting = undefined
    const leave: Done = (error, kept) => {
      exchange.passing = false
      if (exchange.waiting === undefined) return done(error as null, kept)
      undoDropped(exchange)
      try {
        done(error as null, kept)
      } catch (thrown) {
        sendFailed(request, reply, thrown)
      }
    }
    try {
      keep(core, exchange, payload, leave)
    } catch (error) {
      // A function among the options has failed, or it is a Response that cannot be sent; unless Fastify has thrown from `done`.
      if (!exchange.passing) throw error
      leave(error as Error)
    }
    if (exchange.passing) exchange.waiting = { status: reply.statusCode, headers: exchange.leaving ?? reply.getHeaders() }
  }
}

/** A reply that was dropped has set a status and headers of its own. */
function undoDropped (exchange: Exchange): void {
  const { dropped, reply, waiting } = exchange
  if (!dropped || waiting === undefined) return
  exchange.dropped = false
  resetHeaders(reply, waiting.headers)
  reply.code(waiting.status)
}

/** Fastify throws from `done` what writeHead refuses; after a wait for the store nobody else would catch it. */
function sendFailed (request: FastifyRequest, reply: FastifyReply, error: unknown): void {
  if (reply.raw.headersSent) {
    request.log.error({ err: error }, 'idempotency: the reply could not be sent')
    reply.raw.destroy()
  } else {
    reply.send(error)
  }
}
