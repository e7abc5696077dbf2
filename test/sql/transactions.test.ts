import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { MemoryStore } from '../../lib/index.ts'
import { transactions, viaPg } from '../../lib/sql.ts'
import { gate, until } from '../fixtures/app.ts'
import { cutting, head } from '../fixtures/cut.ts'
import { newDatabase, poolOf, postgresServer, run, startApp, stopPostgres } from './fixtures/app.ts'

t.teardown(stopPostgres)

const INSERT = 'insert into effects (key, name, attempt) values ($1, $2, $3) returning id'

t.test('G18: a transaction commits its effect and its result once, and a rerun gets the result', async t => {
  const url = await newDatabase(await postgresServer())
  const transaction = transactions(viaPg(poolOf(t, url)))
  let fails = true
  const { post, app } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => {
      const order = await transaction(request, 'order', async tx => {
        const { rows } = await tx.query(INSERT, [request.idempotency.key, 'order', request.idempotency.attempt])
        return { id: Number(rows[0].id), at: new Date(0), nothing: undefined }
      })
      const none = await transaction(request, 'none', async () => {})
      const text = await transaction(request, 'text', () => 'ünï \u0000 𝄞')
      if (fails) throw new Error('on the way')
      return { order, none: none === undefined, text, attempt: request.idempotency.attempt }
    })
  })
  t.equal((await post('k')).status, 500)
  t.equal((await post('k')).status, 500)
  fails = false
  const answer = await post('k')
  t.same(answer.json(), {
    order: { id: 1, at: '1970-01-01T00:00:00.000Z' }, none: true, text: 'ünï \u0000 𝄞', attempt: 3
  })
  t.ok((await post('k')).replayed)
  t.same(await run(url, 'select key, name, attempt from effects'), [{ key: 'k', name: 'order', attempt: 1 }])
  const rows = await run(url, 'select name, result is null as bare, extract(epoch from expires_at - now())::int / ' +
    '60 as minutes from idempotency_transactions order by name')
  t.same(rows, [
    { name: '', bare: true, minutes: 1_440 },
    { name: 'none', bare: false, minutes: 1_440 },
    { name: 'order', bare: false, minutes: 1_440 },
    { name: 'text', bare: false, minutes: 1_440 }
  ])
  const id = String(
    rows.length > 0 && (await run(url, 'select distinct key from idempotency_transactions'))[0]?.['key']
  )
  t.ok(await app.idempotency.inspect({ id }), 'rows are filed under the id')
  t.equal(await transaction.forget(id), true)
  t.equal(await transaction.forget(id), false)
  t.same(await run(url, 'select name from idempotency_transactions'), [{ name: '' }], 'the fence stays')
  t.notMatch(JSON.stringify(await run(url, 'select * from idempotency_transactions')), '"k"')
})

t.test('a request without a key has a plain transaction', async t => {
  const url = await newDatabase(await postgresServer())
  const transaction = transactions(viaPg(poolOf(t, url)))
  let conflicts = 0
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => await transaction(request, 'x', async tx => {
      await tx.query(INSERT, ['none', 'x', 1])
      if (conflicts-- > 0) throw Object.assign(new Error('conflict'), { code: '40001' })
      return { at: new Date(0) }
    }))
    app.post('/throws', async request => await transaction(request, 'x', async tx => {
      await tx.query(INSERT, ['throws', 'x', 1])
      throw new Error('no')
    }))
    app.post('/aborted', async request => await transaction(request, 'x', async tx => {
      await tx.query(INSERT, ['aborted', 'x', 1])
      // PostgreSQL answers COMMIT with ROLLBACK then.
      await tx.query('select from nowhere').catch(() => {})
      return 'not committed'
    }))
    app.post('/opted-out', { config: { idempotency: false } }, async request => await transaction(
      request, 'x', tx => tx.query(INSERT, ['out', 'x', 1]).then(() => 1)
    ))
  })
  t.same((await post(undefined)).json(), { at: '1970-01-01T00:00:00.000Z' })
  conflicts = 3
  t.equal((await post(undefined)).status, 200)
  conflicts = 4
  t.equal((await post(undefined)).status, 500)
  conflicts = 0
  t.equal((await post(undefined, '{}', { path: '/throws' })).status, 500)
  t.match((await post(undefined, '{}', { path: '/aborted' })).json(), {
    statusCode: 500, message: 'The transaction was not committed: ROLLBACK'
  })
  t.equal((await post('k', '{}', { path: '/opted-out' })).status, 200)
  t.equal((await post('k', '{}', { path: '/opted-out' })).status, 200)
  t.same((await run(url, 'select key, count(*)::int from effects group by key order by key')), [
    { key: 'none', count: 2 }, { key: 'out', count: 2 }
  ])
  t.same(await run(url, 'select * from idempotency_transactions'), [])
})

t.test('G18: what work throws rolls back, is what the handler gets, and records nothing', async t => {
  const url = await newDatabase(await postgresServer())
  const pool = poolOf(t, url, 1)
  const transaction = transactions(viaPg(pool))
  const cyclic: Record<string, unknown> = {}
  cyclic['self'] = cyclic
  const results: Record<string, () => unknown> = {
    error: () => { throw new Error('mine') },
    bigint: () => 1n,
    cycle: () => cyclic
  }
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post<{ Body: { what: string } }>('/', async (request, reply) => {
      const attempt = async (): Promise<unknown> => await transaction(request, 'x', async tx => {
        await tx.query(INSERT, ['k', 'x', 1])
        return results[request.body.what]?.() ?? 'done'
      })
      const error = await attempt().then(() => undefined, error => error as Error)
      t.equal(pool.idleCount, 1, 'the connection is back')
      if (error === undefined) return 'done'
      const again = await attempt().catch((error: Error) => error.message)
      return await reply.code(500).send({ name: error.name, message: error.message, again })
    })
  })
  const post2 = async (what: string): Promise<unknown> =>
    (await post(what, JSON.stringify({ what }), { headers: { 'content-type': 'application/json' } })).json()
  t.match(await post2('error'), { name: 'Error', message: 'mine', again: 'mine' })
  t.match(await post2('bigint'), {
    name: 'TypeError', message: /result of the transaction "x" cannot be recorded: .*BigInt/
  })
  t.match(await post2('cycle'), { name: 'TypeError', message: /circular/ })
  t.same(await run(url, 'select * from effects'), [])
  t.same(await run(url, "select * from idempotency_transactions where name <> ''"), [])
})

t.test('names, options and the place of the call are checked', async t => {
  const url = await newDatabase(await postgresServer(), 'public.my_table')
  const pool = poolOf(t, url)
  const via = viaPg(pool)
  for (const table of ['', 'a b', 'a.b.c', '1', '"x"', 'a;drop', 7]) {
    t.throws(() => transactions(via, { table: table as string }), { name: 'TypeError', message: /option "table"/ })
  }
  for (const retries of [-1, 1.5, NaN]) t.throws(() => transactions(via, { retries }), { message: /option "retries"/ })
  for (const idleTimeout of [0, 1.5, 2 ** 31, '0ms', '10', 'soon', null]) {
    const message = /option "idleTimeout" must be whole milliseconds from 1 to 2147483647, or text with a unit/
    t.throws(() => transactions(via, { idleTimeout: idleTimeout as number }), { name: 'TypeError', message })
  }
  const transaction = transactions(via, { table: 'public.my_table', retries: 0, idleTimeout: '1m' })
  t.match(transaction.schema, '"public"."my_table"')
  await t.rejects(transaction.forget(undefined as unknown as string), { name: 'TypeError' })
  await t.rejects(transaction.sweep(0), { name: 'TypeError' })
  await t.rejects(transaction({} as never, 'x', () => 1), { name: 'TypeError', message: /without the plugin/ })
  const said: Record<string, string> = {}
  const { post } = await startApp(t, { store: new MemoryStore(), hook: 'preHandler' }, app => {
    app.addHook('onRequest', async request => {
      said['onRequest'] = await transaction(request, 'onRequest', () => 1).then(
        () => 'ran', (error: Error) => error.message
      )
    })
    app.addHook('preValidation', async request => {
      said['early'] = await transaction(request, 'early', () => 1).then(() => 'ran', (error: Error) => error.message)
    })
    app.post('/', async request => {
      for (const name of ['', 'x'.repeat(256), 'nul\0', '\ud800', undefined]) {
        said[String(name).slice(0, 3)] = await transaction(request, name as string, () => 1).then(
          () => 'ran', (error: Error) => error.name
        )
      }
      const twice = await Promise.allSettled([
        transaction(request, 'twice', () => 1), transaction(request, 'twice', () => 2)
      ])
      said['twice'] = twice.map(({ status }) => status).join()
      return await transaction(request, 'y'.repeat(255), () => 'ok')
    })
  })
  t.equal((await post('k')).text, 'ok')
  t.match(said, {
    onRequest: /not claimed; call this from the handler/,
    early: /not claimed; call this from the handler/,
    '': 'TypeError',
    xxx: 'TypeError',
    nul: 'TypeError',
    '\ud800': 'TypeError',
    und: 'TypeError',
    twice: 'fulfilled,rejected'
  })
})

t.test('G18: another body under the key gets 409, though the store has forgotten the key', async t => {
  const url = await newDatabase(await postgresServer())
  const transaction = transactions(viaPg(poolOf(t, url)))
  const { post, app } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => await transaction(
      request, 'x', tx => tx.query(INSERT, [request.idempotency.key, 'x', 1]).then(() => ({ at: 1 }))
    ))
  })
  const first = await post('k', '{"a":1}')
  await app.idempotency.forget({ key: 'k' })
  const other = await post('k', '{"a":2}')
  t.match([other.status, other.json()['code']], [409, 'idempotency_key_mismatch'])
  t.match(String(other.json()['message']), 'different request body')
  const again = await post('k', '{"a":1}')
  t.same([again.status, again.text, again.replayed], [200, first.text, false])
  t.same((await run(url, 'select key from effects')), [{ key: 'k' }])
})

t.test('G18: the request body is waited for, and one that nobody has begun to read is an error', async t => {
  const url = await newDatabase(await postgresServer())
  const transaction = transactions(viaPg(poolOf(t, url)))
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.addContentTypeParser('text/lazy', (_request, payload, done) => done(null, payload))
    app.post('/read', async request => {
      const chunks: Buffer[] = []
      const body = request.body as NodeJS.ReadableStream
      const end = new Promise(resolve => { body.on('data', chunk => chunks.push(chunk as Buffer)).on('end', resolve) })
      const result = await transaction(request, 'x', tx => tx.query(INSERT, ['k', 'x', 1]).then(() => 1))
      await end
      return { result, body: Buffer.concat(chunks).toString() }
    })
    app.post('/unread', async (request, reply) => {
      const said = await transaction(request, 'x', () => 1).then(() => 'ran', (error: Error) => error.message)
      ;(request.body as NodeJS.ReadableStream).resume()
      return await reply.code(500).send({ said })
    })
  })
  const headers = { 'content-type': 'text/lazy' }
  t.same((await post('k', ['he', 'llo'] as never, { path: '/read', headers })).json(), { result: 1, body: 'hello' })
  t.match((await post('l', ['he', 'llo'] as never, { path: '/unread', headers })).json(), { said: /body must be read/ })
})

t.test('G8, G18: a request body that is cut off while awaited is an error, and nothing is written', async t => {
  const url = await newDatabase(await postgresServer())
  const transaction = transactions(viaPg(poolOf(t, url)))
  const said: string[] = []
  const waits = gate()
  const { app, port } = await startApp(t, { store: new MemoryStore() }, app => {
    app.addContentTypeParser('text/lazy', (_request, payload, done) => done(null, payload))
    app.post('/', async (request, reply) => {
      const body = request.body as Readable
      body.on('error', () => {}).resume()
      const result = transaction(request, 'x', tx => tx.query(INSERT, ['k', 'x', 1]).then(() => 'ran'))
      waits.open()
      said.push(await result.catch((error: Error) => error.message))
      return await reply.code(500).send()
    })
  })
  const upload = await cutting(port, head('/', 'k', 'Content-Type: text/lazy\r\nContent-Length: 10\r\n') + 'five!')
  await waits.promise
  upload.destroy()
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'freed', 'the end of the handler')
  t.same(said, ['The request body was cut off'])
  t.same(await run(url, 'select * from effects'), [])
})

t.test('rows expire, run again, and are swept', async t => {
  const url = await newDatabase(await postgresServer())
  const transaction = transactions(viaPg(poolOf(t, url)))
  const { post, app } = await startApp(t, { store: new MemoryStore(), lease: 100, ttl: 1 }, app => {
    app.post('/', async request => await transaction(
      request, 'x', tx => tx.query(INSERT, [request.idempotency.key, 'x', 1]).then(() => 1)
    ))
  })
  for (const key of ['a', 'b', 'c']) t.equal((await post(key)).status, 200)
  await run(url, "update idempotency_transactions set expires_at = now() - interval '1 s'")
  await app.idempotency.forget({ key: 'a' })
  t.equal((await post('a')).status, 200)
  t.same((await run(url, 'select key, count(*)::int from effects group by key order by key')), [
    { key: 'a', count: 2 }, { key: 'b', count: 1 }, { key: 'c', count: 1 }
  ])
  await run(url, "update idempotency_transactions set expires_at = now() + interval '1 h' where expires_at > now()")
  t.equal(await transaction.sweep(1), 1)
  t.equal(await transaction.sweep(), 1)
  t.equal(await transaction.sweep(), 0)
  t.equal((await run(url, 'select 1 from idempotency_transactions')).length, 1)
})

t.test('G18: work that commits by itself is told, and not run again', async t => {
  const url = await newDatabase(await postgresServer())
  const transaction = transactions(viaPg(poolOf(t, url)))
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => await transaction(request, 'x', async tx => {
      await tx.query(INSERT, ['k', 'x', 1])
      await tx.query('commit')
      throw new Error('after that')
    }))
  })
  t.equal((await post('k')).status, 500)
  const again = await post('k')
  t.same([again.status, again.json()['code']], [409, 'idempotency_outcome_unknown'])
  t.equal((await run(url, 'select 1 from effects')).length, 1)
})

t.test('G18: a session idle in its transaction is ended, nothing is committed, the process goes on', async t => {
  const url = await newDatabase(await postgresServer())
  const pool = poolOf(t, url)
  const transaction = transactions(viaPg(pool), { idleTimeout: '50ms' })
  let idle = true
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => await transaction(request, 'x', async tx => {
      await tx.query(INSERT, ['k', 'x', 1])
      if (idle) {
        const ended = new Promise(resolve => tx.once('error', resolve))
        await ended
        await sleep(1)
      }
      return 1
    }))
  })
  t.equal((await post('k')).status, 500)
  idle = false
  t.equal((await post('k')).status, 200)
  t.equal((await run(url, 'select 1 from effects')).length, 1)
})
