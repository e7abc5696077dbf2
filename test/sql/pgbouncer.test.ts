import pg from 'pg'
import postgres from 'postgres'
import t from 'tap'
import { MemoryStore, type IdempotencyStore } from '../../lib/index.ts'
import { PostgresStore, transactions, viaPostgres } from '../../lib/sql.ts'
import { storeTests } from '../../lib/store-tests.ts'
import { ADAPTERS, LEVELS } from './fixtures/adapters.ts'
import { newDatabase, poolOf, postgresServer, run, startApp, stopPostgres } from './fixtures/app.ts'
import { pgbouncerProgram, startPgBouncer } from './fixtures/pgbouncer.ts'

/** Behind a pooler in transaction mode each transaction may have another session. */

const program = pgbouncerProgram()
t.teardown(stopPostgres)

if (program === undefined) {
  t.test('through PgBouncer', { skip: 'it is not installed' }, () => {})
} else {
  const server = await postgresServer()
  const bouncer = await startPgBouncer(program, server.port, 3)
  t.teardown(async () => { await bouncer.stop() })
  const through = (url: string): string => url.replace(`:${server.port}/`, `:${bouncer.port}/`)

  t.test('the store contract: PostgresStore through PgBouncer', async t => {
    const pool = poolOf(t, through(await newDatabase(server)))
    storeTests({
      async createStore () {
        await pool.query(`drop table if exists idempotency_keys; ${PostgresStore.schema}`)
        return new PostgresStore(pool)
      },
      test: async (name, check) => await t.test(name, check)
    })
  })

  for (const adapter of ADAPTERS) {
    t.test(`G18: ${adapter.name} (${adapter.version}) through PgBouncer`, async t => {
      const url = await newDatabase(server)
      const { once, end, transaction } = await adapter.make(through(url), { idleTimeout: '10s' }, true)
      t.teardown(end)
      for (const level of LEVELS) {
        const apps = await Promise.all(Array.from({ length: 4 }, async () => {
          return await startApp(t, { store: new MemoryStore() }, app => {
            app.post('/', async request => await once(request, 'x', async run => {
              const key = String(request.idempotency.key)
              const [row] = await run(`insert into effects (key, name) values ('${key}', 'x') returning id`)
              return { id: row?.['id'] }
            }, level))
          })
        }))
        for (let round = 0; round < 5; round++) {
          const answers = await Promise.all(apps.map(async ({ post }) => await post(`${level} ${round}`)))
          t.same([...new Set(answers.map(({ status }) => status))], [200])
          t.equal(new Set(answers.map(({ text }) => text)).size, 1)
        }
      }
      const counts = 'select count(*)::int as n, count(distinct key)::int as keys from effects'
      t.same(await run(url, counts), [{ n: 15, keys: 15 }])
      t.equal(await transaction.sweep(), 0)
    })
  }

  for (const name of ['viaPostgres', 'viaDrizzle over postgres']) {
    t.test(`G18: ${name} through PgBouncer, although it prepares its COMMIT: an answer has its row`, async t => {
      const url = await newDatabase(server)
      const adapter = ADAPTERS.find(each => each.name === name) as NonNullable<typeof ADAPTERS[0]>
      const { once, end } = await adapter.make(through(url), { idleTimeout: '10s' })
      t.teardown(end)
      const { post } = await startApp(t, { store: new MemoryStore() }, app => {
        app.post('/', async request => await once(request, 'x', async run => {
          return (await run(`insert into effects (key) values ('${String(request.idempotency.key)}') returning id`))[0]
        }))
      })
      const send = async (key: string | undefined): Promise<unknown> => {
        const { status, json } = await post(key)
        return status === 200 ? json()['id'] : status
      }
      // Without a key it is a plain transaction.
      const ids = await Promise.all(
        Array.from({ length: 40 }, async (_, i) => await send(i % 4 === 0 ? undefined : `k${i}`))
      )
      const rows = await run(url, 'select id from effects order by id')
      t.same(rows.map(({ id }) => id), ids.toSorted((a, b) => Number(a) - Number(b)))
    })
  }

  t.test('G18: viaPostgres through PgBouncer: work that prepares its statements fails, or is written', async t => {
    const url = await newDatabase(server)
    const client = postgres(through(url), { max: 5, onnotice: () => {} })
    t.teardown(async () => { await client.end({ timeout: 1 }) })
    const transaction = transactions(viaPostgres(client))
    const { post } = await startApp(t, { store: new MemoryStore() }, app => {
      app.post('/', async request => await transaction(request, 'x', async tx => {
        const [row] = await tx`insert into effects (key) values (${String(request.idempotency.key)}) returning id`
        return { id: String(row?.['id']) }
      }))
    })
    const answers = await Promise.all(Array.from({ length: 40 }, async (_, i) => await post(`k${i}`)))
    t.same([...new Set(answers.map(({ status }) => status))].filter(status => status !== 200 && status !== 500), [])
    const ids = answers.filter(({ status }) => status === 200).map(({ json }) => json()['id'])
    const rows = await run(url, 'select id from effects')
    t.same(rows.map(({ id }) => Number(id)).sort((a, b) => a - b), ids.map(Number).sort((a, b) => a - b))
    t.comment(`${ids.length} of ${answers.length} were written`)
  })

  t.test('G18: what a transaction sets stays in it: the next one on the same session has nothing of it', async t => {
    const url = await newDatabase(server)
    const adapter = ADAPTERS[0] as NonNullable<typeof ADAPTERS[0]>
    const { once, end } = await adapter.make(through(url), { idleTimeout: '10s' })
    t.teardown(end)
    const store: IdempotencyStore = new MemoryStore()
    const idle = "select current_setting('idle_in_transaction_session_timeout') as idle"
    const { post } = await startApp(t, { store }, app => {
      app.post('/', async request => await once(request, 'x', async run => (await run(idle))[0]))
    })
    t.same((await post('k')).json(), { idle: '10s' })
    const pool: pg.Pool = poolOf(t, through(url))
    const settings = await Promise.all(Array.from({ length: 6 }, async () => (await pool.query(idle)).rows[0]))
    t.same(settings, Array.from({ length: 6 }, () => ({ idle: '0' })))
    t.same(await run(url, "select 1 from pg_locks where locktype = 'advisory'"), [])
  })
}
