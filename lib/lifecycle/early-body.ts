import { serialize } from 'node:v8'
import type { FastifyRequest } from 'fastify'
import { evaluateClaim } from '../protocol/verdict.ts'
import { answer } from './answer.ts'
import type { Exchange } from './exchange.ts'

/**
 * A body that was read before the route's hooks, by middleware or by a hook that checks a signature: the plugin has
 * not seen its bytes. They may stand elsewhere.
 */

/**
 * Takes the bytes that a reader has kept as `rawBody`, as raw-body plugins and body parsers do; whether there are
 * any.
 */
export function recoverRawBody ({ request, body }: Exchange): boolean {
  const { rawBody } = request as { rawBody?: unknown }
  const bytes = bytesOf(rawBody) ?? bytesOf((request.raw as { rawBody?: unknown }).rawBody)
  if (bytes !== undefined) body.substitute(bytes)
  return bytes !== undefined
}

/**
 * To be called once the parser is done, before the handler: takes what there is of the body, and compares it where
 * somebody else has the key. `true`: the request has been answered.
 * @throws {Error} where nothing is there: the request must not run, since no retry of it could be told.
 */
export function answerEarlyBody (exchange: Exchange): boolean {
  const { body, claim, reply, route } = exchange
  if (typeof claim !== 'object') return false
  if (!body.whole && !recoverRawBody(exchange)) {
    const bytes = parsedBody(exchange.request) ?? (route.fingerprint === undefined ? undefined : Buffer.alloc(0))
    if (bytes === undefined) throw refusal(exchange)
    body.substitute(bytes)
  }
  if (claim.outcome === 'acquired') return false
  answer(exchange, evaluateClaim(claim, exchange.fingerprint, route), error => { reply.send(error) })
  return true
}

/** What a parser, or middleware, has made of the body, as bytes; `undefined` where it cannot be told from another. */
function parsedBody (request: FastifyRequest): Buffer | undefined {
  const parsed = request.body ?? (request.raw as { body?: unknown }).body
  if (parsed === undefined || parsed === null) return undefined
  try {
    // Unlike JSON, it tells all that it cannot copy.
    return bytesOf(parsed) ?? serialize(parsed)
  } catch {
    return undefined
  }
}

function bytesOf (value: unknown): Buffer | undefined {
  if (typeof value === 'string') return Buffer.from(value)
  return ArrayBuffer.isView(value) ? Buffer.from(value.buffer, value.byteOffset, value.byteLength) : undefined
}

function refusal (exchange: Exchange): Error {
  const { request, id } = exchange
  const route = `${request.method} ${String(request.routeOptions.url)}`
  const message = `fastify-idempotency: the request body of ${route} was ` +
    'read before the plugin could see it, so that its retries cannot be told. Keep its bytes as request.rawBody, or ' +
    'say what makes two requests the same with the option "fingerprint"'
  request.log.error({ idempotencyId: id }, message)
  exchange.refuseBody()
  return Object.assign(new Error(message), { statusCode: 500 })
}
