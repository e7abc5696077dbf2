import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import t from 'tap'
import { MemoryStore, RedisStore, type IdempotencyStore, type RedisStoreClient } from '../lib/index.ts'
import { derivedKey } from '../lib/protocol/derived-key.ts'
import { gate, start, STORES, stopRedis } from './fixtures/app.ts'
import { plain } from './fixtures/broken-stores.ts'
import { faulty, listen } from './fixtures/faulty.ts'

t.teardown(stopRedis)

const UUID_8 = /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/

for (const mode of STORES) {
  t.test(`G17: keyFor is the same everywhere, and another for each scope, key, name and prefix (${mode})`, async t => {
    const seen: string[] = []
    const options = { scope: (request: FastifyRequest) => request.headers['x-scope'] as string | undefined }
    const routes = (
      app: FastifyInstance
    ): unknown => app.post('/', async (request: FastifyRequest, reply: FastifyReply) => {
      const { keyFor } = request.idempotency
      seen.push(keyFor('a'))
      return await reply.code(503).send([keyFor('a'), keyFor('b'), keyFor(''), keyFor('\ud800'), keyFor('\ud801')])
    })
    const one = await start(t, mode, { options, routes })
    const shared = { ...options, store: one.app.idempotency.store }
    const keys = async (app: typeof one, key: string, scope?: string): Promise<string[]> => {
      const headers = {
        'content-type': 'application/json', 'idempotency-key': key, ...(scope === undefined ? {} : { 'x-scope': scope })
      }
      return (await app.post(key, '{}', { headers })).json() as unknown as string[]
    }
    if (mode === 'memory') {
      const other = await start(t, mode, { options: { ...shared, keyPrefix: 'idempotency' }, routes })
      const same = await start(t, mode, { options: shared, routes })
      t.same(await keys(same, 'k'), await keys(one, 'k'))
      t.not((await keys(other, 'k'))[0], (await keys(one, 'k'))[0])
    }
    const all = [
      await keys(one, 'k'), await keys(one, 'k1'), await keys(one, 'k', ''), await keys(one, 'k', '1'),
      await keys(one, '1k')
    ].flat()
    t.equal(new Set(all).size, all.length)
    for (const key of all) t.match(key, UUID_8)
    t.same(await keys(one, 'k'), all.slice(0, 5), 'on every attempt')
  })
}

t.test('G17: a derived key does not change with a release of this package', async t => {
  t.equal(derivedKey(
    'idempotency:', 'Bearer t', '8e03978e-40d5-43e8-bc93-6894a57f9324', 'charge'
  ), 'aef1b045-7331-8c9f-a80f-a53fbe66f99e')
})

t.test('without a key a step runs, and derived keys are random for each request', async t => {
  const { post } = await start(t, 'memory', {
    routes: app => app.post('/', async request => {
      const { step, keyFor, signal } = request.idempotency
      const result = await step('one', async context => (
        { at: new Date(0), key: context.key, aborted: context.signal.aborted || signal.aborted }
      ))
      return [keyFor('one'), keyFor('two'), result]
    })
  })
  const answers = [await post(undefined, '{}'), await post(undefined, '{}')].map(
    answer => answer.json() as unknown as [string, string, object]
  )
  for (const [one, , result] of answers) {
    t.same(result, { at: '1970-01-01T00:00:00.000Z', key: one, aborted: false })
    t.match(one, UUID_8)
  }
  t.equal(new Set(answers.flatMap(([one, two]) => [one, two])).size, 4)
})

t.test('the name of a derived key must be a string, with a key and without', async t => {
  const { post } = await start(t, 'memory', {
    routes: app => app.post('/', async request => request.idempotency.keyFor(7 as unknown as string))
  })
  for (const key of ['k', undefined]) {
    t.match((await post(key, '{}')).json(), {
      statusCode: 500, message: 'The name of a derived key must be a string, got number'
    })
  }
})

t.test('steps and derived keys before the key is known are refused', async t => {
  const { post } = await start(t, 'memory', {
    before: app => app.addHook('preValidation', async request => {
      if (request.headers['x-step'] === '1') await request.idempotency.step('early', () => 1)
      request.idempotency.keyFor('early')
    }),
    options: { hook: 'preHandler' },
    routes: app => app.post('/', async () => 'ok')
  })
  const headers = { 'content-type': 'application/json', 'idempotency-key': 'k', 'x-step': '1' }
  t.match(
    (await post('k', '{}', { headers })).json(), { message: /idempotency\.step was used before the key is known/ }
  )
  t.match((await post('k', '{}')).json(), { message: /idempotency\.keyFor was used before the key is known/ })
})

t.test('a store without record and recorded: a step rejects and names them, derived keys do not need them', async t => {
  const { record, recorded, ...rest } = plain(new MemoryStore())
  for (const store of [rest, { ...rest, record }, { ...rest, recorded }] as IdempotencyStore[]) {
    const { post, app } = await start(t, 'memory', {
      options: { store },
      routes: app => {
        app.post('/', async request => await request.idempotency.step('one', () => 1))
        app.post('/key', async request => request.idempotency.keyFor('one'))
      }
    })
    t.match(
      (await post('k', '{}')).json(), { statusCode: 500, message: /store with the methods "record" and "recorded"/ }
    )
    t.match((await post('key', '{}', { path: '/key' })).text, UUID_8)
    t.same((await app.idempotency.inspect({ key: 'k' }))?.steps, [])
  }
})

t.test('a store that does not answer: a step is a 503, late records are used, bypassed steps not recorded', async t => {
  const faults: Parameters<typeof faulty>[0] = {}
  const store = faulty(faults)
  let record: (() => Promise<void>) | undefined
  const [late, noted] = [gate(), gate()]
  const lines: string[] = []
  const { inner } = store
  const slow: IdempotencyStore = {
    ...store,
    async record (...args) {
      await record?.()
      setImmediate(noted.open)
      return inner.record(...args)
    },
    recorded: key => inner.recorded(key)
  }
  let charged = 0
  const { post } = await start(t, 'memory', {
    options: { store: slow, storeTimeout: 50, onStoreError: 'bypass' },
    fastify: { logger: { stream: { write: (line: string) => { lines.push(line) } } } },
    routes: app => {
      app.post('/', async request => ({ charge: await request.idempotency.step('charge', () => ++charged) }))
      app.post('/again', async request => {
        const { step } = request.idempotency
        const work = (): number => ++charged
        const code = await step('charge', work).catch((error: { code: string }) => error.code)
        record = undefined
        late.open()
        await noted.promise
        return { code, charge: await step('charge', work) }
      })
      app.post('/bypass', async request => {
        const { step, keyFor, key } = request.idempotency
        return [key, await step('charge', ({ key }) => key), keyFor('charge'), await step('more', () => 1)]
      })
    }
  })
  record = async () => { throw new Error('away') }
  const refused = await post('k', '{}')
  t.same([refused.status, refused.json()['code'], refused.headers['retry-after']], [
    503, 'idempotency_store_unavailable', '1'
  ])
  t.ok(lines.some(line => line.includes('a step could not be recorded')))
  record = async () => { await late.promise }
  t.same((await post('late', '{}', { path: '/again' })).json(), { code: 'idempotency_store_unavailable', charge: 2 })
  faults.claim = () => { throw new Error('away') }
  const [key, given, own] = (await post('b', '{}', { path: '/bypass' })).json() as unknown as string[]
  t.same([key, given], ['b', own])
  t.equal(lines.filter(line => line.includes('are not recorded')).length, 1)
})

t.test('a first execution reads nothing, and a lease that nobody confirmed is confirmed before a step', async t => {
  const inner = new MemoryStore()
  const calls: string[] = []
  const counted = plain(inner)
  const counting = Object.fromEntries(Object.entries(counted).map(([name, method]) => [
    name,
    async (...args: unknown[]) => {
      calls.push(name)
      return (method as (...args: unknown[]) => unknown)(...args)
    }
  ])) as unknown as IdempotencyStore
  delete counting.watch
  let renew = counting.renew
  counting.renew = async (...args) => await renew(...args)
  const { post } = await start(t, 'memory', {
    options: { store: counting, lease: 100 },
    routes: app => {
      app.post('/', async (request, reply) => {
        const { step, attempt } = request.idempotency
        for (const name of ['a', 'b', 'c']) await step(name, () => name)
        await step('d', () => 'd', { interrupted: () => 'x' })
        return await reply.code(attempt === 1 ? 500 : 200).send('ok')
      })
      app.post('/plain', async () => 'ok')
      app.post<{ Params: { renewed: string } }>('/frozen/:renewed', async request => {
        // As after a freeze: the lease has passed, and no timer has told.
        renew = async () => { throw new Error('away') }
        const end = performance.now() + 110
        while (performance.now() < end);
        renew = async () => request.params.renewed === 'true'
        return await request.idempotency.step('a', () => { calls.push('ran') }).catch(
          (error: { code: string }) => { calls.push(error.code) }
        )
      })
    }
  })
  await post('plain', '{}', { path: '/plain' })
  t.same(calls.splice(0), ['claim', 'complete'])
  await post('k', '{}')
  t.same(calls.splice(0), ['claim', 'record', 'record', 'record', 'record', 'record', 'release'])
  await post('k', '{}')
  t.same(calls.splice(0), ['claim', 'recorded', 'complete'])
  for (const renewed of ['false', 'true']) await post(renewed, '{}', { path: `/frozen/${renewed}` })
  t.same(calls.filter(call => call === 'ran' || call.startsWith('idempotency')), ['idempotency_in_progress', 'ran'])
})

t.test('G14: steps count against maxBytes of the MemoryStore, and one that does not fit is refused', async t => {
  const store = new MemoryStore({ maxBytes: 4_000 })
  const { post } = await start(t, 'memory', {
    options: { store },
    routes: app => app.post('/', async (request, reply) => {
      const { step } = request.idempotency
      await step('a', () => 'x'.repeat(2_000))
      const bytes = store.bytes
      const code = await step('b', () => 'x'.repeat(2_000)).catch((error: { code: string }) => error.code)
      return await reply.code(500).send({ bytes, code })
    })
  })
  const answer = (await post('k', '{}')).json()
  t.equal(answer['code'], 'idempotency_store_unavailable')
  t.ok(Number(answer['bytes']) > 2_000)
  t.ok(store.bytes > 2_000 && store.bytes <= 4_000)
  for (let i = 0; i < 5; i++) {
    await post(`k${i}`, '{}')
    t.ok(store.bytes <= 4_000)
  }
  t.match(await store.read('none'), undefined)
})

for (const mode of STORES) {
  t.test(`G16: a key lost during a step: nothing is recorded, and the holder gets a 409 (${mode})`, async t => {
    const entered = gate()
    const forgotten = gate()
    const lost = listen(t, 'lease-lost')
    const codes: string[] = []
    const { post, app } = await start(t, mode, {
      routes: app => app.post('/', async (request, reply) => {
        const { step, attempt, signal } = request.idempotency
        const work = async (): Promise<number> => {
          entered.open()
          await forgotten.promise
          return attempt
        }
        const failed = (error: { code: string }): void => { codes.push(`${error.code} ${signal.aborted}`) }
        // Of two that end at once, the second meets a lease that is lost already.
        await Promise.all([step('a', work).catch(failed), step('b', work).catch(failed)])
        return await reply.code(500).send({ failed: codes.length })
      })
    })
    const holder = post('k', '{}')
    await entered.promise
    await app.idempotency.forget({ key: 'k' })
    forgotten.open()
    t.match((await holder).json(), { failed: 2 })
    t.same(codes, Array(2).fill('idempotency_in_progress true'))
    t.equal(lost.length, 1)
    t.same((await app.idempotency.inspect({ key: 'k' }))?.steps, [])
  })

  t.test(`G16: steps outlive a store that has lost the key: the failure records them anew (${mode})`, async t => {
    let charged = 0
    const { post, app } = await start(t, mode, {
      routes: app => app.post('/', async (request, reply) => {
        const { step, attempt } = request.idempotency
        const charge = await step('charge', () => ++charged)
        if (request.headers['x-forget'] !== undefined) await app.idempotency.forget({ key: 'k' })
        return await reply.code(500).send({ charge, attempt })
      })
    })
    const headers = { 'content-type': 'application/json', 'idempotency-key': 'k', 'x-forget': '1' }
    t.match((await post('k', '{}', { headers })).json(), { charge: 1 })
    t.same((await app.idempotency.inspect({ key: 'k' }))?.steps, ['charge'])
    t.match((await post('k', '{}')).json(), { charge: 1 })
    t.equal((await post('k', '{"other":1}')).json()['code'], 'idempotency_key_mismatch')
  })

  t.test(`G2: a late holder does not take the key of the request that it was bound to meanwhile (${mode})`, async t => {
    const entered = gate()
    const late = gate()
    let runs = 0
    const { post, app } = await start(t, mode, {
      routes: app => {
        app.post<{ Body: { late: boolean } }>('/', async (request, reply) => {
          if (request.body.late) {
            entered.open()
            await late.promise
            return 'late'
          }
          runs = await request.idempotency.step('charge', () => runs + 1)
          return await reply.code(request.idempotency.attempt === 1 ? 500 : 200).send({ runs })
        })
      }
    })
    const holder = post('k', '{"late":true}')
    await entered.promise
    await app.idempotency.forget({ key: 'k' })
    t.equal((await post('k', '{"late":false}')).status, 500)
    late.open()
    t.match((await holder).json(), { code: 'idempotency_key_mismatch' })
    t.match(await app.idempotency.inspect({ key: 'k' }), { state: 'freed', steps: ['charge'] }, 'the key is free again')
    t.same((await post('k', '{"late":false}')).json(), { runs: 1 })
  })

  t.test(`a step in a hook on a replay is an error that says so, and does not run (${mode})`, async t => {
    const said: unknown[] = []
    const { post } = await start(t, mode, {
      before: app => app.addHook('onSend', async request => {
        if (!request.idempotency.replayed) return
        await request.idempotency.step('hook', () => said.push('ran')).catch((error: Error) => said.push(error.message))
      }),
      routes: app => app.post('/', async () => 'ok')
    })
    await post('k', '{}')
    t.equal((await post('k', '{}')).text, 'ok')
    t.same(said, ['The step "hook" needs the idempotency key, which this request does not hold'])
  })
}

t.test('G16: RedisStore with minReplicas: a step that too few replicas have is not recorded', async t => {
  const results: Array<Array<[Error | null, unknown]> | null> = []
  const sent: Array<Array<string | number | Buffer>> = []
  const client: RedisStoreClient = {
    callBuffer: async () => { throw new Error('not in the pipeline') },
    pipeline: commands => {
      sent.push(commands.map(([, ...args]) => String(args[0])))
      return { exec: async () => results.shift() ?? null }
    }
  }
  const store = new RedisStore(client, { minReplicas: 2, replicaTimeout: 50 })
  const record = async (result?: string): Promise<unknown> => await store.record('k', 't', 'f', 'charge', result)
  for (const [answer, recording] of [
    ['w', { outcome: 'recorded' }],
    ['s', { outcome: 'known', result: undefined }],
    ['r"1"', { outcome: 'known', result: '"1"' }],
    ['l', { outcome: 'lost' }]
  ] as const) {
    results.push([[null, Buffer.from(answer)], [null, 2]])
    t.strictSame(await record('"2"'), recording)
    results.push([[null, Buffer.from(answer)], [null, 1]])
    await t.rejects(record('"2"'), { message: '1 of 2 replicas have the write after 50 ms' }, answer)
  }
  results.push([[new Error('away'), undefined], [new Error('away'), undefined]])
  await t.rejects(record(), { cause: { message: 'away' } })
  results.push([[null, Buffer.from('?')], [null, 2]])
  await t.rejects(record(), { name: 'StoreAnswerError' })
  t.strictSame(sent, Array(10).fill(['EVAL', 'WAIT']), 'the write and WAIT go together')
})
