/** The parts that compare pairs. */
import { cases, isPeer, OURS, type Case } from './cases.ts'
import { compare, type Comparison, type NotMeasured } from './measure.ts'
import type { Part, Section } from './part.ts'
import type { Spread } from './spread.ts'

const BUSY = 0.9

export const ratioText = ({ median, min, max }: Spread): string =>
  `**${median.toFixed(2)}** (${min.toFixed(2)} to ${max.toFixed(2)})`
const two = (left: number, right: number, digits = 0): string => `${left.toFixed(digits)} → ${right.toFixed(digits)}`

function row ({ work, subject, target }: Case, result: Comparison | NotMeasured): string[] {
  if ('reason' in result) return [work, subject, `not measured: ${result.reason}`, '', '', '', '', '', '']
  const { ratio, cpuRatio, anchor, case: own } = result
  return [
    work, subject, ratioText(ratio),
    target === undefined ? '' : target === 'control' ? 'as the control' : `≥ ${target.toFixed(2)}`,
    ratioText(cpuRatio), two(anchor.rate, own.rate), two(anchor.cpu, own.cpu),
    `${two(anchor.p50, own.p50, 1)}, ${two(anchor.p99, own.p99, 1)}`,
    `${two(anchor.busy * 100, own.busy * 100)} %${Math.min(anchor.busy, own.busy) < BUSY ? ' (!)' : ''}`
  ]
}

export type PairResults = Array<Comparison | NotMeasured>

/**
 * Runs pairs. A peer that does not do what its row says is reported as such; for ours and the anchors it is an error.
 */
export async function runPairs (pairs: Case[]): Promise<PairResults> {
  const results: PairResults = []
  for (const pair of pairs) {
    process.stderr.write(`${pair.subject}: ${pair.work} … `)
    const result = await compare(pair)
    if ('reason' in result && !isPeer(pair)) throw new Error(`${pair.subject}, ${pair.work}: ${result.reason}`)
    process.stderr.write('reason' in result ? 'not measured\n' : `${result.ratio.median.toFixed(2)}\n`)
    results.push(result)
  }
  return results
}

export function pairTable (pairs: Case[], results: PairResults): Section<PairResults> {
  const limited = results.some(result => !('reason' in result) && Math.min(result.anchor.busy, result.case.busy) < BUSY)
  return {
    title: '',
    notes: limited
      ? [`(!) The server was busy for less than ${BUSY * 100} % of the time: something else limited the rate: ` +
        'the load, Redis, or another process on its core. The CPU time per request is the figure to read.']
      : [],
    table: {
      columns: [
        'work / anchor', 'who', 'req/s ratio', 'to reach', 'CPU ratio',
        'req/s', 'CPU µs per request', 'p50, p99 in ms', 'server busy'
      ],
      rows: pairs.flatMap((pair, i) => results[i] === undefined ? [] : [row(pair, results[i])])
    },
    data: results
  }
}

/** The others are made by files of their own. */
type PairPart = Exclude<Case['part'], 'postgres' | 'steps'>

const titles: Record<PairPart, string> = {
  none: 'Requests that the plugin leaves alone',
  replay: 'Replays',
  first: 'First executions',
  stream: 'The unflattering case: every request a first execution with a large streamed body',
  events: 'Events: nobody listens, and the metrics of examples/metrics.ts; in-process store',
  peers: 'Peers with their in-process stores, against the same anchors',
  'peers-redis': 'Peers with Redis, against the same anchors',
  'peers-express': 'Peers under Express, against bare Express'
}

const pairPart = (name: PairPart): Part<PairResults> => ({
  name,
  async run () {
    const pairs = cases.filter(({ part }) => part === name)
    return { ...pairTable(pairs, await runPairs(pairs)), title: titles[name] }
  }
})

export const pairParts = (Object.keys(titles) as PairPart[]).map(pairPart)

/** The pairs whose ratios `check` guards. */
export const guarded = cases.filter(({ subject }) => subject === OURS)
