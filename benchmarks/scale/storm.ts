/** Every client retries, all at once: when a service is weakest. */
import type { Part, Section } from '../part.ts'
import { startOwnRedis } from '../redis.ts'
import { start } from './child.ts'
import type { Answers } from './load.ts'
import { count, ms, verify } from './figures.ts'
import type { Usage } from './server.ts'

const KEYS = 10_000
const TIMES = 10
const SECONDS = 2
const TOTAL = KEYS * TIMES
/** One request at a time on each: what is due and not yet sent waits in the client, and counts. */
const CONNECTIONS = 100

interface Found { name: string, answers: Answers, usage: Usage }

async function rage (name: string, redis: number | undefined, path?: string): Promise<Found> {
  const server = await start('server.js')
  const load = await start('load.js')
  server.keep('with servers')
  load.keep('aside')
  try {
    const port = await server.ask<number>('open', { work: 5, ...(redis === undefined ? {} : { redis }) })
    await load.ask('run', {
      ports: [port],
      connections: 20,
      from: 1_000_000,
      keys: 1_000,
      total: 3_000,
      ...(path === undefined ? {} : { path, from: 0, keys: 3_000 })
    })
    await server.ask('watch')
    const answers = await load.ask<Answers>('run', {
      ports: [port],
      connections: CONNECTIONS,
      from: 0,
      keys: path === undefined ? KEYS : TOTAL,
      total: TOTAL,
      rate: TOTAL / SECONDS,
      shuffled: true,
      ...(path === undefined ? {} : { path })
    })
    const usage = await server.ask<Usage>('usage')
    const { executed = 0, replayed = 0, '409 idempotency_in_progress': refused = 0 } = answers.kinds
    const executions = path === undefined ? KEYS : TOTAL
    verify(
      usage.executions === executions && executed === executions && executed + replayed + refused === TOTAL,
      'Each key must be executed once, and all else be told so',
      { ...answers.kinds, executions: usage.executions }
    )
    return { name, answers, usage }
  } finally {
    await server.stop()
    await load.stop()
  }
}

async function run (): Promise<Section> {
  const redis = await startOwnRedis()
  try {
    const found = [
      await rage('memory', undefined),
      await rage('Redis', redis.port),
      await rage('no plugin: each request runs the handler', undefined, '/plain')
    ]
    return {
      title: `A retry storm: ${count(KEYS)} keys, each sent ${TIMES} times within ${SECONDS} s ` +
        `(${count(TOTAL / SECONDS)} requests/s offered), the handler takes 5 ms`,
      table: {
        columns: [
          'store', 'executions', 'replays', '409 in progress', 'took', 'requests/s',
          'p50 from when due', 'p99', 'longest pause', 'of it GC', 'CPU of the server'
        ],
        rows: found.map(({ name, answers: { kinds, seconds, p50, p99 }, usage: { executions, cpu, loop } }) => [
          name, count(executions), count(kinds['replayed'] ?? 0),
          count(kinds['409 idempotency_in_progress'] ?? 0), `${seconds.toFixed(1)} s`,
          count(TOTAL / seconds), ms(p50), ms(p99), ms(loop.longest.wall),
          ms(loop.longest.gc), `${(cpu / TOTAL).toFixed(0)} µs/request`
        ])
      },
      data: found
    }
  } finally {
    await redis.stop()
  }
}

export const storm: Part = { name: 'storm', run }
