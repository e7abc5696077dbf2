import { randomUUID } from 'node:crypto'
import pg from 'pg'
import t, { type Test } from 'tap'
import { idOf } from '../../lib/protocol/fingerprint.ts'
import { MemoryStore, type IdempotencyStore } from '../../lib/index.ts'
import { transactions, viaPg, type Database, type PgTransactionOptions, type Transaction } from '../../lib/sql.ts'
import { gate, type Gate } from '../fixtures/app.ts'
import { plain } from '../fixtures/broken-stores.ts'
import { LEVELS, type Level } from './fixtures/adapters.ts'
import {
  newDatabase, poolOf, postgresServer, run, startApp, stopPostgres, untilWaiting, type SqlApp
} from './fixtures/app.ts'

/** Once a later execution has entered its first transaction, no earlier one can commit any more. */

t.teardown(stopPostgres)

/** What a store does that lets a key be taken over: the key is another's, as a later attempt. */
class Takeover implements Pick<IdempotencyStore, 'claim'> {
  readonly store: MemoryStore
  readonly attempt: number

  constructor (store: MemoryStore, attempt: number) {
    this.store = store
    this.attempt = attempt
  }

  async claim (
    ...[key, request]: Parameters<MemoryStore['claim']>
  ): Promise<Awaited<ReturnType<IdempotencyStore['claim']>>> {
    this.store.remove(key)
    this.store.claim(key, request)
    return { outcome: 'acquired', attempt: this.attempt, takeover: true }
  }
}

/** The same store, but each claim is a takeover. */
function takingOver (store: MemoryStore, attempt: number): IdempotencyStore {
  const takeover = new Takeover(store, attempt)
  return new Proxy(store, {
    get (target, name) {
      const owner = name === 'claim' ? takeover : target
      const value = Reflect.get(owner, name) as unknown
      return typeof value === 'function' ? (value.bind(owner) as unknown) : value
    }
  })
}

type Once = Transaction<pg.PoolClient, PgTransactionOptions>
const insert = async (tx: pg.PoolClient, name: string): Promise<number> =>
  Number((await tx.query('insert into effects (key, name) values ($1, $1) returning id', [name])).rows[0].id)

interface World {
  url: string
  store: MemoryStore
  api: (transaction: Once, store?: IdempotencyStore) => Promise<SqlApp>
  hold: Gate
  inside: Gate
}

/** `x-names: a,b`: a transaction of each name; the one that is called `held` waits inside. */
async function world (t: Test, level: Level = 'read committed'): Promise<World> {
  const url = await newDatabase(await postgresServer())
  const store = new MemoryStore()
  const hold = gate()
  const inside = gate()
  t.teardown(hold.open)
  return {
    url,
    store,
    hold,
    inside,
    api: async (transaction, own = store) => await startApp(t, { store: own }, app => {
      app.post('/', async request => {
        const ids: number[] = []
        for (const name of String(request.headers['x-names']).split(',')) {
          ids.push(await transaction(request, name, async tx => {
            if (name === 'held') {
              inside.open()
              await hold.promise
            }
            return await insert(tx, name)
          }, { isolationLevel: level }))
        }
        return ids
      })
    })
  }
}

const code = (answer: { status: number, text: string }): string =>
  /idempotency_\w+/.exec(answer.text)?.[0] ?? `${answer.status}`
const named = (names: string): { headers: Record<string, string> } => ({ headers: { 'x-names': names } })

for (const level of LEVELS) {
  t.test(`G18: a later execution waits for the open transaction, and then reads its result, ${level}`, async t => {
    const { url, store, api, hold, inside } = await world(t, level)
    const transaction = transactions(viaPg(poolOf(t, url)))
    const early = await api(transaction)
    const late = await api(transactions(viaPg(poolOf(t, url))), takingOver(store, 2))
    const first = early.post('k', '{}', named('held'))
    await inside.promise
    const second = late.post('k', '{}', named('held'))
    await untilWaiting(url, 'advisory')
    hold.open()
    t.same((await second).text, '[1]')
    const answer = await first
    t.ok(answer.text === '[1]' || code(answer) === 'idempotency_in_progress', answer.text)
    t.same(await run(url, 'select id::int, name from effects'), [{ id: 1, name: 'held' }])
  })

  t.test(`G18: an execution whose transaction begins while a fence is waited for is refused, ${level}`, async t => {
    const { url, store, api, hold, inside } = await world(t, level)
    const early = await api(transactions(viaPg(poolOf(t, url))))
    const late = await api(transactions(viaPg(poolOf(t, url))), takingOver(store, 2))
    const first = early.post('k', '{}', named('held,more'))
    await inside.promise
    const second = late.post('k', '{}', named('held,more'))
    await untilWaiting(url, 'advisory')
    hold.open()
    t.same((await second).text, '[1,2]')
    await first
    t.same(await run(url, 'select name, count(*)::int from effects group by name order by name'), [
      { name: 'held', count: 1 }, { name: 'more', count: 1 }
    ])
  })

  t.test(`G18: a late execution whose snapshot is older than the fence cannot commit, ${level}`, async t => {
    const { url, store, api } = await world(t, level)
    const pool = poolOf(t, url)
    const via = viaPg(pool)
    const snapshot = gate()
    const go = gate()
    let held = false
    const slow: Database<pg.PoolClient, PgTransactionOptions> = {
      query: via.query,
      transaction: async (work, options) => await via.transaction(async tx => {
        if (!held) {
          held = true
          await tx.query('select count(*) from effects')
          snapshot.open()
          await go.promise
        }
        return await work(tx)
      }, options)
    }
    const early = await api(transactions(slow))
    const late = await api(transactions(via), takingOver(store, 2))
    const first = early.post('k', '{}', named('late'))
    await snapshot.promise
    t.equal((await late.post('k', '{}', named('other'))).text, '[1]')
    go.open()
    const answer = await first
    t.ok(answer.text === '[1]' || code(answer) === 'idempotency_in_progress', answer.text)
    t.same(await run(url, 'select name from effects'), [{ name: 'other' }])
  })
}

t.test('G18: a fence that runs into its timeout gives the key back, and answers 409', async t => {
  const { url, store, api, hold, inside } = await world(t)
  const early = await api(transactions(viaPg(poolOf(t, url)), { idleTimeout: 600_000 }))
  const late = await api(transactions(viaPg(poolOf(t, url)), { idleTimeout: 1 }), takingOver(store, 2))
  const first = early.post('k', '{}', named('held'))
  await inside.promise
  // Other work, whose own row is in nobody's way: it is the fence that waits.
  const answer = await late.post('k', '{}', named('other'))
  t.same([answer.status, code(answer), answer.headers['retry-after']], [409, 'idempotency_in_progress', '1'])
  t.match(await late.app.idempotency.inspect({ key: 'k' }), { state: 'freed' })
  hold.open()
  t.equal((await first).text, '[1]')
  t.equal((await early.post('k', '{}', named('held'))).text, '[1]')
  t.equal((await run(url, 'select 1 from effects')).length, 1)
})

t.test('G18: a fence of an execution that the store has forgotten is replaced once the store agrees', async t => {
  const { url, store, api } = await world(t)
  const transaction = transactions(viaPg(poolOf(t, url)))
  const late = await api(transaction, takingOver(store, 5))
  const early = await api(transaction)
  t.equal((await late.post('k', '{}', named('a'))).text, '[1]')
  await early.app.idempotency.forget({ key: 'k' })
  t.equal((await early.post('k', '{}', named('a,b'))).text, '[1,2]', 'attempt 1 goes on')
  await early.app.idempotency.forget({ key: 'k' })
  const again = await api(transaction, takingOver(store, 2))
  t.equal((await again.post('k', '{}', named('a,b,c'))).text, '[1,2,3]', 'attempt 2 goes on')
  t.equal((await run(url, 'select 1 from effects')).length, 3)
})

t.test('G18: a fence met at RECORD: the store is asked once, and the work runs again, or not', async t => {
  const { url, api, hold, inside } = await world(t)
  const transaction = transactions(viaPg(poolOf(t, url)))
  const early = await api(transaction)
  const first = early.post('k', '{}', named('held'))
  await inside.promise
  // As if it had come between the start of OPEN and its lock.
  const fence = 'insert into idempotency_transactions (key, name, token, attempt, fingerprint, ' +
    "expires_at) select key, '', $1, 2, '', now() + interval '1 h' from (select $2::text as key) k"
  await run(url, fence, [randomUUID(), idOf(undefined, 'k')])
  hold.open()
  t.equal((await first).text, '[2]', 'it holds the key: once more, the first try was rolled back')
  t.equal((await run(url, 'select 1 from effects')).length, 1)
})

t.test('G18: whoever asks while the store is away is told so, and nothing is committed', async t => {
  const { url, store, api } = await world(t)
  const transaction = transactions(viaPg(poolOf(t, url)))
  const away = new Proxy(store, {
    get (target, name) {
      if (name === 'renew') return async () => await Promise.reject(new Error('away'))
      const value = Reflect.get(target, name) as unknown
      return typeof value === 'function' ? (value.bind(target) as unknown) : value
    }
  })
  const late = await api(transaction, takingOver(store, 2))
  const early = await api(transaction, away)
  t.equal((await late.post('k', '{}', named('a'))).text, '[1]')
  await early.app.idempotency.forget({ key: 'k' })
  const answer = await early.post('k', '{}', named('a,b'))
  t.same([answer.status, code(answer)], [503, 'idempotency_store_unavailable'])
  t.equal((await run(url, 'select 1 from effects')).length, 1)
})

/** The database, but statements that set a fence meet other transactions, the first `times`. */
function conflicting (pool: pg.Pool, times: number): Database<pg.PoolClient, PgTransactionOptions> {
  const via = viaPg(pool)
  return {
    transaction: via.transaction,
    async query (tx, text, values) {
      if (text.includes('lock_timeout') && times-- > 0) throw Object.assign(new Error('conflict'), { code: '40001' })
      return await via.query(tx, text, values)
    }
  }
}

t.test('G18: a fence that meets serialization failures is set again, and given up in the end', async t => {
  const { url, store, api } = await world(t)
  const few = await api(transactions(conflicting(poolOf(t, url), 3)), takingOver(store, 2))
  t.equal((await few.post('k', '{}', named('a'))).text, '[1]')
  const many = await api(transactions(conflicting(poolOf(t, url), Infinity)), takingOver(store, 2))
  const answer = await many.post('l', '{}', named('a'))
  t.same([answer.status, code(answer)], [409, 'idempotency_in_progress'])
  t.match(await many.app.idempotency.inspect({ key: 'l' }), { state: 'freed' })
  t.equal((await run(url, 'select 1 from effects')).length, 1)
})

t.test('G18: an error of the database while a fence is set is that error, and the next execution sets one', async t => {
  const { url, store, api } = await world(t)
  await run(url, 'alter table idempotency_transactions rename to away')
  const late = await api(transactions(viaPg(poolOf(t, url))), takingOver(store, 2))
  t.equal((await late.post('k', '{}', named('a'))).status, 500)
  await run(url, 'alter table away rename to idempotency_transactions')
  t.equal((await late.post('k', '{}', named('a'))).text, '[1]')
  t.equal((await run(url, "select 1 from idempotency_transactions where name = ''")).length, 1)
})

t.test('G18: an execution that meets ever another fence gives up, and commits nothing', async t => {
  const { url, api } = await world(t)
  const via = viaPg(poolOf(t, url))
  const fence = 'update idempotency_transactions set token = gen_random_uuid(), attempt = 2 where name = $1'
  const always: Database<pg.PoolClient, PgTransactionOptions> = {
    query: via.query,
    async transaction (work, options) {
      const result = await via.transaction(work, options)
      await run(url, fence, [''])
      return result
    }
  }
  const { post } = await api(transactions(always))
  const key = idOf(undefined, 'k')
  await run(url, `insert into idempotency_transactions (key, name, token, attempt, fingerprint, expires_at)
    values ($1, '', gen_random_uuid(), 2, '', now() + interval '1 h')`, [key])
  const answer = await post('k', '{}', named('a'))
  t.same([answer.status, code(answer)], [409, 'idempotency_in_progress'])
  t.same(await run(url, 'select 1 from effects'), [])
})

t.test('G18: a request that the store let pass ends with a 503 where another execution has fenced it off', async t => {
  const { url, store, api } = await world(t)
  const late = await api(transactions(viaPg(poolOf(t, url))), takingOver(store, 2))
  t.same((await late.post('k', '{}', named('a'))).text, '[1]')
  const away = { ...plain(store), claim: async () => { throw new Error('away') } }
  const bypassing = await startApp(t, { store: away, onStoreError: 'bypass' }, app => {
    const transaction = transactions(viaPg(poolOf(t, url)))
    app.post('/', async request => await transaction(request, 'b', async tx => await insert(tx, 'b')))
  })
  t.equal(code(await bypassing.post('k')), 'idempotency_store_unavailable')
  t.same(await run(url, 'select name from effects'), [{ name: 'a' }])
})
