import { inspect } from 'node:util'

/** @throws {TypeError} where `value` is no object, or has a member of another name. `what` begins the message. */
export function checkNames (value: unknown, names: readonly string[], what: string): asserts value is object {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new TypeError(`${what} must be an object with ${names.join(', ')}; got ${inspect(value, { depth: 0 })}`)
  }
  for (const name of Object.keys(value)) {
    if (names.includes(name)) continue
    const meant = nearest(name, names)
    const hint = meant !== undefined ? `did you mean "${meant}"?` : `the options here are ${names.join(', ')}`
    throw new TypeError(`${what}: unknown option "${name}"; ${hint}`)
  }
}

/** The name that an unknown one was probably meant to be. */
export function nearest (unknown: string, names: readonly string[]): string | undefined {
  const [nearest] = names
    .map(name => ({ name, distance: editDistance(unknown.toLowerCase(), name.toLowerCase()) }))
    .sort((one, other) => one.distance - other.distance)
  // A third of the letters may be wrong: beyond that, it is another word.
  return nearest !== undefined && nearest.distance <= Math.max(1, unknown.length / 3) ? nearest.name : undefined
}

/** Letters to insert, delete or replace (Levenshtein). */
function editDistance (one: string, other: string): number {
  let row = Array.from({ length: other.length + 1 }, (_, i) => i)
  for (const [i, letter] of [...one].entries()) {
    const next = [i + 1]
    for (let j = 0; j < other.length; j++) {
      const replaced = Number(row[j]) + (letter === other[j] ? 0 : 1)
      next.push(Math.min(replaced, Number(row[j + 1]) + 1, Number(next[j]) + 1))
    }
    row = next
  }
  return Number(row.at(-1))
}
