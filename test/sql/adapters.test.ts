import t, { type Test } from 'tap'
import { MemoryStore } from '../../lib/index.ts'
import { ADAPTERS, LEVELS, pglite, type Adapted, type Adapter } from './fixtures/adapters.ts'
import { EFFECTS, newDatabase, postgresServer, run, startApp, stopPostgres, type SqlApp } from './fixtures/app.ts'
import { startCommitProxy } from './fixtures/commit-proxy.ts'

t.teardown(stopPostgres)

const insert = (key: unknown): string => `insert into effects (key, name) values ('${String(key)}', 'x') returning id`

interface Setup { url: string, adapted: Adapted }
async function setUp (t: Test, { make }: Adapter, port?: number): Promise<Setup> {
  const server = await postgresServer()
  const url = await newDatabase(server)
  const adapted = await make(
    port === undefined ? url : url.replace(`:${server.port}/`, `:${port}/`), { idleTimeout: 10_000 }
  )
  t.teardown(async () => { await adapted.end() })
  return { url, adapted }
}

/** Each with a store of its own: nothing but the database keeps them apart. */
async function strangers (t: Test, count: number, routes: Parameters<typeof startApp>[2]): Promise<SqlApp[]> {
  return await Promise.all(
    Array.from({ length: count }, async () => await startApp(t, { store: new MemoryStore() }, routes))
  )
}

for (const adapter of ADAPTERS) {
  t.test(`G18: ${adapter.name} (${adapter.version})`, async t => {
    await t.test('commits once, gives the result again, rolls back what throws, forgets and sweeps', async t => {
      const { url, adapted: { once, transaction } } = await setUp(t, adapter)
      let fails = 1
      const { post, app } = await startApp(t, { store: new MemoryStore() }, app => {
        app.post('/', async request => {
          const result = await once(request, "it's", async run => {
            const [row] = await run(insert(request.idempotency.key))
            if (fails === 1) throw new Error('inside')
            return { id: Number(row?.['id']), 'ü?$1': ['"', '\\', '\u0000', '𝄞'] }
          })
          if (fails === 2) throw new Error('outside')
          return { result, id: request.idempotency.id }
        })
      })
      t.match((await post('k')).json(), { message: 'inside' })
      fails = 2
      t.match((await post('k')).json(), { message: 'outside' })
      fails = 0
      const { result, id } = (await post('k')).json()
      t.same(result, { id: 2, 'ü?$1': ['"', '\\', '\u0000', '𝄞'] })
      t.same(await run(url, 'select id::int from effects'), [{ id: 2 }])
      t.equal(await transaction.forget(String(id)), true)
      t.equal(await transaction.sweep(), 0)
      await app.close()
    })

    for (const level of LEVELS) {
      await t.test(`executions at once, ${level}`, async t => {
        const { url, adapted: { once } } = await setUp(t, adapter)
        const apps = await strangers(t, 4, app => {
          app.post('/', async request => await once(request, 'x', async run => {
            const [row] = await run(insert(request.idempotency.key))
            return { id: row?.['id'] }
          }, level))
        })
        for (let round = 0; round < 5; round++) {
          const answers = await Promise.all(apps.map(async ({ post }) => await post(`k${round}`)))
          t.same([...new Set(answers.map(({ status }) => status))], [200])
          t.equal(new Set(answers.map(({ text }) => text)).size, 1)
        }
        t.same(await run(url, 'select key, count(*)::int from effects group by key having count(*) <> 1'), [])
        t.equal((await run(url, 'select * from effects')).length, 5)
      })
    }

    await t.test('serialization failures run the work again', async t => {
      const { url, adapted: { once } } = await setUp(t, adapter)
      await run(url, 'create table stock (n int); insert into stock values (0)')
      let runs = 0
      const { post } = await startApp(t, { store: new MemoryStore() }, app => {
        app.post<{ Querystring: { times: number } }>('/', async request => await once(request, 'x', async tx => {
          await tx('select n from stock')
          if (++runs <= Number(request.query.times)) await run(url, 'update stock set n = n + 1')
          await tx('update stock set n = n + 1')
          return runs
        }, 'repeatable read'))
      })
      t.equal((await post('k', '{}', { path: '/?times=3' })).text, '4')
      runs = 0
      t.match((await post('l', '{}', { path: '/?times=4' })).status, 500)
      t.equal(runs, 4)
      t.same(await run(url, 'select n from stock'), [{ n: 8 }])
    })

    await t.test('a session that the server ends in the work ends neither process nor pool', async t => {
      const { url, adapted: { once } } = await setUp(t, adapter)
      let kill = true
      const { post } = await startApp(t, { store: new MemoryStore() }, app => {
        app.post('/', async request => await once(request, 'x', async tx => {
          await tx(insert('k'))
          const [row] = await tx('select pg_backend_pid() as pid')
          if (kill) await run(url, `select pg_terminate_backend(${Number(row?.['pid'])}, 5000)`)
          return 1
        }))
      })
      for (let time = 0; time < 7; time++) t.equal((await post('k')).status, 500)
      kill = false
      t.equal((await post('k')).status, 200)
      t.equal((await run(url, 'select * from effects')).length, 1)
    })

    await t.test('a COMMIT without an answer is resolved', async t => {
      const proxy = await startCommitProxy((await postgresServer()).port)
      t.teardown(async () => { await proxy.stop() })
      const { url, adapted: { once } } = await setUp(t, adapter, proxy.port)
      let runs = 0
      const { post } = await startApp(t, { store: new MemoryStore() }, app => {
        app.post('/', async request => await once(request, 'x', async tx => {
          runs++
          await tx(insert(request.idempotency.key))
          return { runs }
        }))
      })
      for (const [cuts, expected] of [[['after'], 1], [['before'], 2], [['before', 'before', 'after'], 3]] as const) {
        runs = 0
        proxy.cuts.push(...cuts)
        const answer = await post(cuts.join())
        t.same([answer.status, answer.text, runs], [200, JSON.stringify({ runs: expected }), expected], cuts.join())
      }
      runs = 0
      proxy.cuts.push('before', 'before', 'before', 'before', 'before')
      t.equal((await post('never')).status, 500)
      t.equal(runs, 4)
      proxy.cuts.length = 0
      t.same(await run(url, 'select key, count(*)::int from effects group by key order by key'), [
        { key: 'after', count: 1 }, { key: 'before', count: 1 }, { key: 'before,before,after', count: 1 }
      ])
    })
  })
}

t.test('a database of one\'s own: PGlite, in this process', async t => {
  const { once, run, transaction, end } = await pglite()
  t.teardown(end)
  await run(EFFECTS)
  let fails = true
  const apps = await strangers(t, 3, app => {
    app.post('/', async request => {
      const result = await once(request, 'x', async run => (await run(insert(request.idempotency.key)))[0])
      if (fails) throw new Error('outside')
      return { result, id: request.idempotency.id }
    })
  })
  await Promise.all(apps.map(async ({ post }) => t.equal((await post('k')).status, 500)))
  fails = false
  for (const { post } of apps) t.match((await post('k')).json(), { result: { id: 1 } })
  t.equal((await run('select * from effects')).length, 1)
  t.equal(await transaction.sweep(), 0)
})
