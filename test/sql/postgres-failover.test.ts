import t, { type Test } from 'tap'
import pg from 'pg'
import { PostgresStore } from '../../lib/sql.ts'
import { startPostgres, type PostgresServer } from '../fixtures/postgres.ts'
import { startProxy, type Proxy } from '../fixtures/proxy.ts'
import { storeKey } from '../../lib/protocol/fingerprint.ts'
import { newDatabase, postgresServer, run, stopPostgres } from './fixtures/app.ts'
import { faultApp, seen, settled, type FaultApp } from './fixtures/faults.ts'

t.teardown(stopPostgres)

const UNAVAILABLE = '503 idempotency_store_unavailable'

interface Pair { primary: PostgresServer, standby: PostgresServer, link: Proxy, way: Proxy, app: FaultApp }

/** A primary and a standby whose link can be cut, and an app that finds whichever is the primary. */
async function pair (t: Test, settings: string[] = []): Promise<Pair> {
  const primary = await startPostgres({ settings })
  t.teardown(primary.remove)
  const link = await startProxy(primary.port)
  t.teardown(link.stop)
  const standby = await startPostgres({ standbyOf: { url: primary.url, port: link.port }, settings })
  t.teardown(standby.remove)
  const way = await startProxy(primary.port)
  t.teardown(way.stop)
  await run(primary.url, PostgresStore.schema)
  const app = await faultApp(
    t, primary.url.replace(`:${primary.port}/`, `:${way.port}/`), { storeTimeout: 1_500, lease: 60_000 }
  )
  return { primary, standby, link, way, app }
}

async function caughtUp ({ primary, standby }: Pair): Promise<void> {
  const [{ lsn }] = await run(primary.url, 'select pg_current_wal_lsn()::text as lsn') as [{ lsn: string }]
  for (;;) {
    const [{ there }] = await run(
      standby.url, 'select pg_last_wal_replay_lsn() >= $1::pg_lsn as there', [lsn]
    ) as [{ there: boolean }]
    if (there) return
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}

async function failOver ({ primary, standby, way }: Pair): Promise<void> {
  await primary.stop('immediate')
  await run(standby.url, 'select pg_promote()')
  way.target = standby.port
  way.cut()
}

t.test('G10: on a standby nothing runs and nothing is replayed; promoted, it replays what it had', async t => {
  const servers = await pair(t)
  const { standby, way, app, primary } = servers
  t.equal(seen(await app.post('k', '{}')), '201 run 1')
  await caughtUp(servers)
  way.target = standby.port
  way.cut()
  t.equal(seen(await app.post('k', '{}')), UNAVAILABLE)
  t.equal(seen(await app.post('new', '{}')), UNAVAILABLE)
  await primary.stop('immediate')
  await run(standby.url, 'select pg_promote()')
  t.equal(await settled(app, 'k'), '201 run 1 replayed')
  t.equal(app.runs(), 1)
})

t.test('a failover to an asynchronous standby can lose the last writes: the key runs again', async t => {
  const servers = await pair(t)
  const { link, app } = servers
  t.equal(seen(await app.post('before', '{}')), '201 run 1')
  await caughtUp(servers)
  link.lose = 'replies'
  t.equal(seen(await app.post('k', '{}')), '201 run 2')
  await failOver(servers)
  t.equal(await settled(app, 'before'), '201 run 1 replayed')
  t.equal(await settled(app, 'k'), '201 run 3', 'what had not been replicated')
})

t.test('G1, G3, G10: with a synchronous standby nothing runs that a failover could lose', async t => {
  const servers = await pair(t, ['synchronous_standby_names=*'])
  const { link, app } = servers
  t.equal(await settled(app, 'kept'), '201 run 1')
  link.lose = 'replies'
  t.equal(seen(await app.post('k', '{}')), UNAVAILABLE, 'its claim waits for the standby')
  t.equal(app.runs(), 1)
  await failOver(servers)
  t.equal(await settled(app, 'kept'), '201 run 1 replayed')
  t.equal(app.runs(), 1)
})

/** As the first release writes it: a row of the golden form must be read for as long as rows live. */
const GOLDEN = '3133323031303030303333323a6670333a782d61343d36513d3d31303a7365742d636f6f6b6965333a613d31' +
  '31303a7365742d636f6f6b6965333a623d32c3bc7b7d'
const OUTCOME = {
  fingerprint: 'fp',
  status: 201,
  replayable: true,
  headers: [['x-a', 'é'], ['set-cookie', ['a=1', 'b=2']]],
  body: 'ü{}',
  text: true
}

t.test('two builds side by side: rows of the recorded form are read, and those of another are a 503', async t => {
  const url = await newDatabase(await postgresServer())
  await run(url, PostgresStore.schema)
  const app = await faultApp(t, url, { keyPrefix: 'p:' })
  const put = async (key: string, state: string, outcome: string | null): Promise<void> => {
    await run(url, `insert into idempotency_keys
      (key, state, token, attempt, taken_over, since, lease_ends_at, expires_at, fingerprint, steps, outcome)
      values ($1, $2, 't', 2, false, now(), now() + interval '1 hour', now() + interval '1 hour', 'fp', $3,
        decode($4, 'hex'))`,
    [key, state, state === 'c' ? null : '{"c3RlcA==": ["MQ=="], "YmVndW4=": []}', outcome])
  }
  const request = { token: 'u', lease: 1_000, ttl: 1_000, takeover: true }
  await put('completed', 'c', GOLDEN)
  const completed = await app.store.claim('completed', request)
  t.same(completed, { outcome: 'completed', attempt: 2, result: OUTCOME })
  await put('held', 'h', null)
  t.same(await app.store.claim('held', request), { outcome: 'held', attempt: 2, fingerprint: 'fp' })
  const steps = (await app.store.recorded('held')).sort((a, b) => a.name < b.name ? -1 : 1)
  t.same(steps, [{ name: 'begun', result: undefined }, { name: 'step', result: '1' }])
  await put('freed', 'f', null)
  t.same(await app.store.claim('freed', request), {
    outcome: 'acquired', attempt: 3, takeover: false, fingerprint: 'fp'
  })

  const other = {
    state: ['z', null],
    version: ['c', `39${GOLDEN.slice(2)}`],
    'cut off': ['c', GOLDEN.slice(0, 20)],
    'no outcome': ['c', null]
  } as const
  for (const [what, [state, outcome]] of Object.entries(other)) {
    await put(storeKey('p:', undefined, what), state, outcome)
    t.equal(seen(await app.post(what, '{}')), UNAVAILABLE, what)
  }
  t.equal(app.runs(), 0, 'nothing runs')
})

for (const level of ['repeatable read', 'serializable']) {
  t.test(`G1, G16: a database whose transactions are ${level} unless told otherwise`, async t => {
    const url = await newDatabase(await postgresServer())
    await run(url, PostgresStore.schema)
    const pool = new pg.Pool(
      { connectionString: url, max: 20, options: `-c default_transaction_isolation=${level.replace(' ', '\\ ')}` }
    )
    t.teardown(async () => { await pool.end() })
    const shown = await pool.query<Record<string, string>>('show transaction_isolation')
    t.equal(shown.rows[0]?.['transaction_isolation'], level)
    const store = new PostgresStore(pool)
    const request = { lease: 10_000, ttl: 60_000, takeover: true }
    for (let round = 0; round < 20; round++) {
      const claims = await Promise.all(
        Array.from({ length: 20 }, async (_, i) => await store.claim(`k${round}`, { ...request, token: `${i}` }))
      )
      t.equal(claims.filter(({ outcome }) => outcome === 'acquired').length, 1)
      const token = String(claims.findIndex(({ outcome }) => outcome === 'acquired'))
      const answers = await Promise.all(
        Array.from({ length: 10 }, async (_, i) => await store.record(`k${round}`, token, 'f', 'step', `${i}`))
      )
      t.equal(answers.filter(({ outcome }) => outcome === 'recorded').length, 1)
    }
  })
}
