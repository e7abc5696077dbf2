import { inspect } from 'node:util'
import { checkNames } from '../util/option-names.ts'

/** What PostgreSQL calls the levels of isolation that it has. */
export const LEVELS = ['read committed', 'repeatable read', 'serializable'] as const
export type IsolationLevel = typeof LEVELS[number]

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
