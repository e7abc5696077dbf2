/** Latency at a fixed rate, far below what the servers can do: the same rate for all rows. */
import type { AppName } from './apps/index.ts'
import { OURS } from './cases.ts'
import { fixedRate } from './fixed-rate.ts'
import { SAME_KEY } from './keys.ts'
import type { Answers, Target } from './load.ts'
import type { Part } from './part.ts'
import { emptyRedis } from './redis.ts'
import { untilAccepted } from './rejected.ts'
import { startServer } from './servers.ts'
import { ROUNDS, SECONDS } from './settings.ts'
import { spread } from './spread.ts'
import { post } from './verify.ts'

/** Latency at a rate that leaves the server idle most of the time is steady. */
const RATE_ROUNDS = Math.min(3, ROUNDS)
const RATE = Number(process.env['RATE'] ?? 2_000)

interface Row { work: string, subject: string, app: AppName, path: Target['path'], keys: Target['keys'] }
const rows: Row[] = [
  { work: 'bare route', subject: 'anchor', app: 'bare', path: '/payments', keys: 'none' },
  { work: 'no key sent', subject: OURS, app: 'ours', path: '/payments', keys: 'none' },
  { work: 'replay, in-process store', subject: OURS, app: 'ours', path: '/payments', keys: 'same' },
  {
    work: 'replay, in-process store',
    subject: '@node-idempotency/core',
    app: 'node-idempotency',
    path: '/payments',
    keys: 'same'
  },
  { work: 'first execution, in-process store', subject: OURS, app: 'ours', path: '/payments', keys: 'fresh' },
  {
    work: 'first execution, in-process store',
    subject: '@node-idempotency/core',
    app: 'node-idempotency',
    path: '/payments',
    keys: 'fresh'
  },
  { work: 'bare route with 16 KiB', subject: 'anchor', app: 'bare', path: '/large', keys: 'none' },
  { work: 'replay of 16 KiB, in-process store', subject: OURS, app: 'ours', path: '/large', keys: 'same' },
  { work: 'bare route with one getBuffer', subject: 'anchor', app: 'redis-get', path: '/payments', keys: 'same' },
  { work: 'replay, Redis', subject: OURS, app: 'ours-redis', path: '/payments', keys: 'same' },
  { work: 'bare route with two SETs', subject: 'anchor', app: 'redis-set-twice', path: '/payments', keys: 'fresh' },
  { work: 'first execution, Redis', subject: OURS, app: 'ours-redis', path: '/payments', keys: 'fresh' }
]

async function measure ({ app, path, keys }: Row): Promise<{ p50: number, p99: number }> {
  const server = await startServer(app, await emptyRedis())
  try {
    if (keys === 'same') await post(server.port, path, SAME_KEY)
    const target = { port: server.port, path, keys }
    const run = async (): Promise<Answers> => await untilAccepted(async () => await fixedRate(target, RATE, SECONDS))
    await run() // warm-up
    const samples: Answers[] = []
    for (let round = 0; round < RATE_ROUNDS; round++) samples.push(await run())
    return { p50: spread(samples.map(({ p50 }) => p50)).median, p99: spread(samples.map(({ p99 }) => p99)).median }
  } finally {
    await server.stop()
  }
}

export const ratePart: Part = {
  name: 'rate',
  async run () {
    const data = []
    for (const row of rows) {
      process.stderr.write(`${RATE} requests/s on ${row.app} … `)
      const latency = await measure(row)
      process.stderr.write(`p99 ${latency.p99.toFixed(2)} ms\n`)
      data.push({ work: row.work, subject: row.subject, ...latency })
    }
    return {
      title: `Latency at a fixed rate: ${RATE} requests per second, sent on schedule whether or not earlier ones ` +
        'have been answered',
      notes: [`Medians of ${RATE_ROUNDS} rounds of ${SECONDS} s, one server after the other.`],
      table: {
        columns: ['work', 'who', 'p50 in ms', 'p99 in ms'],
        rows: data.map(({ work, subject, p50, p99 }) => [work, subject, p50.toFixed(2), p99.toFixed(2)])
      },
      data: { rate: RATE, rows: data }
    }
  }
}
