/** Set anew on each response, or meant for one client at one moment. */
const LIVE = new Set(['set-cookie', 'www-authenticate', 'retry-after', 'server-timing', 'age'])
const LIVE_FAMILIES = ['access-control-', 'ratelimit', 'x-ratelimit-']

/** By lower-case name; those that are never kept (hop-by-hop ones, `date`, `content-length`) are left out before. */
export type HeaderFilter = (name: string) => boolean

export function isReplayedByDefault (name: string): boolean {
  for (const family of LIVE_FAMILIES) if (name.startsWith(family)) return false
  return !LIVE.has(name)
}

/** Only the headers of the list. */
export function listed (names: readonly string[]): HeaderFilter {
  const kept = new Set(names.map(name => name.toLowerCase()))
  return name => kept.has(name)
}
