/** One key, many clients at the same moment. */
import type { Part, Section } from '../part.ts'
import { startOwnRedis } from '../redis.ts'
import { start } from './child.ts'
import type { Answers } from './load.ts'
import { ms, verify } from './figures.ts'
import type { Usage } from './server.ts'

const CLIENTS = 500
const WAIT = 10_000

interface Found { store: string, inFlight: string, answers: Answers, usage: Usage }

async function hit (store: string, wait: number | undefined, redis: number | undefined): Promise<Found> {
  const server = await start('server.js')
  const load = await start('load.js')
  try {
    const port = await server.ask<number>(
      'open', { barrier: CLIENTS, ...(wait === undefined ? {} : { wait }), ...(redis === undefined ? {} : { redis }) }
    )
    await server.ask('watch')
    const from = wait ?? 0
    const answers = await load.ask<Answers>(
      'run', { ports: [port], connections: CLIENTS, from, keys: 1, total: CLIENTS }
    )
    const usage = await server.ask<Usage>('usage')
    const duplicates = answers.kinds[wait === undefined ? '409 idempotency_in_progress' : 'replayed']
    verify(
      usage.executions === 1 && answers.kinds['executed'] === 1 && duplicates === CLIENTS - 1,
      'One must be executed, all others be told so',
      { ...answers.kinds, executions: usage.executions }
    )
    return { store, inFlight: wait === undefined ? 'reject' : 'wait', answers, usage }
  } finally {
    await server.stop()
    await load.stop()
  }
}

async function run (): Promise<Section> {
  const redis = await startOwnRedis('anywhere')
  try {
    const found: Found[] = []
    for (const [store, port] of [['memory', undefined], ['Redis', redis.port]] as const) {
      for (const wait of [undefined, WAIT]) found.push(await hit(store, wait, port))
    }
    return {
      title: `One key hit by ${CLIENTS} clients at once; the handler ends 100 ms after the last has come`,
      table: {
        columns: ['store', 'in flight', 'executions', 'answers', 'until all are answered', 'longest pause', 'of it GC'],
        rows: found.map(({ store, inFlight, answers, usage: { executions, loop } }) => [
          store, inFlight, String(executions),
          Object.entries(answers.kinds).map(([kind, times]) => `${times} ${kind}`).join(', '),
          ms(answers.seconds * 1_000), ms(loop.longest.wall), ms(loop.longest.gc)
        ])
      },
      data: found
    }
  } finally {
    await redis.stop()
  }
}

export const hot: Part = { name: 'hot', run }
