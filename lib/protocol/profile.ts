import { parseItem } from 'structured-headers'
import { IdempotencyError, type IdempotencyErrorForm, type IdempotencyErrorCode } from './errors.ts'

/** What the profiles of the protocol differ in. */
export interface Profile {
  /** The idempotency key that the header's value stands for. @throws {IdempotencyError} idempotency_key_invalid */
  keyOf (value: string, headerName: string): string
  /** What JSON Schema can say of the header's value. */
  schemaOf (maxKeyLength: number): Record<string, unknown>
  /** The form of the plugin's own answers where `errors` is not set. */
  form: IdempotencyErrorForm
  /** What these answers are called instead, and their status. */
  answers: Partial<Record<IdempotencyErrorCode, { statusCode?: number, title: string }>>
  /** Header fields of such an answer in the form `problem`; `type` is its URL, where there is documentation. */
  fields (type: string | undefined): Record<string, string>
}

/** The value is the key, whatever it is, quotes included. */
const standard: Profile = {
  keyOf: value => value,
  schemaOf: maxLength => ({ minLength: 1, maxLength }),
  form: 'envelope',
  answers: {},
  fields: () => ({})
}

/** draft-ietf-httpapi-idempotency-key-header-07 */
const ietf: Profile = {
  // Section 2.1: an Item Structured Header whose value is a String (RFC 9651, section 3.3.3); parameters have no
  // meaning.
  keyOf (value, headerName) {
    let item: unknown
    try {
      [item] = parseItem(value)
    } catch {}
    if (typeof item === 'string') return item
    throw new IdempotencyError(
      'idempotency_key_invalid',
      `The ${headerName} header must be a String of RFC 9651: a value in double quotes, ` +
        'such as "8e03978e-40d5-43e8-bc93-6894a57f9324".'
    )
  },
  // RFC 9651, section 3.3.3: printable ASCII in double quotes, a quote or a backslash behind a backslash.
  schemaOf: maxKeyLength => (
    { format: 'sf-string', pattern: `^"(?:[ !#-\\[\\]-~]|\\\\["\\\\]){1,${maxKeyLength}}"(?:;.*)?$` }
  ),
  form: 'problem',
  // Section 2.7.
  answers: {
    idempotency_key_missing: { title: 'Idempotency-Key is missing' },
    idempotency_key_mismatch: { statusCode: 422, title: 'Idempotency-Key is already used' },
    idempotency_in_progress: { title: 'A request is outstanding for this Idempotency-Key' }
  },
  fields: type => ({
    'content-language': 'en',
    // As a URI that a header can carry; a function of the application's may return something else.
    ...(type === undefined || !URL.canParse(type)
      ? {}
      : { link: `<${new URL(type).href}>; rel="describedby"; type="text/html"` })
  })
}

export const PROFILES = { default: standard, ietf } as const
