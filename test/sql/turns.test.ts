import pg from 'pg'
import t, { type Test } from 'tap'
import { idOf } from '../../lib/protocol/fingerprint.ts'
import { MemoryStore, type IdempotencyStore } from '../../lib/index.ts'
import { transactions, viaPg, type Database, type PgTransactionOptions } from '../../lib/sql.ts'
import { ADAPTERS } from './fixtures/adapters.ts'
import {
  newDatabase, poolOf, postgresServer, run, startApp, stopPostgres, untilWaiting, type SqlApp
} from './fixtures/app.ts'

/** What a transaction meets on its way, each at the one moment at which it counts. */

t.teardown(stopPostgres)

type PgDatabase = Database<pg.PoolClient, PgTransactionOptions>

const KEY = idOf(undefined, 'k')
const FENCE = 'insert into idempotency_transactions (key, name, token, attempt, fingerprint, expires_at) ' +
  "values ($1, '', gen_random_uuid(), 2, '', now() + interval '1 h')"
const INSERT = "insert into effects (key) values ('k')"

/** `wrap` stands between the library and the database. */
async function world (
  t: Test, wrap: (via: PgDatabase, url: string) => PgDatabase, store: IdempotencyStore = new MemoryStore()
): Promise<{ url: string, post: SqlApp['post'], effects: () => Promise<number> }> {
  const url = await newDatabase(await postgresServer())
  const transaction = transactions(wrap(viaPg(poolOf(t, url)), url))
  const { post } = await startApp(t, { store }, app => {
    app.post('/', async request => await transaction(request, 'x', async tx => {
      await tx.query(INSERT)
      return 'done'
    }))
  })
  const effects = async (): Promise<number> => (await run(url, 'select from effects')).length
  return { url, post, effects }
}

t.test('G18: a fence that is set at this moment is waited for, and then contested', async t => {
  const { url, post, effects } = await world(t, via => via)
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  t.teardown(async () => { await client.end() })
  // As a fence does, before its row is there.
  await client.query('begin')
  await client.query("select pg_advisory_xact_lock(hashtextextended('idempotency_transactions ' || $1, 0))", [KEY])
  const answer = post('k')
  await untilWaiting(url, 'advisory')
  t.equal(await effects(), 0)
  await client.query('rollback')
  t.equal((await answer).text, 'done', 'the store agrees')
  t.equal(await effects(), 1)
})

t.test('G18: a fence that is gone before it could be read is in nobody\'s way', async t => {
  let reads = 0
  const { url, post, effects } = await world(t, (via, url) => ({
    ...via,
    async query (tx, text, values) {
      if (text.includes('encode(result') && ++reads === 1) await run(url, 'delete from idempotency_transactions')
      return await via.query(tx, text, values)
    }
  }))
  await run(url, FENCE, [KEY])
  t.equal((await post('k')).text, 'done')
  t.equal(reads, 1)
  t.equal(await effects(), 1)
})

t.test('G18: an execution that replaces a fence, and meets the next each time, gives up', async t => {
  let fences = 0
  let isFence = false
  const { url, post, effects } = await world(t, (via, url) => ({
    async query (tx, text, values) {
      isFence = text.includes('lock_timeout')
      return await via.query(tx, text, values)
    },
    async transaction (work, options) {
      const result = await via.transaction(work, options)
      if (isFence) {
        fences++
        await run(url, "update idempotency_transactions set token = gen_random_uuid() where name = ''")
      }
      return result
    }
  }))
  await run(url, FENCE, [KEY])
  const { status, json } = await post('k')
  t.same([status, json()['code']], [409, 'idempotency_in_progress'])
  t.equal(fences, 3)
  t.equal(await effects(), 0)
})

t.test('G18: a later execution that has lost its key does not replace another\'s fence', async t => {
  const store = new MemoryStore()
  const claimAgain: IdempotencyStore['claim'] = (key, request) => {
    const claim = store.claim(key, request)
    return claim.outcome === 'acquired' ? { ...claim, attempt: 2, takeover: true } : claim
  }
  const losing = new Proxy(store, {
    get (target, name) {
      if (name === 'claim') return claimAgain
      if (name === 'renew') return () => false
      const value = Reflect.get(target, name) as unknown
      return typeof value === 'function' ? (value.bind(target) as unknown) : value
    }
  })
  const { url, post, effects } = await world(t, via => via, losing)
  await run(url, FENCE, [KEY])
  const fence = async (): Promise<unknown> => await run(url, 'select token from idempotency_transactions')
  const before = await fence()
  const { status, json } = await post('k')
  t.same([status, json()['code']], [409, 'idempotency_in_progress'])
  t.same(await fence(), before)
  t.equal(await effects(), 0)
})

t.test('G18: a COMMIT without an answer, and a database that is away then: the result is there later', async t => {
  const url = await newDatabase(await postgresServer())
  const via = viaPg(poolOf(t, url))
  let begun = 0
  let isAway = false
  const transaction = transactions<pg.PoolClient, PgTransactionOptions>({
    query: via.query,
    async transaction (work, options) {
      begun++
      if (isAway) throw new Error('away')
      const result = await via.transaction(work, options)
      isAway = begun === 1
      if (isAway) throw new Error('the answer to COMMIT is lost')
      return result
    }
  })
  let runs = 0
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => {
      const once = async (): Promise<unknown> => await transaction(request, 'x', async tx => {
        await tx.query(INSERT)
        return ++runs
      }).catch((error: Error) => error.message)
      const first = await once()
      const tries = begun
      isAway = false
      return [first, tries, await once()]
    })
  })
  t.same((await post('k')).json(), ['the answer to COMMIT is lost', 10, 1])
  t.equal(runs, 1)
  t.equal((await run(url, 'select from effects')).length, 1)
})

t.test('G18: that work has ended its transaction is recorded although others are in the way', async t => {
  const url = await newDatabase(await postgresServer())
  const via = viaPg(poolOf(t, url))
  let conflicts = 0
  const transaction = transactions<pg.PoolClient, PgTransactionOptions>({
    query: via.query,
    async transaction (work, options) {
      if (conflicts-- > 0) throw Object.assign(new Error('in the way'), { code: '40001' })
      return await via.transaction(work, options)
    }
  })
  let runs = 0
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => await transaction(request, 'x', async tx => {
      runs++
      await tx.query('rollback')
      conflicts = 2
      await tx.query(INSERT)
    }))
  })
  for (let round = 0; round < 2; round++) {
    const { status, json } = await post('k')
    t.same([status, json()['code']], [409, 'idempotency_outcome_unknown'])
  }
  t.equal(runs, 1)
  t.ok(conflicts < 0)
  t.same(await run(url, "select name from idempotency_transactions where name <> '' and result is null"), [
    { name: 'x' }
  ])
})

t.test('a pool that gives no client: its error is told', async t => {
  const { urlOf } = await postgresServer()
  const pool = poolOf(t, urlOf('nowhere'))
  await t.rejects(transactions(viaPg(pool)).sweep(), { code: '3D000', message: /"nowhere" does not exist/ })
})

for (const adapter of ADAPTERS.filter(({ name }) => /ostgres$/.test(name) && !name.includes('@'))) {
  t.test(`${adapter.name}: work that hides a failed statement is an error, also without a key`, async t => {
    const url = await newDatabase(await postgresServer())
    const { once, end } = await adapter.make(url)
    t.teardown(end)
    const { post } = await startApp(t, { store: new MemoryStore() }, app => {
      app.post('/', async request => await once(request, 'x', async tx => {
        await tx(INSERT)
        // PostgreSQL answers COMMIT with ROLLBACK then.
        await tx('select from nowhere').catch(() => {})
        return 'not committed'
      }))
    })
    t.match((await post(undefined)).json(), {
      statusCode: 500, message: 'The transaction was not committed: ROLLBACK'
    })
    t.same(await run(url, 'select from effects'), [])
  })
}
