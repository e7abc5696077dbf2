import t from 'tap'
import type { StoreClaim, IdempotencyError } from '../../lib/index.ts'
import { MemoryStore } from '../../lib/index.ts'
import { gate, start, until } from '../fixtures/app.ts'
import { fails, faulty, hangs, listen, type Faults } from '../fixtures/faulty.ts'
import { connect, startRedis } from '../fixtures/redis.ts'

for (const answers of ['at once', 'later']) {
  t.test(`G10: a kept response that cannot be sent is an error; the store answers ${answers}`, async t => {
    const store = new MemoryStore()
    const claim = store.claim.bind(store)
    const damaged = (...args: Parameters<typeof claim>): StoreClaim => {
      const found = claim(...args)
      if (found.outcome === 'completed') found.result.headers.push(['x-damaged', 'a\nb'])
      return found
    }
    const options = {
      store: Object.assign(
        store, { claim: answers === 'later' ? async (...args: Parameters<typeof claim>) => damaged(...args) : damaged }
      )
    }
    const { post } = await start(t, 'memory', { options, routes: app => app.post('/', async () => 'once') })
    t.match(await post('k'), { status: 200 })
    t.match(await post('k'), { status: 500 })
    t.match(await post('k'), { status: 500 })
    t.match(await post('another'), { status: 200 })
  })
}

for (const [what, fault] of [['fails', fails], ['hangs', hangs]] as const) {
  t.test(`G10: a store that ${what} before the handler is a 503, or is bypassed`, async t => {
    let runs = 0
    const events = listen(t, 'store-error')
    const store = faulty({ claim: fault })
    const { post } = await start(t, 'memory', {
      options: { store, storeTimeout: 20, retryAfter: '6.1s' },
      routes: app => {
        app.post('/', async () => ({ runs: ++runs }))
        app.post('/bypass', {
          config: { idempotency: { onStoreError: 'bypass' } }
        }, async request => ({ runs: ++runs, idempotency: request.idempotency }))
      }
    })
    const answer = await post('k', '{}')
    t.same(
      [answer.status, answer.json().code, answer.headers['retry-after']], [503, 'idempotency_store_unavailable', '7']
    )
    t.equal(runs, 0)
    const { runs: bypassed, idempotency: seen } = (await post('k', '{}', { path: '/bypass' })).json()
    t.match([bypassed, seen], [1, { id: /^[0-9a-f]{40}$/, attempt: 1, replayed: false }])
    t.equal(events.length, 2)
    t.ok(events.every(({ error }) => error instanceof Error))
  })
}

t.test('G10: a synchronous store that throws is a 503 as well', async t => {
  const store = Object.assign(new MemoryStore(), { claim: fails })
  const { post } = await start(t, 'memory', { options: { store }, routes: app => app.post('/', async () => 'ok') })
  t.equal((await post('k', '{}')).status, 503)
})

t.test('G10: a store whose watch fails is polled by those who wait', async t => {
  const [entered, finish] = [gate(), gate()]
  let watched = 0
  const errors = listen(t, 'store-error')
  const memory = new MemoryStore()
  const store = Object.assign(memory, {
    claim: async (...args: Parameters<MemoryStore['claim']>) => MemoryStore.prototype.claim.apply(memory, args),
    watch: () => {
      watched++
      throw new Error('not connected')
    }
  })
  const { post } = await start(t, 'memory', {
    options: { store, inFlight: { wait: 60_000 } },
    routes: app => app.post('/', async () => {
      entered.open()
      await finish.promise
      return 'ok'
    })
  })
  const first = post('k', '{}')
  await entered.promise
  const waiter = post('k', '{}')
  await until(() => watched > 1, 'two turns')
  finish.open()
  await first
  const { status, text, headers } = await waiter
  t.same([status, text, headers['idempotent-replayed']], [200, 'ok', 'true'])
  t.match(errors.map(({ error }) => String(error)), ['Error: not connected'], 'told once')
})

t.test('G10: a store that grants a key and then refuses its token does not hang a reply', async t => {
  const events = listen(t, 'store-error')
  const store = Object.assign(new MemoryStore(), { complete: () => false })
  const { post } = await start(t, 'memory', { options: { store }, routes: app => app.post('/', async () => 'ok') })
  const answer = await post('k', '{}')
  t.same([answer.status, answer.text], [200, 'ok'])
  t.match(String(events[0]?.error), /grants the key to this token, and then refuses it/)
})

t.test('G10: a claim granted after its deadline is given back', async t => {
  const late = gate()
  const faults: Faults = { claim: async () => await late.promise }
  const store = faulty(faults)
  const { post, app } = await start(t, 'memory', {
    options: { store, storeTimeout: 20 },
    routes: app => app.post('/', async request => ({ attempt: request.idempotency?.attempt }))
  })
  t.equal((await post('k', '{}')).status, 503)
  faults.claim = undefined
  late.open()
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'freed', 'the key is given back')
  await post('k', '{}')
  // A late answer that grants nothing has nothing to give back; a late failure is nothing new.
  for (const then of [() => {}, fails]) {
    const again = gate()
    faults.claim = async () => {
      await again.promise
      then()
    }
    t.equal((await post('k', '{}')).status, 503)
    again.open()
    await new Promise(resolve => setImmediate(resolve))
  }
  faults.claim = undefined
  t.equal((await post('k', '{}')).replayed, true)
})

t.test('G10: a renewal that is answered after the end changes nothing', async t => {
  const renewing = gate()
  const answer = gate()
  const faults: Faults = {
    renew: async () => {
      renewing.open()
      await answer.promise
      fails()
    }
  }
  const errors = listen(t, 'store-error')
  const { post } = await start(t, 'memory', {
    options: { store: faulty(faults), lease: 120 },
    before: app => { app.addContentTypeParser('text/lazy', (_request, _payload, done) => done(null)) },
    routes: app => app.post('/', async () => {
      await renewing.promise
      return 'ok'
    })
  })
  t.equal((
    await post('k', 'x'.repeat(500_000), { headers: { 'content-type': 'text/lazy', 'idempotency-key': 'k' } })
  ).text, 'ok')
  answer.open()
  await new Promise(resolve => setImmediate(resolve))
  t.equal(errors.length, 0)
})

t.test('errors of a custom form and of the key option reach the client', async t => {
  const { post } = await start(t, 'memory', {
    routes: app => {
      app.post(
        '/key', { config: { idempotency: { key: async () => { throw new Error('no key today') } } } }, async () => 'ok'
      )
      app.post('/undefined', {
        config: {
          idempotency: {
            errors: (error: IdempotencyError) => {
              if (error.code === 'idempotency_key_invalid') return undefined
              return error
            }
          }
        }
      }, async () => 'ok')
    }
  })
  t.match((await post('k', '{}', { path: '/key' })).json(), { statusCode: 500, message: 'no key today' })
  t.same([
    (await post('', '{}', { path: '/undefined' })).status, (await post('', '{}', { path: '/undefined' })).text
  ], [400, ''])
})

t.test('G10: Redis that is killed or frozen is a 503 within storeTimeout, and all is well once it is back', async t => {
  let redis = await startRedis()
  t.teardown(async () => await redis.stop())
  const client = connect(redis.port)
  t.teardown(() => client.disconnect())
  let runs = 0
  const { post } = await start(t, 'memory', {
    options: { redis: client, storeTimeout: 300 }, routes: app => app.post('/', async () => ({ runs: ++runs }))
  })
  const first = await post('k', '{}')
  redis.process.kill('SIGSTOP')
  t.equal((await post('k', '{}')).status, 503)
  redis.process.kill('SIGCONT')
  await until(async () => (await post('k', '{}')).text === first.text, 'the replay, once Redis goes on')
  await redis.kill()
  t.equal((await post('k', '{}')).status, 503)
  redis = await redis.restart()
  await until(async () => (await post('k2', '{}')).status === 200, 'Redis is back')
  t.equal((await post('k2', '{}')).replayed, true)
})

t.test('G10: at most a thousand operations are left unanswered: no more are sent until the store answers', async t => {
  const late = gate()
  const faults: Faults = { claim: async () => await late.promise }
  const store = faulty(faults)
  const { app, post } = await start(
    t, 'memory', { options: { store, storeTimeout: 20 }, routes: app => app.post('/', async () => 'ok') }
  )
  const flood = async (from: number, to: number) => await Promise.all(
    Array.from({ length: to - from }, async (_, i) => (
      await app.inject({ method: 'POST', url: '/', headers: { 'idempotency-key': `k${from + i}` } })
    ).statusCode)
  )
  t.ok((await flood(0, 1_000)).every(status => status === 503))
  t.ok((await flood(1_000, 1_100)).every(status => status === 503))
  t.ok(store.calls.length < 1_020, 'but for one in each storeTimeout')
  delete faults.claim
  late.open()
  await until(async () => (await post('k', '{}')).text === 'ok', 'the store is back')
  await until(
    async () => (await app.idempotency.inspect({ key: 'k0' }))?.state === 'freed', 'what was granted late is given back'
  )
})

t.test('G10: operations that were lost for good do not shut the store out once it answers again', async t => {
  const faults: Faults = { claim: hangs }
  const { app, post } = await start(t, 'memory', {
    options: { store: faulty(faults), storeTimeout: 20 }, routes: app => app.post('/', async () => 'ok')
  })
  await Promise.all(Array.from({ length: 1_000 }, async (_, i) => await app.inject(
    { method: 'POST', url: '/', headers: { 'idempotency-key': `k${i}` } }
  )))
  t.equal((await post('k', '{}')).status, 503)
  delete faults.claim
  await until(async () => (await post('k', '{}')).text === 'ok', 'the store is used again')
  t.equal((await post('l', '{}')).text, 'ok', 'by all')
})

t.test('G10: a store that takes longer than the lease is a 503, not an endless claim', async t => {
  const store = faulty({ claim: async () => await new Promise(resolve => setTimeout(resolve, 150)) })
  let runs = 0
  const { app, post } = await start(
    t, 'memory', { options: { store, lease: 120 }, routes: app => app.post('/', async () => ({ runs: ++runs })) }
  )
  t.match((await post('k', '{}')).json(), { code: 'idempotency_store_unavailable' })
  t.same([store.calls.filter(name => name === 'claim').length, runs], [3, 0])
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'freed', 'the key is given back')
})

t.test('G10: a store that answers a claim with nothing is a 503', async t => {
  const store = Object.assign(new MemoryStore(), { claim: async () => undefined as unknown as StoreClaim })
  const { post } = await start(t, 'memory', { options: { store }, routes: app => app.post('/', async () => 'ok') })
  t.match((await post('k', '{}')).json(), { code: 'idempotency_store_unavailable' })
})

t.test('G10: a claim that failed may have been granted all the same: it is given back', async t => {
  const store = faulty({})
  const { claim } = store
  let lost = true
  store.claim = async (...args) => {
    const answer = await claim(...args)
    if (!lost) return answer
    lost = false
    return fails()
  }
  const { post } = await start(t, 'memory', {
    options: { store }, routes: app => app.post('/', async request => ({ attempt: request.idempotency?.attempt }))
  })
  t.equal((await post('k', '{}')).status, 503)
  t.same((await post('k', '{}')).json(), { attempt: 1 }, 'nothing was executed before')
})
