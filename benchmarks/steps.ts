/** `npm run bench -- steps`: handlers with steps against the same handler without, and the commands that Redis gets. */
import type { AppName } from './apps/index.ts'
import { OURS, type Case } from './cases.ts'
import { freshKey } from './keys.ts'
import { pairTable, runPairs, type PairResults } from './pairs.ts'
import type { Part } from './part.ts'
import { startOwnRedis } from './redis.ts'
import { startServer } from './servers.ts'
import { post } from './verify.ts'

const COUNTS = [0, 1, 3] as const
const STORES = [['in-process store', 'ours', 'ours-steps'], ['Redis', 'ours-redis', 'ours-redis-steps']] as const

const pairs = STORES.flatMap(([store, anchor, app]) => COUNTS.map((count): Case => ({
  id: `${app}-${count}`,
  part: 'steps',
  work: `first execution with ${count} steps, ${store} / the same without`,
  subject: OURS,
  app: `${app}-${count}`,
  anchor,
  path: '/payments',
  keys: 'fresh'
})))

const REQUESTS = 200
/** What a client sends; what its scripts call is counted as well, under other names. */
const SENT = /^cmdstat_eval\w*:calls=(\d+)/gm

/** Commands to Redis, each a round trip, of a first execution. */
async function commandsOf (app: AppName): Promise<number> {
  const redis = await startOwnRedis()
  const server = await startServer(app, redis.port)
  try {
    // Loads the scripts.
    await post(server.port, '/payments', freshKey())
    await redis.client.config('RESETSTAT')
    for (let i = 0; i < REQUESTS; i++) await post(server.port, '/payments', freshKey())
    const stats = await redis.client.info('commandstats')
    const calls = Array.from(stats.matchAll(SENT), ([, calls]) => Number(calls))
    return calls.reduce((sum, each) => sum + each, 0) / REQUESTS
  } finally {
    await server.stop()
    await redis.stop()
  }
}

export const stepsPart: Part<{ pairs: PairResults, commands: Record<string, number> }> = {
  name: 'steps',
  async run () {
    const apps = COUNTS.map(count => [`with ${count} steps`, `ours-redis-steps-${count}`] as const)
    const commands: Record<string, number> = {}
    for (const [what, app] of [['without', 'ours-redis'] as const, ...apps]) commands[what] = await commandsOf(app)
    const results = await runPairs(pairs)
    const section = pairTable(pairs, results)
    const list = Object.entries(commands).map(([what, sent]) => `${sent.toFixed(2)} ${what}`)
    return {
      ...section,
      title: 'Steps, in first executions',
      notes: [...section.notes ?? [], `Commands to Redis per first execution, each a round trip: ${list.join(', ')}.`],
      data: { pairs: results, commands }
    }
  }
}
