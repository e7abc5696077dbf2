/**
 * `npm run bench -- against <git ref> [work …]`: two builds side by side. Both servers are on one core at once and are
 * loaded in turn, in short slices; what counts is the CPU time per request. `CROWD=6` puts six busy servers beside
 * them.
 */
import type { AppName } from '../apps/index.ts'
import type { Keys } from '../cases.ts'
import { SAME_KEY } from '../keys.ts'
import { fullLoad, type Target } from '../load.ts'
import type { Section } from '../part.ts'
import type { Path } from '../payloads.ts'
import { emptyRedis } from '../redis.ts'
import { untilAccepted } from '../rejected.ts'
import { startServer, type RunningServer } from '../servers.ts'
import { post, verify } from '../verify.ts'
import { estimate, medianOf, type Estimate } from './bootstrap.ts'
import { buildOf, WORK_TREE } from './build.ts'
import { crowd } from './crowd.ts'

const PAIRS = Number(process.env['PAIRS'] ?? 10)
const WARM_UP = Number(process.env['WARM_UP'] ?? 5)
/** Many and short: what else happens on the machine lasts longer, and falls on neighbouring slices of both sides. */
const SLICES = Number(process.env['SLICES'] ?? 50)
const SECONDS = Number(process.env['SECONDS'] ?? 0.1)

interface Work { id: string, name: string, app: AppName, path: Path, keys: Keys }

const works: Work[] = [
  { id: 'first', name: 'first execution, in process', app: 'build', path: '/payments', keys: 'fresh' },
  { id: 'first-16k', name: 'first execution of 16 KiB, in process', app: 'build', path: '/large', keys: 'fresh' },
  { id: 'first-redis', name: 'first execution, Redis', app: 'build-redis', path: '/payments', keys: 'fresh' },
  {
    id: 'first-redis-16k', name: 'first execution of 16 KiB, Redis', app: 'build-redis', path: '/large', keys: 'fresh'
  },
  { id: 'replay', name: 'replay, in process', app: 'build', path: '/payments', keys: 'same' },
  { id: 'replay-16k', name: 'replay of 16 KiB, in process', app: 'build', path: '/large', keys: 'same' },
  { id: 'replay-redis', name: 'replay, Redis', app: 'build-redis', path: '/payments', keys: 'same' },
  { id: 'replay-redis-16k', name: 'replay of 16 KiB, Redis', app: 'build-redis', path: '/large', keys: 'same' },
  { id: 'no-key', name: 'no key sent', app: 'build', path: '/payments', keys: 'none' },
  { id: 'opted-out', name: 'route opted out', app: 'build-opted-out', path: '/payments', keys: 'none' }
]

/** A server, and the CPU time per request of each slice in µs. */
interface Side { server: RunningServer, costs: number[] }

/** CPU time per request in µs under a slice of load; fails when the handler ran more or less often than it should. */
async function costOf (server: RunningServer, target: Target, seconds: number): Promise<number> {
  const before = await server.usage()
  const { requests } = await fullLoad(target, seconds)
  const after = await server.usage()
  const runs = after.executions - before.executions
  if (target.keys === 'same' ? runs > 0 : runs < requests) {
    throw new Error(`${target.path}: the handler ran ${runs} times for ${requests} requests`)
  }
  return (after.cpu - before.cpu) / requests
}

/** CPU time per request in µs of the two builds, slice by slice, from one pair of fresh processes. */
async function measurePair ({ app, path, keys }: Work, builds: string[], order: number): Promise<number[][]> {
  const redisPort = await emptyRedis()
  const sides: Side[] = []
  try {
    for (const build of builds) {
      sides.push({ server: await startServer(app, redisPort, { BENCH_BUILD: build }), costs: [] })
    }
    const run = async (server: RunningServer, seconds: number): Promise<number> =>
      await untilAccepted(async () => await costOf(server, { port: server.port, path, keys }, seconds))
    for (const { server } of sides) {
      const wrong = keys === 'none' ? undefined : await verify(server, path, true)
      if (wrong !== undefined) throw new Error(wrong)
      if (keys === 'same') await post(server.port, path, SAME_KEY)
      await run(server, WARM_UP)
    }
    for (let round = 0; round < SLICES; round++) {
      for (const { server, costs } of (round + order) % 2 === 0 ? sides : [...sides].reverse()) {
        costs.push(await run(server, SECONDS))
      }
    }
  } finally {
    await Promise.all(sides.map(async ({ server }) => { await server.stop() }))
  }
  return sides.map(({ costs }) => costs)
}

interface Result extends Estimate { id: string, before: number, after: number, ratios: number[] }

async function compare (work: Work, builds: string[]): Promise<Result> {
  const pairs: number[][][] = []
  for (let i = 0; i < PAIRS; i++) pairs.push(await measurePair(work, i % 2 === 0 ? builds : [...builds].reverse(), i))
  const sides = pairs.map((pair, i) => i % 2 === 0 ? pair : [...pair].reverse()) as Array<[number[], number[]]>
  // Slice by slice, since what one slice of a noisy machine costs may be twice what another does.
  const ratios = sides.map(([before, after]) => medianOf(before.map((cost, i) => cost / (after[i] ?? NaN))))
  const cpu = (at: 0 | 1): number => medianOf(sides.map(side => medianOf(side[at])))
  return { id: work.id, before: cpu(0), after: cpu(1), ratios, ...estimate(ratios) }
}

/** @throws {Error} where `ref` is no commit, or a name is none of the works. */
export async function against (ref: string, names: string[]): Promise<Section<Result[]>> {
  const unknown = names.find(name => works.every(({ id }) => id !== name))
  if (unknown !== undefined) {
    throw new Error(`There is no work "${unknown}". Works: ${works.map(({ id }) => id).join(', ')}`)
  }
  const { entry, sha } = buildOf(ref)
  const busy = await crowd()
  const chosen = works.filter(({ id }) => names.length === 0 || names.includes(id))
  const data: Result[] = []
  try {
    for (const work of chosen) {
      process.stderr.write(`${work.name} … `)
      const result = await compare(work, [entry, WORK_TREE])
      process.stderr.write(`${result.median.toFixed(3)} (${result.low.toFixed(3)} to ${result.high.toFixed(3)})\n`)
      data.push(result)
    }
  } finally {
    await busy.stop()
  }
  const beside = busy.servers === 0 ? '' : `, beside ${busy.servers} other busy servers on the core`
  return {
    title: `This build against ${sha}: CPU time per request${beside}`,
    notes: [
      `Above 1, this build costs less. Medians of ${PAIRS} pairs of fresh processes, warmed up for ${WARM_UP} s ` +
        `each and then loaded in turn for ${SLICES} slices of ${SECONDS} s; the ratio of a pair is the median of its ` +
        'slices\' ratios. In brackets the interval in which 95 % of the medians of pairs drawn again lie.'
    ],
    table: {
      columns: ['work', 'ratio', 'quartiles of the pairs', `${sha}, µs`, 'this build, µs'],
      rows: data.map(({ id, median, low, high, ratios, before, after }) => [
        String(works.find(work => work.id === id)?.name),
        `**${median.toFixed(3)}** (${low.toFixed(3)} to ${high.toFixed(3)})`,
        quartiles(ratios),
        before.toFixed(1),
        after.toFixed(1)
      ])
    },
    data
  }
}

function quartiles (values: number[]): string {
  const sorted = [...values].sort((a, b) => a - b)
  const at = (share: number): string => (sorted[Math.round(share * (sorted.length - 1))] ?? NaN).toFixed(3)
  return `${at(0.25)} to ${at(0.75)}`
}
