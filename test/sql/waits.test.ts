import { once } from 'node:events'
import pg from 'pg'
import t from 'tap'
import { MemoryStore } from '../../lib/index.ts'
import { transactions, viaPg } from '../../lib/sql.ts'
import { gate } from '../fixtures/app.ts'
import { newDatabase, poolOf, postgresServer, run, startApp, stopPostgres } from './fixtures/app.ts'

/** Sessions that are idle in their transaction, and that wait for a row. */

t.teardown(stopPostgres)

t.test('G18: a session that the server ended for being idle says so, and how to mend it', async t => {
  const url = await newDatabase(await postgresServer())
  const transaction = transactions(viaPg(poolOf(t, url)), { idleTimeout: 50 })
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => await transaction(request, 'x', async tx => {
      await once(tx, 'error').catch(() => {})
      await once(tx, 'end').catch(() => {})
      await tx.query('select 1')
    }))
  })
  t.match((await post('k')).json(), {
    statusCode: 500, message: /idle in its transaction for too long .*"idleTimeout".*; nothing was committed/
  })
})

t.test('a stricter idle timeout of the session stays, unless the option says otherwise', async t => {
  const url = await newDatabase(await postgresServer())
  const limits: Record<string, string[]> = {}
  for (const own of ['0', '200ms', '1min', '1h', '30s']) {
    const options = own === '0' ? '' : `-c idle_in_transaction_session_timeout=${own}`
    const pool = new pg.Pool({ connectionString: url, options })
    t.teardown(async () => { await pool.end() })
    const [byLease, byOption] = [transactions(viaPg(pool)), transactions(viaPg(pool), { idleTimeout: '40s' })]
    const { post } = await startApp(t, { store: new MemoryStore(), lease: '30s' }, app => {
      app.post('/', async request => {
        const said: string[] = []
        for (const [name, transaction] of Object.entries({ byLease, byOption })) {
          said.push(await transaction(request, name, async tx => {
            const { rows } = await tx.query('show idle_in_transaction_session_timeout')
            return String(rows[0]['idle_in_transaction_session_timeout'])
          }))
        }
        return said
      })
    })
    limits[own] = (await post(`k${own}`)).json() as unknown as string[]
  }
  t.same(limits, {
    0: ['30s', '40s'], '200ms': ['200ms', '40s'], '1min': ['30s', '40s'], '1h': ['30s', '40s'], '30s': ['30s', '40s']
  })
})

t.test('G18: a duplicate that waits for the row for longer than lock_timeout gets 409', async t => {
  const url = await newDatabase(await postgresServer())
  const pool = new pg.Pool({ connectionString: url, options: '-c lock_timeout=50ms' })
  t.teardown(async () => { await pool.end() })
  const transaction = transactions(viaPg(pool))
  const inside = gate()
  const hold = gate()
  t.teardown(hold.open)
  const apps = await Promise.all([1, 2].map(async () => await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => await transaction(request, 'x', async tx => {
      inside.open()
      await hold.promise
      await tx.query("insert into effects (key) values ('k')")
      return 'done'
    }))
    app.post('/locked', async request => await transaction(request, 'y', async tx => {
      await tx.query('lock effects')
    }))
  })))
  const first = apps[0]?.post('k')
  await inside.promise
  const duplicate = await apps[1]?.post('k')
  t.match([duplicate?.status, duplicate?.json()['code']], [409, 'idempotency_in_progress'])
  hold.open()
  t.equal((await first)?.status, 200)
  t.equal((await apps[1]?.post('k'))?.text, 'done')
  t.same(await run(url, 'select key from effects'), [{ key: 'k' }])

  const client = new pg.Client({ connectionString: url })
  await client.connect()
  t.teardown(async () => { await client.end() })
  await client.query('begin')
  await client.query('lock effects')
  const locked = await apps[0]?.post('l', '{}', { path: '/locked' })
  t.equal(locked?.status, 500, 'what the work waits for is its own error')
})
