/**
 * `npm run bench -- against <git ref> [work …]`: two builds side by side. Both servers are on one core at once and are
 * loaded in turn, in short slices; what counts is the CPU time per request. `CROWD=6` puts six busy servers beside
 * them. `against-fed` leaves the kernel and the client out.
 */
import type { Section } from '../part.ts'
import { emptyRedis } from '../redis.ts'
import { estimate, medianOf, type Estimate } from './bootstrap.ts'
import { buildOf, WORK_TREE } from './build.ts'
import { crowd } from './crowd.ts'
import { FED, startFed } from './fed.ts'
import { LOADED, startLoaded } from './loaded.ts'
import { measurePair } from './pair.ts'
import { worksOf, type Work } from './works.ts'

const PAIRS = Number(process.env['PAIRS'] ?? 10)

const WAYS = { loaded: { method: LOADED, start: startLoaded }, fed: { method: FED, start: startFed } }
export type Way = keyof typeof WAYS

interface Result extends Estimate { id: string, name: string, before: number, after: number, ratios: number[] }

async function compare (way: Way, work: Work, builds: [string, string]): Promise<Result> {
  const { method, start } = WAYS[way]
  const pairs: Array<[number[], number[]]> = []
  for (let i = 0; i < PAIRS; i++) {
    const redisPort = await emptyRedis()
    const starts = builds.map(build => async () => await start(work, build, redisPort))
    // The second of two is started first in every other pair.
    const isTurned = i % 2 === 1
    const sides = await measurePair(isTurned ? starts.reverse() : starts, method, i)
    pairs.push((isTurned ? sides.reverse() : sides) as [number[], number[]])
  }
  // Slice by slice, since what one slice of a noisy machine costs may be twice what another does.
  const ratios = pairs.map(([before, after]) => medianOf(before.map((cost, i) => cost / (after[i] ?? NaN))))
  const cpu = (at: 0 | 1): number => medianOf(pairs.map(pair => medianOf(pair[at])))
  return { id: work.id, name: work.name, before: cpu(0), after: cpu(1), ratios, ...estimate(ratios) }
}

/** @throws {Error} where `ref` is no commit, or a name is none of the works. */
export async function against (way: Way, ref: string, names: string[]): Promise<Section<Result[]>> {
  const works = worksOf(names)
  const { entry, sha } = buildOf(ref)
  const busy = await crowd()
  const data: Result[] = []
  try {
    for (const work of works) {
      process.stderr.write(`${work.name} … `)
      const result = await compare(way, work, [entry, WORK_TREE])
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
      `Above 1, this build costs less. Medians of ${PAIRS} pairs of fresh processes, ${WAYS[way].method.effort}; the ` +
        'ratio of a pair is the median of its slices\' ratios. In brackets the interval in which 95 % of the medians ' +
        'of pairs drawn again lie.'
    ],
    table: {
      columns: ['work', 'ratio', 'quartiles of the pairs', `${sha}, µs`, 'this build, µs'],
      rows: data.map(({ name, median, low, high, ratios, before, after }) => [
        name,
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
