import t, { type Test } from 'tap'
import { MemoryStore } from '../../lib/index.ts'
import { ADAPTERS, LEVELS, type Adapter, type Level, type Run } from './fixtures/adapters.ts'
import {
  newDatabase, postgresServer, run, startApp, stopPostgres, type LogLine, type SqlApp
} from './fixtures/app.ts'

/** Work that ends its transaction, or touches its own record: told, and not run again. */

t.teardown(stopPostgres)

const INSERT = "insert into effects (key, name) values ('k', 'x')"

interface World extends SqlApp { url: string, logs: LogLine[], runs: () => number }
async function world (t: Test, { make }: Adapter, work: (run: Run) => Promise<unknown>, level?: Level): Promise<World> {
  const url = await newDatabase(await postgresServer())
  const adapted = await make(url)
  t.teardown(async () => { await adapted.end() })
  const logs: LogLine[] = []
  let runs = 0
  const app = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => await adapted.once(request, 'x', async run => {
      runs++
      return await work(run)
    }, level))
  }, logs)
  return { ...app, url, logs, runs: () => runs }
}

const ENDINGS: Record<string, { statements: string[], effects: number }> = {
  'rolls back': { statements: [INSERT, 'rollback'], effects: 0 },
  'rolls back and goes on': { statements: ['rollback', INSERT], effects: 1 },
  'rolls back into another transaction': { statements: ['rollback and chain', INSERT], effects: 0 },
  'begins and commits one of its own': { statements: ['rollback', 'begin', INSERT, 'commit'], effects: 1 },
  commits: { statements: [INSERT, 'commit'], effects: 1 },
  'commits into another transaction': { statements: [INSERT, 'commit and chain', INSERT], effects: 1 }
}

for (const adapter of ADAPTERS.filter(({ name }) => !name.startsWith('viaPrisma'))) {
  for (const [what, { statements, effects }] of Object.entries(ENDINGS)) {
    // The library lets nobody begin.
    if (/ostgres$/.test(adapter.name) && !adapter.name.includes('@') && statements.includes('begin')) continue
    t.test(`G18: ${adapter.name}: work that ${what} is told, and never runs again`, async t => {
      const { post, url, logs, runs } = await world(t, adapter, async run => {
        for (const statement of statements) await run(statement)
        return 1
      })
      for (let round = 0; round < 3; round++) {
        const { status, json } = await post('k')
        t.match([status, json()['code']], [409, 'idempotency_outcome_unknown'])
        t.match(String(json()['message']), /work of the transaction "x" has ended it/)
      }
      t.equal(runs(), 1)
      t.equal((await run(url, 'select 1 from effects')).length, effects)
      t.match(logs[0], { level: 50, transaction: 'x', idempotencyId: /^\w+$/, msg: /a COMMIT or ROLLBACK of its own/ })
      t.match((await post('k', '{"other":1}')).json(), { code: 'idempotency_key_mismatch' })
    })
  }
}

const [viaPg] = ADAPTERS as [Adapter]
for (const level of LEVELS) {
  t.test(`G18: work that rolls back is told, ${level}`, async t => {
    const { post, runs } = await world(t, viaPg, async run => {
      await run('rollback')
      await run(INSERT)
    }, level)
    for (let round = 0; round < 2; round++) t.match((await post('k')).json(), { code: 'idempotency_outcome_unknown' })
    t.equal(runs(), 1)
  })

  t.test(`G18: work that deletes its own record is rolled back, and told, ${level}`, async t => {
    const { post, url, runs } = await world(t, viaPg, async run => {
      await run(INSERT)
      await run("delete from idempotency_transactions where name = 'x'")
    }, level)
    t.match((await post('k')).json(), { statusCode: 500, message: /"x" has deleted or changed its own record/ })
    t.equal(runs(), 1)
    t.same(await run(url, 'select * from effects'), [])
    t.same(await run(url, 'select * from idempotency_transactions'), [])
  })
}

t.test('G18: where it cannot be recorded that work has ended its transaction, the log says so', async t => {
  const { post, logs, runs } = await world(t, viaPg, async run => {
    await run('rollback')
    await run('alter table idempotency_transactions rename to elsewhere')
    await run(INSERT)
    await run('create table idempotency_transactions as select *, 1 as added from elsewhere')
  })
  t.match((await post('k')).json(), { code: 'idempotency_outcome_unknown' })
  t.equal(runs(), 1)
  t.match(logs.map(({ msg }) => msg), [/could not be recorded that a transaction must not run again/, /of its own/])
  t.match(logs[0], { transaction: 'x', err: { code: '42P10' } })
})
