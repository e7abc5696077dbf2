import pg from 'pg'
import t from 'tap'
import { MemoryStore } from '../../lib/index.ts'
import {
  transactions, viaDrizzle, viaKnex, viaKysely, viaPg, viaPostgres, viaPrisma, type TransactionsOptions
} from '../../lib/sql.ts'
import { gate } from '../fixtures/app.ts'
import { ADAPTERS, LEVELS, type Adapter } from './fixtures/adapters.ts'
import { newDatabase, poolOf, postgresServer, run, startApp, stopPostgres } from './fixtures/app.ts'

t.teardown(stopPostgres)

const message = async (promise: Promise<unknown>): Promise<string> =>
  await promise.then(value => `gave ${JSON.stringify(value)}`, (error: Error) => `${error.name}: ${error.message}`)

t.test('G18: one name in two objects of a table is refused, be it at once or in turn', async t => {
  const url = await newDatabase(await postgresServer())
  const [orders, audit] = [transactions(viaPg(poolOf(t, url))), transactions(viaPg(poolOf(t, url)))]
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => [
      await message(orders(request, 'insert', () => 'order')),
      await message(audit(request, 'insert', () => 'audit')),
      await message(audit(request, 'insert', () => 'again')),
      await message(audit(request, 'other', () => 'audit'))
    ])
    app.post('/at-once', async request => await Promise.all([orders, audit].map(
      async transaction => await message(transaction(request, 'insert', () => 'ran'))
    )))
  })
  const refusal = /^TypeError: .*"insert" was begun before in this request/
  t.match((await post('k')).json(), ['gave "order"', refusal, refusal, 'gave "audit"'])
  const atOnce = (await post('k2', '{}', { path: '/at-once' })).json() as unknown as string[]
  t.match(atOnce.toSorted(), [refusal, 'gave "ran"'])
})

t.test('one name in two databases, or two tables, is fine', async t => {
  const urls = [await newDatabase(await postgresServer()), await newDatabase(await postgresServer())] as const
  const all = urls.map(url => transactions(viaPg(poolOf(t, url))))
  const elsewhere = transactions(viaPg(poolOf(t, urls[0])), { table: 'elsewhere' })
  await run(urls[0], elsewhere.schema)
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => {
      const said: unknown[] = []
      for (const transaction of [...all, elsewhere]) said.push(await transaction(request, 'x', () => said.length))
      return said
    })
  })
  t.same((await post('k')).json(), [0, 1, 2])
})

t.test('a transaction inside the work of another is refused, and the connection is free again', async t => {
  const url = await newDatabase(await postgresServer())
  const pool = poolOf(t, url, 1)
  const transaction = transactions(viaPg(pool))
  const other = transactions(viaPg(pool))
  const late = gate()
  let afterwards: Promise<string> | undefined
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => await message(transaction(
      request, 'outer', async () => await other(request, 'inner', () => 1)
    )))
    app.post('/later', async request => {
      await transaction(request, 'outer', () => {
        afterwards = late.promise.then(async () => await message(transaction(request, 'inner', () => 'ran')))
      })
      late.open()
      return await afterwards
    })
    app.post('/at-once', async request => await Promise.all(['a', 'b'].map(
      async name => await transaction(request, name, () => name)
    )))
  })
  for (const key of ['k', undefined]) {
    t.match((await post(key)).text, /^TypeError: .*"inner" was begun inside the work of "outer"/)
  }
  t.equal((await post('l', '{}', { path: '/later' })).text, 'gave "ran"', 'what the work has left running is outside')
  t.same((await post('m', '{}', { path: '/at-once' })).json(), ['a', 'b'])
  t.equal(pool.idleCount, 1)
})

t.test('levels of isolation are checked, in any case, and unknown options are refused', async t => {
  const url = await newDatabase(await postgresServer())
  await run(url, 'create table victim ()')
  const said: Record<string, string> = {}
  const named = (name: string): Adapter => ADAPTERS.find(adapter => adapter.name === name) as Adapter
  for (const name of ['viaPg', 'viaKnex', 'viaKysely', 'viaDrizzle over pg']) {
    const { raw, end } = await named(name).make(url)
    const { app, post } = await startApp(t, { store: new MemoryStore() }, app => {
      app.post<{ Body: unknown }>('/', async request => await message(raw(
        request, 'x', async run => (await run('show transaction_isolation'))[0], request.body as never
      )))
    })
    const level = async (options: unknown): Promise<string> => (await post(
      undefined, JSON.stringify(options), { headers: { 'content-type': 'application/json' } }
    )).text
    for (const isolationLevel of LEVELS) {
      t.equal(await level({ isolationLevel }), `gave {"transaction_isolation":"${isolationLevel}"}`)
    }
    t.equal(await level({}), 'gave {"transaction_isolation":"read committed"}')
    said[name] = await level({ isolationLevel: 'SERIALIZABLE' })
    for (const isolationLevel of ['serializable; drop table victim', 'chaos', 5, '', null]) {
      t.match(await level({ isolationLevel }), /^TypeError: .*option "isolationLevel" must be .*read committed, /)
    }
    t.match(await level({ isolation: 'serializable' }), /^TypeError: .*unknown option "isolation".*isolationLevel/)
    t.match(await level({ isolationlevl: 'serializable' }), /^TypeError: .*did you mean "isolationLevel"/)
    for (const options of ['serializable', null]) {
      t.match(await level(options), /^TypeError: .*transaction of .* must be an object with isolationLevel/)
    }
    await app.close()
    await end()
  }
  t.equal(new Set(Object.values(said)).size, 1)
  t.equal(said['viaPg'], 'gave {"transaction_isolation":"serializable"}')
  const { raw, end } = await named('viaPostgres').make(url)
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post<{ Body: { modes: unknown } }>('/', async request => await message(raw(
      request, 'x', async run => (await run('show transaction_isolation'))[0], request.body.modes as never
    )))
  })
  const begin = async (modes: unknown): Promise<string> => (await post(undefined, JSON.stringify({ modes }))).text
  t.match(await begin('Isolation Level Serializable, read only'), /"serializable"/)
  for (const modes of ['isolation level serializable; drop table victim', { isolationLevel: 'serializable' }]) {
    t.match(await begin(modes), /^TypeError: .*viaPostgres must be the text after BEGIN/)
  }
  await end()
  t.equal((await run(url, 'select from victim')).length, 0, 'the table is there')
})

t.test('what a transaction is made of is checked as it is made', async t => {
  const sql = (): unknown => undefined
  const makers: Record<string, (library: never) => unknown> = {
    viaPg, viaPostgres, viaKysely, viaKnex, viaPrisma, viaDrizzle: library => viaDrizzle(library, sql)
  }
  for (const [name, make] of Object.entries(makers)) {
    for (const library of [undefined, null, {}, 5]) {
      t.throws(() => make(library as never), { name: 'TypeError', message: new RegExp(`${name} needs `) })
    }
  }
  t.throws(() => viaPg(undefined as never), { message: /got undefined: it was not there yet/ })
  t.throws(() => viaDrizzle({ transaction: sql } as never, undefined as never), { message: /viaDrizzle needs `sql`/ })
  const pool = new pg.Pool()
  for (const database of [undefined, null, pool, {}]) {
    t.throws(() => transactions(database as never), { name: 'TypeError', message: /such as transactions\(viaPg\(pool/ })
  }
  t.throws(() => transactions(viaPg(pool), { retires: 5 } as TransactionsOptions), {
    name: 'TypeError', message: /options of transactions: unknown option "retires"; did you mean "retries"/
  })
  t.throws(() => transactions(viaPg(pool), { prefix: '' } as TransactionsOptions), {
    message: /unknown option "prefix"; the options here are table, retries, idleTimeout/
  })
  t.throws(() => transactions(viaPg(pool), null as never), { name: 'TypeError', message: /must be an object/ })
})
