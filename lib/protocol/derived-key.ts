import { hash } from 'node:crypto'

/**
 * A UUID that stands for one use of an idempotency key: the same on every attempt and every instance, and another
 * for every other key prefix, scope, key or name. Each has its length before it, and what is hashed begins as nothing
 * that `idOf` hashes can: neither tells anything of the other.
 */
export function derivedKey (prefix: string, scope: string | undefined, key: string, name: string): string {
  return uuidOf(`derived ${framed(prefix)}${scope === undefined ? '-:' : framed(scope)}${framed(key)}${framed(name)}`)
}

/** The same for a request without a key: another for each `seed`. */
export function randomKey (seed: string, name: string): string {
  return uuidOf(`random ${framed(seed)}${framed(name)}`)
}

function framed (text: string): string {
  return `${text.length}:${text}`
}

/** RFC 9562, section 5.8: version 8, and 122 bits of SHA-256. */
function uuidOf (text: string): string {
  // UTF-16 tells half surrogate pairs apart, which are all one in UTF-8.
  const hex = hash('sha256', Buffer.from(text, 'utf16le'), 'hex')
  const variant = (parseInt(hex.charAt(16), 16) & 3 | 8).toString(16)
  const [third, fourth] = [`8${hex.slice(13, 16)}`, variant + hex.slice(17, 20)]
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${third}-${fourth}-${hex.slice(20, 32)}`
}
