import t, { type Test } from 'tap'
import { PostgresStore } from '../../lib/sql.ts'
import { startPostgres, type PostgresServer } from '../fixtures/postgres.ts'
import { startProxy } from '../fixtures/proxy.ts'
import { storeAppTests, storeTests } from '../../lib/store-tests.ts'
import { newDatabase, run } from './fixtures/app.ts'
import { faultApp, openPool, OPERATIONS, seen, settled, type FaultApp, type Operation } from './fixtures/faults.ts'

/** What becomes of a key when PostgreSQL is stopped, frozen, cut off, full or read-only, at each step of a request. */

const UNAVAILABLE = '503 idempotency_store_unavailable'
const PATHS: Record<Operation, string> = { claim: '/', renew: '/slow', complete: '/', release: '/fails' }

interface Cell {
  /** The client whose request meets the fault. */
  first: string
  /** A retry while the fault lasts. */
  meanwhile: string
  /** A client that goes on sending, once it is over. */
  after: string
  runs: number
}

/** The same for each fault: nothing runs on the strength of a store that is away, and nothing that ran runs again. */
const MATRIX: Record<Operation, Cell> = {
  claim: { first: UNAVAILABLE, meanwhile: UNAVAILABLE, after: '201 run 1', runs: 1 },
  renew: { first: '201 run 1', meanwhile: UNAVAILABLE, after: '201 run 1 replayed', runs: 1 },
  complete: { first: '201 run 1', meanwhile: UNAVAILABLE, after: '201 run 1 replayed', runs: 1 },
  // Freed in the background: a failure that a retry may cure runs again.
  release: { first: '500 run 1', meanwhile: UNAVAILABLE, after: '500 run 2', runs: 2 }
}

interface Fault { begin: () => Promise<unknown>, end: () => Promise<unknown> }

let made: PostgresServer | undefined
/** What is committed is on the disk. */
const durable = async (): Promise<PostgresServer> => (made ??= await startPostgres({ durable: true }))
t.teardown(async () => { await made?.remove() })

async function databaseWithTable (server: PostgresServer): Promise<string> {
  const url = await newDatabase(server)
  await run(url, PostgresStore.schema)
  return url
}

type MakeFault = (app: FaultApp, url: string, server: PostgresServer) => Fault
const FAULTS: Record<string, MakeFault> = {
  'is stopped at once, and started again': (_app, _url, server) => ({
    begin: async () => { await server.stop('immediate') },
    end: async () => { await server.start() }
  }),
  'is restarted in order': (_app, _url, server) => ({
    begin: async () => { await server.stop('fast') },
    end: async () => { await server.start() }
  }),
  'is read-only': (_app, url) => ({
    async begin () {
      await setDefault(url, 'default_transaction_read_only', 'on')
      await reconnect(url)
    },
    async end () {
      await setDefault(url, 'default_transaction_read_only', 'off')
      await reconnect(url)
    }
  }),
  'lets nobody in': (_app, url) => ({
    async begin () {
      await letIn(url, false)
      await reconnect(url)
    },
    end: async () => { await letIn(url, true) }
  })
}

const nameOf = (url: string): string => new URL(url).pathname.slice(1)
const main = (url: string): string => url.replace(nameOf(url), 'postgres')
const setDefault = async (url: string, name: string, value: string): Promise<unknown> =>
  await run(main(url), `alter database ${nameOf(url)} set ${name} = ${value}`)
const letIn = async (url: string, anybody: boolean): Promise<unknown> =>
  await run(main(url), `alter database ${nameOf(url)} allow_connections ${String(anybody)}`)
/** Ends what is connected: a setting of the database counts from the next session on. */
const reconnect = async (url: string): Promise<unknown> =>
  await run(main(url), 'select pg_terminate_backend(pid) from pg_stat_activity where datname = $1', [nameOf(url)])

async function meet (t: Test, app: FaultApp, operation: Operation, { begin, end }: Fault): Promise<void> {
  const path = PATHS[operation]
  const stop = app.stopAt(operation)
  const first = app.post('k', '{}', { path })
  await stop.reached.promise
  await begin()
  stop.go.open()
  if (operation === 'renew') app.finish.open()
  const answers = [seen(await first), seen(await app.post('k', '{}', { path }))]
  await end()
  const { runs, ...cell } = MATRIX[operation]
  t.same([...answers, await settled(app, 'k', path)], Object.values(cell))
  t.equal(app.runs(), runs)
}

for (const [what, make] of Object.entries(FAULTS)) {
  for (const operation of OPERATIONS) {
    t.test(`G1, G10: PostgreSQL ${what}, before ${operation}`, async t => {
      const server = await durable()
      const url = await databaseWithTable(server)
      const app = await faultApp(t, url, { storeTimeout: 5_000, lease: operation === 'renew' ? 9_000 : 60_000 })
      await meet(t, app, operation, make(app, url, server))
    })
  }
}

/** What lasts for longer than storeTimeout: the app is asked for less time than it takes. */
for (const operation of OPERATIONS) {
  t.test(`G1, G10: PostgreSQL freezes for longer than storeTimeout, before ${operation}`, async t => {
    const server = await durable()
    const url = await databaseWithTable(server)
    const app = await faultApp(t, url, { storeTimeout: 300, lease: operation === 'renew' ? 9_000 : 60_000 })
    // Connections are open: a frozen server still takes new ones, and answers none.
    await app.post('before', '{}')
    const counted = app.runs()
    const pids = (await app.pool.query<{ pid: number }>(
      'select pid from pg_stat_activity where datname = current_database()'
    )).rows
    const all = [server.pid, ...pids.map(({ pid }) => pid)]
    const path = PATHS[operation]
    const stop = app.stopAt(operation)
    const first = app.post('k', '{}', { path })
    await stop.reached.promise
    for (const pid of all) process.kill(pid, 'SIGSTOP')
    let answers: string[]
    try {
      stop.go.open()
      if (operation === 'renew') app.finish.open()
      answers = [seen(await first), seen(await app.post('k', '{}', { path }))]
    } finally {
      for (const pid of all) process.kill(pid, 'SIGCONT')
    }
    const { runs, ...cell } = MATRIX[operation]
    const shift = (text: string): string => text.replace(/run (\d+)/, (_, n: string) => `run ${Number(n) - counted}`)
    t.same([...answers, await settled(app, 'k', path)].map(shift), Object.values(cell))
    t.equal(app.runs() - counted, runs)
  })
}

t.test('G10: with every connection of the pool lent nothing runs; a response is kept when one is back', async t => {
  const url = await databaseWithTable(await durable())
  const app = await faultApp(t, url, { storeTimeout: 300 }, { max: 1 })
  const stop = app.stopAt('complete')
  const first = app.post('k', '{}')
  await stop.reached.promise
  const lent = await app.pool.connect()
  stop.go.open()
  t.equal(seen(await first), '201 run 1')
  t.equal(seen(await app.post('k', '{}')), UNAVAILABLE)
  t.equal(seen(await app.post('new', '{}')), UNAVAILABLE)
  lent.release()
  t.equal(await settled(app, 'k'), '201 run 1 replayed')
  t.equal(app.runs(), 1)
  t.equal(await settled(app, 'new'), '201 run 2')
})

t.test('G10: a server without a connection left is a 503; one that is free again is used', async t => {
  const url = await databaseWithTable(await durable())
  const role = `app_${nameOf(url)}`
  await run(url, `create role ${role} login connection limit 1; grant all on idempotency_keys to ${role}`)
  const own = url.replace('postgres@', `${role}@`)
  const app = await faultApp(t, own)
  const other = openPool(t, own, { max: 1 })
  const client = await other.connect()
  t.equal(seen(await app.post('k', '{}')), UNAVAILABLE)
  t.equal(app.runs(), 0)
  client.release(true)
  t.equal(await settled(app, 'k'), '201 run 1')
})

for (const lose of ['requests', 'replies'] as const) {
  t.test(`G1, G10: a line that loses ${lose}, and a pool with query_timeout that makes new connections`, async t => {
    const server = await durable()
    const direct = await databaseWithTable(server)
    const proxy = await startProxy(server.port)
    t.teardown(proxy.stop)
    const app = await faultApp(
      t, direct.replace(`:${server.port}/`, `:${proxy.port}/`), { storeTimeout: 300 }, { max: 2, query_timeout: 500 }
    )
    const stop = app.stopAt('complete')
    const first = app.post('k', '{}')
    await stop.reached.promise
    proxy.lose = lose
    stop.go.open()
    t.equal(seen(await first), '201 run 1')
    t.equal(seen(await app.post('new', '{}')), UNAVAILABLE)
    proxy.lose = undefined
    t.equal(await settled(app, 'k'), '201 run 1 replayed')
    t.equal(app.runs(), 1)
  })
}

t.test('the store contract: PostgresStore behind a line that is cut', async t => {
  const server = await durable()
  const direct = await newDatabase(server)
  const proxy = await startProxy(server.port)
  t.teardown(proxy.stop)
  const pool = openPool(
    t, direct.replace(`:${server.port}/`, `:${proxy.port}/`), { connectionTimeoutMillis: 300, query_timeout: 300 }
  )
  const suite = {
    storeTimeout: 1_000,
    async createStore () {
      await run(direct, `drop table if exists idempotency_keys; ${PostgresStore.schema}`)
      return new PostgresStore(pool)
    },
    test: async (name: string, check: () => Promise<void>) => await t.test(
      name, { skip: name.includes('cut off') ? false : 'with the other tests' }, check
    ),
    outage: {
      begin () { proxy.lose = 'requests' },
      end () {
        proxy.lose = undefined
        proxy.cut()
      }
    }
  }
  storeTests(suite)
  storeAppTests(suite)
})

t.test('a pool without a listener: connections that end while they are idle end no process', async t => {
  const pool = openPool(t, await databaseWithTable(await durable()))
  const store = new PostgresStore(pool)
  await store.read('k')
  t.equal(pool.emit('error', new Error('terminated')), true)
})
