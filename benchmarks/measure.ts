/** Measures pairs of servers: both alive, one under load at a time, in alternating order. */
import type { Case } from './cases.ts'
import { SAME_KEY } from './keys.ts'
import { fullLoad, type Answers, type Target } from './load.ts'
import { emptyRedis } from './redis.ts'
import { untilAccepted } from './rejected.ts'
import { startServer, type RunningServer } from './servers.ts'
import { PAIRS, ROUNDS, SECONDS } from './settings.ts'
import { spread, type Spread } from './spread.ts'
import { post, verify } from './verify.ts'

/** Medians of the rounds. */
export interface Side {
  rate: number
  /** Microseconds of CPU time per request. */
  cpu: number
  p50: number
  p99: number
  /** The share of the time that the server's process was on its core: near 1, it was what limited the rate. */
  busy: number
}

export interface Comparison {
  id: string
  /** Requests per second, case by anchor: one ratio per round. */
  ratio: Spread
  /** CPU time per request, anchor by case: above 1, the case costs less. */
  cpuRatio: Spread
  anchor: Side
  case: Side
}

export interface NotMeasured { id: string, reason: string }

/** Whether the app keeps responses by key, so that a second request with one key does not run the handler. */
const replays = ({ app }: Pick<Case, 'app'>): boolean =>
  !app.startsWith('bare') && !app.startsWith('redis-') && app !== 'ours-opted-out'

interface Sample extends Answers { cpu: number, busy: number }

/** One load on one server, with what it used; fails when the handler ran more or less often than it should. */
async function sample (server: RunningServer, target: Target, seconds: number, runsHandler: boolean): Promise<Sample> {
  const before = await server.usage()
  const answers = await fullLoad(target, seconds)
  const after = await server.usage()
  const runs = after.executions - before.executions
  if (runsHandler ? runs < answers.requests : runs > 0) {
    throw new Error(`${target.path}: the handler ran ${runs} times for ${answers.requests} requests`)
  }
  const used = after.cpu - before.cpu
  return { ...answers, cpu: used / answers.requests, busy: used / (after.wall - before.wall) }
}

const medians = (samples: Sample[]): Side => {
  const median = (name: keyof Sample): number => spread(samples.map(each => each[name])).median
  return { rate: median('rate'), cpu: median('cpu'), p50: median('p50'), p99: median('p99'), busy: median('busy') }
}

interface Measured { anchor: Sample[], case: Sample[] }

/** One anchor and one case, in processes that are started for it. */
async function measurePair ({ id, path, keys, ...apps }: Case): Promise<Measured | NotMeasured> {
  const redisPort = await emptyRedis()
  const sides = await Promise.all([apps.anchor, apps.app].map(async app => ({
    app,
    server: await startServer(app, redisPort),
    samples: [] as Sample[],
    runsHandler: !(keys === 'same' && replays({ app }))
  })))
  try {
    for (const { app, server } of sides) {
      const wrong = await verify(server, path, replays({ app }))
      if (wrong !== undefined) return { id, reason: wrong }
      // The response that the load's one key will get.
      if (keys === 'same') await post(server.port, path, SAME_KEY)
    }
    const run = async ({ server, runsHandler }: typeof sides[number], seconds: number): Promise<Sample> =>
      await untilAccepted(async () => await sample(server, { port: server.port, path, keys }, seconds, runsHandler))

    for (const side of [...sides, ...sides]) await run(side, SECONDS / 2) // warm-up
    for (let round = 0; round < ROUNDS; round++) {
      for (const side of round % 2 === 0 ? sides : [...sides].reverse()) side.samples.push(await run(side, SECONDS))
    }
  } finally {
    await Promise.all(sides.map(async ({ server }) => { await server.stop() }))
  }
  const [anchor = [], measured = []] = sides.map(({ samples }) => samples)
  return { anchor, case: measured }
}

/** The rounds of several pairs of processes: what V8 makes of the same code differs from one process to the next. */
export async function compare (pair: Case): Promise<Comparison | NotMeasured> {
  const all: Measured = { anchor: [], case: [] }
  for (let i = 0; i < PAIRS; i++) {
    const measured = await measurePair(pair)
    if ('reason' in measured) return measured
    all.anchor.push(...measured.anchor)
    all.case.push(...measured.case)
  }
  const each = (name: 'rate' | 'cpu'): number[] =>
    all.case.map((sample, round) => sample[name] / (all.anchor[round]?.[name] ?? NaN))
  return {
    id: pair.id,
    ratio: spread(each('rate')),
    cpuRatio: spread(each('cpu').map(value => 1 / value)),
    anchor: medians(all.anchor),
    case: medians(all.case)
  }
}
