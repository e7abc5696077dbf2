/** What other plugins and libraries call the same thing. */
const NEIGHBOURS: Record<string, string> = {
  keyGenerator: 'key',
  nameSpace: 'keyPrefix',
  prefix: 'keyPrefix',
  skipOnError: 'onStoreError',
  errorResponseBuilder: 'errors',
  enableDraftSpec: 'profile',
  lockTtl: 'lease',
  processingTtl: 'lease',
  storeIf: 'cacheable'
}
const BY_LOWER_CASE = new Map(Object.entries(NEIGHBOURS).map(([name, ours]) => [name.toLowerCase(), ours]))

/** The option that was probably meant by an unknown name: what neighbours call so, else the nearest spelling. */
export function suggestionFor (name: string, options: readonly string[]): string | undefined {
  const neighbour = BY_LOWER_CASE.get(name.toLowerCase())
  if (neighbour !== undefined) return neighbour
  const [nearest] = options
    .map(option => ({ option, distance: editDistance(name.toLowerCase(), option.toLowerCase()) }))
    .sort((one, other) => one.distance - other.distance)
  // A third of the letters may be wrong: beyond that, it is another word.
  return nearest !== undefined && nearest.distance <= Math.max(1, name.length / 3) ? nearest.option : undefined
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
