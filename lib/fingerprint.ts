import { hash } from 'node:crypto'
import { crc32 } from 'node:zlib'

/**
 * Names a key in the store. Only this hash is stored: neither the scope (a credential,
 * often) nor the key can be read from it. The length keeps scope and key apart.
 */
export function storeKey (prefix: string, scope: string | undefined, key: string): string {
  return prefix + hash('sha256', scope === undefined ? `-:${key}` : `${scope.length}:${scope}${key}`, 'base64url')
}

/**
 * Tells whether two requests under one key are the same. Salted with the key, which is
 * stored nowhere, so that a dump of the store does not let one test guesses of a body.
 *
 * The form is `digest.method.hint`: only the digest decides; the method and a salted
 * checksum of the URL let a mismatch say what differed.
 */
export function fingerprintOf (key: string, method: string, target: string, bodyDigest: string): string {
  return `${hash('sha256', `${key.length}:${key}${method} ${target} ${bodyDigest}`, 'base64url')}.${method}.${crc32(target, crc32(key)).toString(36)}`
}

/** What differs between two fingerprints that are not equal. */
export function difference (one: string, other: string): 'method' | 'URL' | 'body' {
  const [, method, target] = one.split('.')
  const [, otherMethod, otherTarget] = other.split('.')
  return method !== otherMethod ? 'method' : target !== otherTarget ? 'URL' : 'body'
}
