import type { FastifyRequest } from 'fastify'
import { assertAnswered } from '../util/promise.ts'

/** Everything the plugin itself answers with, by its stable code. */
const ANSWERS = {
  idempotency_key_invalid: { status: 400, title: 'Idempotency key invalid' },
  idempotency_key_missing: { status: 400, title: 'Idempotency key missing' },
  idempotency_key_mismatch: { status: 409, title: 'Idempotency key mismatch' },
  idempotency_in_progress: { status: 409, title: 'Request in progress' },
  idempotency_outcome_unknown: { status: 409, title: 'Outcome unknown' },
  idempotency_response_unavailable: { status: 409, title: 'Response unavailable' },
  idempotency_store_unavailable: { status: 503, title: 'Idempotency store unavailable' }
} as const

export type IdempotencyErrorCode = keyof typeof ANSWERS

/** An answer of the plugin's own. With `errors: 'throw'` it goes through Fastify's error handler. */
export class IdempotencyError extends Error {
  override readonly name = 'IdempotencyError'
  readonly code: IdempotencyErrorCode
  readonly statusCode: number
  readonly title: string
  /** Seconds for `Retry-After` (RFC 9110, section 10.2.3), where a retry makes sense. */
  readonly retryAfter: number | undefined

  constructor (code: IdempotencyErrorCode, message: string, options: { retryAfter?: number, cause?: unknown } = {}) {
    super(message, { cause: options.cause })
    this.code = code
    this.statusCode = ANSWERS[code].status
    this.title = ANSWERS[code].title
    this.retryAfter = options.retryAfter
  }
}

/** The form of the plugin's own answers; see the option `errors`. */
export type IdempotencyErrorForm = 'envelope' | 'problem' | 'throw' | (
  (error: IdempotencyError, request: FastifyRequest) => unknown
)

/** Where an error is documented: the option `docsUrl`, as a function. */
export type DocsUrl = (code: IdempotencyErrorCode) => string

const JSON_TYPE = 'application/json; charset=utf-8'

/**
 * The content type and the payload of an answer in the form asked for; a custom form's string is sent as it is.
 * @throws {TypeError} when a custom form answers with a promise. @throws what it throws.
 */
export function renderError (
  error: IdempotencyError, request: FastifyRequest, form: Exclude<IdempotencyErrorForm, 'throw'>,
  docsUrl: DocsUrl | undefined
): { contentType: string, payload: string } {
  if (typeof form === 'function') {
    const payload = form(error, request)
    assertAnswered(payload, 'errors')
    return typeof payload === 'string'
      ? { contentType: 'text/plain; charset=utf-8', payload }
      : { contentType: JSON_TYPE, payload: JSON.stringify(payload) ?? '' }
  }
  const { code, title, message, statusCode } = error
  const type = typeOf(code, docsUrl) ?? `urn:problem-type:${code}`
  return form === 'problem'
    // RFC 9457, section 3; code and request_id are extension members (section 3.2).
    ? {
        contentType: 'application/problem+json',
        payload: JSON.stringify({ type, title, status: statusCode, detail: message, code, request_id: request.id })
      }
    : {
        contentType: JSON_TYPE,
        payload: JSON.stringify({ status: 'error', code, title, message, type, request_id: request.id })
      }
}

/** Where an error is documented. @throws {TypeError} when the application's function answers with something else. */
export function typeOf (code: IdempotencyErrorCode, docsUrl: DocsUrl | undefined): string | undefined {
  const type: unknown = docsUrl?.(code)
  if (type === undefined || typeof type === 'string') return type
  assertAnswered(type, 'docsUrl')
  throw new TypeError(`fastify-idempotency: option "docsUrl" must return a string, got ${typeof type}`)
}
