import { IdempotencyError, typeOf, type IdempotencyErrorForm, type IdempotencyErrorCode } from '../protocol/errors.ts'
import type { Config, RouteConfig } from '../config/config.ts'

export type Json = Record<string, unknown>

/** What a document says about one status of the plugin's own. */
export interface Answer {
  description: string
  headers: Json
  /** The body, where its form is known. */
  body?: { mediaType: string, schema: Json }
  /** A schema of the route's own for this status is what serializes it. */
  yields: boolean
}

interface Told { what: string, only?: (route: RouteConfig) => boolean, retry?: true }

const TOLD: Record<IdempotencyErrorCode, Told> = {
  idempotency_key_invalid: { what: 'The idempotency key is empty, too long, or malformed.' },
  idempotency_key_missing: { what: 'An idempotency key is required.', only: route => route.required },
  idempotency_key_mismatch: { what: 'The key was used for another request; use a fresh one.' },
  idempotency_in_progress: {
    what: 'The first request with this key still runs; send the same again later.', retry: true
  },
  idempotency_outcome_unknown: {
    what: 'The first request with this key was interrupted, or the result of one of its steps is not known; ' +
      'look whether it took effect.'
  },
  idempotency_response_unavailable: {
    what: 'The first request with this key was answered, but its response could not be kept.'
  },
  idempotency_store_unavailable: {
    what: 'Nothing was run; send the same again later.', only: route => route.onStoreError === 'reject', retry: true
  }
}

/** The answers that a route's clients may get from the plugin, by status. */
export function answersOf ({ route, profile, docsUrl }: Config): Map<number, Answer> {
  const byStatus = new Map<number, IdempotencyErrorCode[]>()
  for (const [name, { only }] of Object.entries(TOLD)) {
    if (only?.(route) === false) continue
    const code = name as IdempotencyErrorCode
    const status = profile.answers[code]?.statusCode ?? new IdempotencyError(code, '').statusCode
    byStatus.set(status, [...byStatus.get(status) ?? [], code])
  }
  return new Map(Array.from(byStatus, ([status, codes]) => [status, {
    description: codes.map(code => `${code}: ${TOLD[code].what}`).join('\n'),
    headers: {
      ...(codes.some(code => TOLD[code].retry)
        ? {
            'Retry-After': {
              type: 'integer',
              minimum: 1,
              description: `Seconds; with ${codes.filter(code => TOLD[code].retry).join()}.`
            }
          }
        : {}),
      ...(route.errors === 'problem'
        ? fieldsOf(Object.keys(profile.fields(typeOf(codes[0] as IdempotencyErrorCode, docsUrl))))
        : {})
    },
    ...bodyOf(route.errors, status, codes),
    yields: route.errors === 'throw'
  }]))
}

function fieldsOf (names: string[]): Json {
  return Object.fromEntries(
    names.map(name => [name.replace(/\b[a-z]/g, letter => letter.toUpperCase()), { type: 'string' }])
  )
}

function bodyOf (form: IdempotencyErrorForm, status: number, codes: string[]): Pick<Answer, 'body'> {
  const text = { type: 'string' }
  const uri = { type: 'string', format: 'uri' }
  const code = { type: 'string', enum: codes }
  const number = { type: 'integer', enum: [status] }
  switch (form) {
    case 'envelope': return json('application/json', {
      status: { type: 'string', enum: ['error'] }, code, title: text, message: text, type: uri, request_id: text
    })
    case 'problem': return json(
      'application/problem+json', { type: uri, title: text, status: number, detail: text, code, request_id: text }
    )
    case 'throw': return json('application/json', { statusCode: number, code, error: text, message: text })
    default: return {}
  }
}

function json (mediaType: string, properties: Json): Pick<Answer, 'body'> {
  // A copy of each: a YAML document shows an object that it meets twice as an alias.
  return {
    body: {
      mediaType, schema: { type: 'object', required: Object.keys(properties), properties: structuredClone(properties) }
    }
  }
}
