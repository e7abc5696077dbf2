import { hash } from 'node:crypto'
import { hashOf } from '../util/hash.ts'

/** Characters of base64url: 192 bits of SHA-256. A small response's record then fits one size class less in Redis. */
const DIGEST = 32
/** Hexadecimal digits: 160 bits of SHA-256. */
const ID = 40
/** Ends a stored fingerprint whose body was larger than the route's `bodyLimit`, which its parser did not heed. */
const LARGE = '+'

/**
 * Names scope and key: letters and digits, the same on every instance. Neither the scope (a credential, often) nor
 * the key can be read from it. The length keeps scope and key apart.
 * @throws {TypeError} when the scope is of another type, which might stand for several callers.
 */
export function idOf (scope: string | undefined, key: string): string {
  if (scope !== undefined && typeof scope !== 'string') {
    const type = scope === null ? 'null' : typeof scope
    throw new TypeError('fastify-idempotency: a scope must be a string, or undefined for the anonymous one, ' +
      `got ${type}; write String(…) around an id`)
  }
  return hash('sha256', scope === undefined ? `-:${key}` : `${scope.length}:${scope}${key}`, 'hex').slice(0, ID)
}

/** A key's name in the store. @throws {TypeError} as `idOf` */
export function storeKey (prefix: string, scope: string | undefined, key: string): string {
  return prefix + idOf(scope, key)
}

/**
 * Tells whether two requests under one key are the same: a digest of body, method and
 * target. Salted with the key, which is stored nowhere, so that a dump of the store does not
 * let one test guesses of a body.
 *
 * The form is `digest.method.hint`: only the digest decides; the method and a salted
 * checksum of the target let a mismatch say what differed.
 */
export function fingerprintOf (key: string, method: string, target: string, digest: string): string {
  return `${digest.slice(0, DIGEST)}.${method}.${hashOf(target, 0, hashOf(key)) & 0xfffff}`
}

/** What is digested beside the body. */
export function saltOf (key: string, method: string, target: string): string {
  return `${key.length}:${key}${method} ${target}`
}

/**
 * The digest of what a route's own function has made of a request. @throws {TypeError} when that is of another type.
 */
export function digestOf (narrowed: string | Buffer, salt: string): string {
  if (typeof narrowed !== 'string' && !Buffer.isBuffer(narrowed)) {
    const type = narrowed === null ? 'null' : typeof narrowed
    throw new TypeError(`fastify-idempotency: option "fingerprint" must return a string or a Buffer, got ${type}`)
  }
  const kind = typeof narrowed === 'string' ? `s${narrowed}` : `b${narrowed.toString('base64')}`
  return hash('sha256', `${salt.length}:${salt}${kind}`, 'base64url')
}

/** A fingerprint as it is stored; `large`: the body exceeded the route's `bodyLimit`. */
export function stored (fingerprint: string, large: boolean): string {
  return large ? fingerprint + LARGE : fingerprint
}

/** Whether the body of a stored fingerprint exceeded the route's `bodyLimit`, so that a retry's may as well. */
export function isLarge (known: string): boolean {
  return known.endsWith(LARGE)
}

/** Whether a stored fingerprint is that of the same request. */
export function matches (known: string, fingerprint: string): boolean {
  return plain(known) === plain(fingerprint)
}

/** What differs between two fingerprints that do not match. */
export function difference (one: string, other: string): 'method' | 'URL' | 'body' {
  const [, method, target] = plain(one).split('.')
  const [, otherMethod, otherTarget] = plain(other).split('.')
  return method !== otherMethod ? 'method' : target !== otherTarget ? 'URL' : 'body'
}

function plain (fingerprint: string): string {
  return isLarge(fingerprint) ? fingerprint.slice(0, -1) : fingerprint
}
