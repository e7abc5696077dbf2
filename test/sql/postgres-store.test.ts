import { randomUUID } from 'node:crypto'
import t from 'tap'
import pg from 'pg'
import { PostgresStore } from '../../lib/sql.ts'
import { storeAppTests, storeTests } from '../../lib/store-tests.ts'
import { newDatabase, poolOf, postgresServer, run, stopPostgres } from './fixtures/app.ts'

t.teardown(stopPostgres)

async function emptyStore (pool: pg.Pool, options: { table?: string, prepare?: boolean } = {}): Promise<PostgresStore> {
  const table = options.table ?? 'idempotency_keys'
  await pool.query(`drop table if exists ${table}; ${PostgresStore.schemaFor(table)}`)
  return new PostgresStore(pool, options)
}

for (const [what, options] of [
  ['as it comes', {}], ['prepared, in a table of another name', { table: 'public.keys', prepare: true }]
] as const) {
  t.test(`the store contract: PostgresStore, ${what}`, async t => {
    const pool = poolOf(t, await newDatabase(await postgresServer()))
    const suite = {
      createStore: async () => await emptyStore(pool, options),
      test: async (name: string, check: () => Promise<void>) => await t.test(name, check)
    }
    storeTests(suite)
    storeAppTests(suite)
  })
}

/** What a table has cost so far: bytes of the write-ahead log of the whole server, which is idle but for the test. */
async function walOf (url: string, work: () => Promise<unknown>): Promise<number> {
  const at = async (): Promise<string> =>
    String((await run(url, 'select pg_current_wal_insert_lsn()::text as lsn'))[0]?.['lsn'])
  const before = await at()
  await work()
  return Number((await run(url, 'select pg_wal_lsn_diff($1, $2)::text as bytes', [await at(), before]))[0]?.['bytes'])
}

const outcome = { fingerprint: 'f', status: 201, replayable: true, headers: [], body: 'kept', text: true } as const
const request = { token: 'a'.repeat(36), lease: 10_000, ttl: 60_000, takeover: true }

t.test('G15: a replay writes nothing', async t => {
  const url = await newDatabase(await postgresServer())
  const store = await emptyStore(poolOf(t, url))
  await store.claim('k', request)
  await store.complete('k', request.token, { ...outcome, headers: [] }, 60_000)
  await run(url, 'vacuum idempotency_keys')
  await run(url, 'checkpoint')
  const replay = async (): Promise<void> => {
    for (let i = 0; i < 50; i++) {
      t.equal((await store.claim('k', { ...request, token: 'b'.repeat(36) })).outcome, 'completed')
    }
  }
  t.equal(await walOf(url, replay), 0)
})

t.test('G1, G5: of many claims at once one is granted: fresh, of a dead holder, and after a release', async t => {
  const pool = poolOf(t, await newDatabase(await postgresServer()), 20)
  const store = await emptyStore(pool)
  for (let round = 0; round < 20; round++) {
    for (const [before, attempt, takeover] of [['fresh', 1, false], ['dead', 2, true], ['freed', 2, false]] as const) {
      const key = `${before} ${round}`
      if (before !== 'fresh') await store.claim(key, request)
      if (before === 'dead') {
        await pool.query("update idempotency_keys set lease_ends_at = now() - interval '1 s' where key = $1", [key])
      }
      if (before === 'freed') await store.release(key, request.token, 60_000, true)
      const claims = await Promise.all(Array.from({ length: 10 }, async (_, i) =>
        await store.claim(key, { ...request, token: String(i).padStart(36, '.') })))
      t.same(claims.filter(({ outcome }) => outcome === 'acquired'), [{ outcome: 'acquired', attempt, takeover }], key)
      t.equal(claims.filter(({ outcome }) => outcome === 'held').length, 9)
    }
  }
})

t.test('G16: of many who record one step at once the first wins, and all are told its result', async t => {
  const store = await emptyStore(poolOf(t, await newDatabase(await postgresServer()), 20))
  for (let round = 0; round < 20; round++) {
    const key = `k${round}`
    await store.claim(key, request)
    const answers = await Promise.all(
      Array.from({ length: 10 }, async (_, i) => await store.record(key, request.token, 'f', 'step', `${i}`))
    )
    const [{ result } = { result: undefined }] = await store.recorded(key)
    t.equal(answers.filter(({ outcome }) => outcome === 'recorded').length, 1)
    t.equal(answers.filter(answer => answer.outcome === 'known' && answer.result === result).length, 9)
  }
})

t.test('G14: a kept response takes the place of what was recorded: its row has no steps', async t => {
  const pool = poolOf(t, await newDatabase(await postgresServer()))
  const store = await emptyStore(pool)
  const steps = async (): Promise<unknown> => (await pool.query('select steps from idempotency_keys')).rows
  await store.claim('k', request)
  await store.record('k', request.token, 'f', 'charge', '1')
  t.match(await steps(), [{ steps: {} }])
  await store.complete('k', request.token, { ...outcome, headers: [] }, 60_000)
  t.same(await steps(), [{ steps: null }])
})

t.test('G14: expired rows are deleted a few at a time, as keys end; locked rows are left', async t => {
  const url = await newDatabase(await postgresServer())
  const pool = poolOf(t, url)
  const store = await emptyStore(pool)
  await pool.query("insert into idempotency_keys select 'old' || n, 'f', '', 1, false, now(), now(), " +
    "now() - interval '1 s', '' from generate_series(1, 1000) n")
  await store.claim('new', request)
  const client = await pool.connect()
  await client.query("begin; select from idempotency_keys where key = 'old1' for update")
  t.equal(await store.sweep(600), 598)
  t.equal(await store.sweep(600), 401)
  await client.query('rollback')
  client.release()
  t.equal(await store.sweep(), 1)
  t.same(await run(url, 'select key from idempotency_keys'), [{ key: 'new' }])
  await pool.query("insert into idempotency_keys select 'old' || n, 'f', '', 1, false, now(), now(), " +
    "now() - interval '1 s', '' from generate_series(1, 300) n")
  for (let i = 0; i < 200; i++) {
    await store.claim(`k${i}`, request)
    await store.release(`k${i}`, request.token, 60_000, true)
  }
  const left = async (): Promise<unknown> =>
    (await run(url, "select count(*)::int as left from idempotency_keys where key like 'old%'"))[0]?.['left']
  while (await left() !== 0) await store.sweep()
  t.pass('all are gone')
})

t.test('a row that this release cannot read is an error that says so, and options are checked', async t => {
  const pool = poolOf(t, await newDatabase(await postgresServer()))
  const store = await emptyStore(pool)
  await store.claim('k', request)
  await store.record('k', request.token, 'f', 'step', '1')
  await pool.query("update idempotency_keys set steps = '{\"c3RlcA==\": 1}'")
  await t.rejects(
    store.recorded('k'), { name: 'UnreadableRecordError', message: /steps recorded under the key are damaged/ }
  )
  await pool.query("update idempotency_keys set state = 'z'")
  const again = { ...request, token: 'b' }
  for (const ask of [() => store.read('k'), () => store.claim('k', request), () => store.claim('k', again)]) {
    await t.rejects<unknown>(ask, { name: 'UnreadableRecordError', message: /unknown state "z"/ })
  }
  await pool.query("update idempotency_keys set state = 'c', outcome = 'x'")
  await t.rejects(store.claim('k', request), { name: 'UnreadableRecordError', message: /unknown record version "x"/ })
  await pool.query('update idempotency_keys set outcome = null')
  await t.rejects(store.claim('k', request), { name: 'UnreadableRecordError', message: /unknown record version none/ })
  t.throws(() => new PostgresStore({} as never), /no method "query"/)
  t.throws(() => new PostgresStore(pool, { prepare: 1 } as never), /"prepare" must be true or false/)
  t.throws(() => new PostgresStore(pool, { table: 'a; drop' }), /"table" must be a name/)
})

t.test('G1: a session in somebody\'s way is asked again ten times, then the error is the store\'s', async t => {
  const pool = poolOf(t, await newDatabase(await postgresServer()))
  await emptyStore(pool)
  let [faults, asked] = [0, 0]
  const fault = { happens: (): { rows: unknown[] } => ({ rows: [] }) }
  const store = new PostgresStore({
    async query (query) {
      asked++
      return faults-- > 0 ? fault.happens() : await pool.query(query)
    }
  })
  const claim = async (times: number): Promise<string> => {
    faults = times
    asked = 0
    return await store.claim(randomUUID(), request).then(
      ({ outcome }) => `${outcome} ${asked}`, (error: Error) => `${error.message} ${asked}`
    )
  }
  for (const code of ['40001', '40P01']) {
    fault.happens = () => { throw Object.assign(new Error('in the way'), { code }) }
    t.same([await claim(9), await claim(10)], ['acquired 10', 'in the way 10'], code)
  }
  fault.happens = () => { throw Object.assign(new Error('no such table'), { code: '42P01' }) }
  t.equal(await claim(1), 'no such table 1', 'any other error is told at once')
  // What comes between the reading and the writing of a claim leaves no row.
  fault.happens = () => ({ rows: [] })
  t.same([await claim(9), await claim(10)], ['acquired 10', 'PostgresStore: others were quicker 10 times 10'])
})
