import { hash } from 'node:crypto'
import { hashOf } from './hash.ts'

/** Characters of base64url: 192 bits of SHA-256. A small response's record then fits one size class less in Redis. */
const DIGEST = 32

/**
 * Names a key in the store. Only this hash is stored: neither the scope (a credential,
 * often) nor the key can be read from it. The length keeps scope and key apart.
 * @throws {TypeError} when the scope is of another type, which might stand for several callers.
 */
export function storeKey (prefix: string, scope: string | undefined, key: string): string {
  if (scope !== undefined && typeof scope !== 'string') {
    throw new TypeError(`fastify-idempotency: a scope must be a string, or undefined for the anonymous one, got ${scope === null ? 'null' : typeof scope}; write String(…) around an id`)
  }
  return prefix + hash('sha256', scope === undefined ? `-:${key}` : `${scope.length}:${scope}${key}`, 'base64url')
}

/**
 * Tells whether two requests under one key are the same: a digest of body, method and
 * target. Salted with the key, which is stored nowhere, so that a dump of the store does not
 * let one test guesses of a body.
 *
 * The form is `digest.method.hint`: only the digest decides; the method and a salted
 * checksum of the target let a mismatch say what differed.
 */
export function fingerprintOf (key: string, method: string, target: string, digest: (salt: string) => string): string {
  return `${digest(`${key.length}:${key}${method} ${target}`).slice(0, DIGEST)}.${method}.${hashOf(target, hashOf(key)) & 0xfffff}`
}

/** The digest of what a route's own function has made of a request. @throws {TypeError} when that is of another type. */
export function digestOf (narrowed: string | Buffer, salt: string): string {
  if (typeof narrowed !== 'string' && !Buffer.isBuffer(narrowed)) {
    throw new TypeError(`fastify-idempotency: option "fingerprint" must return a string or a Buffer, got ${narrowed === null ? 'null' : typeof narrowed}`)
  }
  const kind = typeof narrowed === 'string' ? `s${narrowed}` : `b${narrowed.toString('base64')}`
  return hash('sha256', `${salt.length}:${salt}${kind}`, 'base64url')
}

/** What differs between two fingerprints that are not equal. */
export function difference (one: string, other: string): 'method' | 'URL' | 'body' {
  const [, method, target] = one.split('.')
  const [, otherMethod, otherTarget] = other.split('.')
  return method !== otherMethod ? 'method' : target !== otherTarget ? 'URL' : 'body'
}
