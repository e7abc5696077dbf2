/**
 * `npm run bench -- postgres`: replays and first executions by where the keys are, against one anchor, and the WAL that
 * each writes in PostgreSQL.
 */
import pg from 'pg'
import { startPostgres } from '../test/fixtures/postgres.ts'
import type { AppName } from './apps/index.ts'
import { OURS, type Case } from './cases.ts'
import { freshKey, SAME_KEY } from './keys.ts'
import { pairTable, runPairs, type PairResults } from './pairs.ts'
import type { Part } from './part.ts'
import { keepAside } from './pin.ts'
import { emptyRedis } from './redis.ts'
import { startServer } from './servers.ts'
import { spread, type Spread } from './spread.ts'
import { post } from './verify.ts'

const STORES: Array<[string, AppName]> = [
  ['in-process store', 'ours'],
  ['Redis', 'ours-redis'],
  ['PostgreSQL', 'ours-postgres'],
  ['PostgreSQL, prepare: true', 'ours-postgres-prepared']
]
const WORK = [['replay', 'same'], ['first execution', 'fresh']] as const

const pairs = WORK.flatMap(([what, keys]) => STORES.map(([store, app]): Case => ({
  id: `postgres-${keys}-${app}`,
  part: 'postgres',
  work: `${what}, ${store} / bare route`,
  subject: OURS,
  app,
  anchor: 'bare',
  path: '/payments',
  keys
})))

const WAL_ROUNDS = 3
const WAL_REQUESTS = 200

/** Bytes of WAL per request. That of a replay is none, or it is an error. */
interface Wal { replay: Spread, first: Spread }

async function measureWal (url: string, app: AppName): Promise<Wal> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  const written = async (key: () => string): Promise<number> => {
    const { rows: [before] } = await client.query<{ lsn: string }>('select pg_current_wal_insert_lsn() as lsn')
    for (let i = 0; i < WAL_REQUESTS; i++) {
      const { status } = await post(server.port, '/payments', key())
      if (status !== 201) throw new Error(`${app}: answered with ${status}`)
    }
    const bytes = 'select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1)::float8 as bytes'
    const { rows: [after] } = await client.query<{ bytes: number }>(bytes, [before?.lsn])
    return Number(after?.bytes) / WAL_REQUESTS
  }
  const server = await startServer(app, await emptyRedis())
  try {
    await written(freshKey)
    await post(server.port, '/payments', SAME_KEY)
    const samples: Record<keyof Wal, number[]> = { replay: [], first: [] }
    for (let round = 0; round < WAL_ROUNDS; round++) {
      const replays = await written(() => SAME_KEY)
      if (replays > 0) throw new Error(`${app}: a replay wrote ${replays} bytes of WAL`)
      samples.replay.push(replays)
      samples.first.push(await written(freshKey))
    }
    return { replay: spread(samples.replay), first: spread(samples.first) }
  } finally {
    await server.stop()
    await client.end()
  }
}

async function serverVersion (url: string): Promise<string> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  const { rows: [row] } = await client.query<{ server_version: string }>('show server_version')
  await client.end()
  return String(row?.server_version)
}

const bytes = ({ median, min, max }: Spread): string => `${median.toFixed(0)} (${min.toFixed(0)} to ${max.toFixed(0)})`

export const postgresPart: Part<{ pairs: PairResults, wal: Record<string, Wal> }> = {
  name: 'postgres',
  async run () {
    // Committed is on the disk; nothing but the requests writes WAL.
    const settings = [
      'wal_level=minimal', 'max_wal_senders=0', 'autovacuum=off', 'shared_buffers=128MB', 'max_wal_size=4GB'
    ]
    const server = await startPostgres({ durable: true, settings })
    // What it forks for each connection is kept aside with it.
    keepAside(server.pid)
    process.env['BENCH_POSTGRES'] = server.url
    try {
      const wal: Record<string, Wal> = {}
      process.stderr.write('WAL … ')
      for (const [store, app] of STORES.slice(2)) wal[store] = await measureWal(server.url, app)
      process.stderr.write('measured\n')
      const version = await serverVersion(server.url)
      const results = await runPairs(pairs)
      const section = pairTable(pairs, results)
      return {
        ...section,
        title: 'Where the keys are',
        notes: [
          ...section.notes ?? [],
          `PostgreSQL ${version}, fsync and synchronous_commit on.`,
          ...Object.entries(wal).map(([store, { replay, first }]) =>
            `WAL, ${store}: ${bytes(replay)} bytes per replay, ${bytes(first)} per first execution.`)
        ],
        data: { pairs: results, wal }
      }
    } finally {
      await server.remove()
    }
  }
}
