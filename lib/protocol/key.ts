import type { FastifyRequest } from 'fastify'
import { IdempotencyError } from './errors.ts'
import type { Profile } from './profile.ts'

/** Where the key is looked for: the header as Node.js spells it and as messages do, and the profile's form of it. */
export interface KeySource { header: string, headerName: string, profile: Profile }

/**
 * The idempotency key in the header that the request has.
 * Two lines are one key too many: Node.js would join them with a comma.
 * @throws {IdempotencyError} idempotency_key_invalid when it came on two, or the profile wants another form.
 */
export function readKey (request: FastifyRequest, { header, headerName, profile }: KeySource): string {
  const value = request.headers[header] as string | string[]
  if (Array.isArray(value) || (value.includes(',') && countLines(request.raw.rawHeaders, header) > 1)) {
    throw new IdempotencyError(
      'idempotency_key_invalid', `The ${headerName} header must be sent once; it came on several lines.`
    )
  }
  return profile.keyOf(value, headerName)
}

/** What is wrong with a key, or `null`; a `key` option may have returned anything. */
export function keyError (
  key: unknown, { maxKeyLength, keyName }: { maxKeyLength: number, keyName: string }
): Error | null {
  if (typeof key !== 'string') {
    return new TypeError(
      `fastify-idempotency: option "key" must return a string or undefined, got ${typeof key}`
    )
  }
  if (key.length > maxKeyLength) {
    return new IdempotencyError('idempotency_key_invalid',
      `The ${keyName} has ${key.length} characters; at most ${maxKeyLength} are allowed.`)
  }
  if (key.trim() === '') {
    return new IdempotencyError('idempotency_key_invalid',
      `The ${keyName} must not be empty. Send a fresh value, such as a UUID, for each operation.`)
  }
  return null
}

/** On how many lines a header came; by its lower-case name. */
export function countLines (rawHeaders: string[], header: string): number {
  return rawHeaders.filter((name, index) => index % 2 === 0 && name.toLowerCase() === header).length
}
