import { inspect, types } from 'node:util'
import { RULES, type Rule } from './rules.ts'
import { suggestionFor } from './suggestions.ts'

/**
 * Where an option of its own is there and `undefined`, its value was not ready yet, and another would serve in
 * silence.
 */
const NEVER_UNDEFINED: Record<string, string> = {
  store: 'create the store first; where the in-process one is meant, say so: store: new MemoryStore()',
  redis: 'create the client first; with @fastify/redis, register it before and leave "redis" out; where the ' +
    'in-process store is meant, say so: store: new MemoryStore()'
}

/**
 * The options as the plugin goes on with them; what is `undefined` is not set.
 * @throws {TypeError} naming the first that is unknown or wrong, after `where`.
 */
export function check (options: object, rules: Record<string, Rule>, where: string): Record<string, unknown> {
  const read: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined) checkUndefined(name, where)
    else read[name] = readOption(name, value, rules, where)
  }
  return read
}

function checkUndefined (name: string, where: string): void {
  if (!Object.hasOwn(NEVER_UNDEFINED, name)) return
  throw new TypeError(`${where}option "${name}" is undefined: it was not there yet when the plugin was registered; ` +
    `${NEVER_UNDEFINED[name]}`)
}

function readOption (name: string, value: unknown, rules: Record<string, Rule>, where: string): unknown {
  const rule = Object.hasOwn(rules, name) ? rules[name] : undefined
  if (rule === undefined) throw new TypeError(`${where}${unknown(name, rules)}`)
  const read = rule.read(value)
  if (read === undefined) throw new TypeError(`${where}option "${name}" must be ${rule.want}, got ${show(value)}`)
  return read
}

function unknown (name: string, rules: Record<string, Rule>): string {
  const here = Object.keys(rules)
  const list = `the options here are ${here.join(', ')}`
  const elsewhere = 'cannot be set per route, only where the plugin is registered'
  if (Object.hasOwn(RULES, name)) return `option "${name}" ${elsewhere}; ${list}`
  const meant = suggestionFor(name, Object.keys(RULES))
  if (meant === undefined) return `unknown option "${name}"; ${list}`
  const note = here.includes(meant) ? '' : ` It ${elsewhere}.`
  return `unknown option "${name}"; did you mean "${meant}"?${note}`
}

function show (value: unknown): string {
  if (typeof value === 'function') return types.isAsyncFunction(value) ? 'an async function' : 'a function'
  return inspect(value, { depth: 1, breakLength: Infinity })
}
