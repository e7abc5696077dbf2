import { inspect } from 'node:util'
import { suggestionFor } from '../config/suggestions.ts'

/** What PostgreSQL calls the levels of isolation that it has. */
export const LEVELS = ['read committed', 'repeatable read', 'serializable'] as const
export type IsolationLevel = typeof LEVELS[number]

/** @throws {TypeError} where `value` is no object, or has a member of another name. `what` begins the message. */
export function checkNames (value: unknown, names: readonly string[], what: string): asserts value is object {
  if (typeof value !== 'object' || value === null) {
    throw new TypeError(`${what} must be an object with ${names.join(', ')}; got ${inspect(value, { depth: 0 })}`)
  }
  for (const name of Object.keys(value)) {
    if (names.includes(name)) continue
    const meant = suggestionFor(name, names)
    const isOurs = meant !== undefined && names.includes(meant)
    const hint = isOurs ? `did you mean "${meant}"?` : `the options here are ${names.join(', ')}`
    throw new TypeError(`${what}: unknown option "${name}"; ${hint}`)
  }
}

/**
 * The options of one call, for a library that writes the level into its BEGIN as it is given.
 * @throws {TypeError} for another option, or another level.
 */
export function levelOf (
  options: unknown, adapter: string, names: readonly string[] = ['isolationLevel'], levels: readonly string[] = LEVELS
): IsolationLevel | undefined {
  if (options === undefined) return undefined
  checkNames(options, names, `fastify-idempotency/sql: the options of a transaction of ${adapter}`)
  const { isolationLevel } = options as { isolationLevel?: unknown }
  if (isolationLevel === undefined) return undefined
  const level = typeof isolationLevel === 'string' ? isolationLevel.toLowerCase() : ''
  if (levels.includes(level)) return level as IsolationLevel
  throw new TypeError(`fastify-idempotency/sql: option "isolationLevel" must be ${levels.join(', ')}, ` +
    `got ${inspect(isolationLevel, { depth: 0 })}`)
}

/**
 * What an adapter is made of, before the first request asks for it.
 * @throws {TypeError} where it has no such method: most often since it was not there yet.
 */
export function checkLibrary (library: unknown, method: string, adapter: string, wanted: string): void {
  const { [method]: found } = (library ?? {}) as Record<string, unknown>
  if (typeof found === 'function') return
  throw new TypeError(`fastify-idempotency/sql: ${adapter} needs ${wanted}; ` +
    (library == null ? `got ${String(library)}: it was not there yet` : `what was given has no method "${method}"`))
}

/** @throws {TypeError} where it is no `Database`. */
export function checkDatabase (database: unknown): void {
  const { transaction, query } = (database ?? {}) as Record<string, unknown>
  if (typeof transaction === 'function' && typeof query === 'function') return
  throw new TypeError('fastify-idempotency/sql: transactions needs a database by way of an adapter, such as ' +
    `transactions(viaPg(pool)); got ${inspect(database, { depth: -1 })}`)
}
