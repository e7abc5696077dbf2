import type { Rule } from './rules.ts'

/** RFC 9110, section 5.6.2. */
export function isToken (value: unknown): boolean {
  return typeof value === 'string' && /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(value)
}

/** Fields that others set and read: with a key or `true` in them, messages cannot be read, or mean something else. */
const TAKEN: ReadonlyArray<[names: RegExp, why: string]> = [
  [/^(connection|expect|host|http2-settings|keep-alive|proxy-.+|te|trailer|transfer-encoding|upgrade)$/,
    'belongs to the connection'],
  [/^(accept-ranges|content-.+|etag|last-modified|vary)$/, 'describes the content or its length'],
  [/^(age|cache-control|date|expires|pragma|retry-after)$/, 'is for times and caches'],
  [/^(authorization|cookie|set-cookie|www-authenticate)$/, 'is for credentials and sessions'],
  [/^(accept|accept-.+|access-control-.+|allow|if-.+|link|location|origin|range|referer|server|user-agent)$/,
    'means something else to clients and servers']
]

/** The rule of a header field that is the plugin's alone. `usual`: its name by default. */
export function ownField (option: string, usual: string): Rule {
  const want = `the name of a header field of its own, such as '${usual}' or 'X-${usual}'`
  const read = (value: unknown): unknown => {
    if (!isToken(value)) return undefined
    const [, why] = TAKEN.find(([names]) => names.test(String(value).toLowerCase())) ?? []
    if (why === undefined) return value
    throw new TypeError(`fastify-idempotency: option "${option}" must be ${want}, got '${String(value)}', which ${why}`)
  }
  return { read, want }
}
