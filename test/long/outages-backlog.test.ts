import t from 'tap'
import { MemoryStore } from '../../lib/index.ts'
import { storeKey } from '../../lib/protocol/fingerprint.ts'
import { failBehind, gate, start, until } from '../fixtures/app.ts'
import { fails, faulty, listen, type Faults } from '../fixtures/faulty.ts'

t.test('G10: a response that cannot be kept is sent all the same, and kept in the background', async t => {
  const faults: Faults = { complete: fails, release: fails }
  const store = faulty(faults)
  let runs = 0
  const { post, app } = await start(t, 'memory', {
    options: { store, lease: 1_000 },
    routes: app => {
      app.post('/', async () => ({ runs: ++runs }))
      app.post('/fail', async () => { throw new Error('fails') })
    }
  })
  const first = await post('k', '{}')
  t.equal(first.status, 200)
  t.equal((await post('k', '{}')).json().code, 'idempotency_in_progress')
  t.equal((await post('f', '{}', { path: '/fail' })).status, 500)
  await until(() => store.calls.filter(call => call === 'complete').length >= 3, 'a third try')
  delete faults.complete
  delete faults.release
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'completed', 'the response is kept')
  await until(async () => (await app.idempotency.inspect({ key: 'f' }))?.state === 'freed', 'the key is free')
  t.equal((await post('k', '{}')).text, first.text)
  t.equal(runs, 1)
})

t.test('G10: the end of the response does not disturb the keeping in the background', async t => {
  for (const outcome of ['kept', 'freed']) {
    let tries = 0
    const once = (): void => { if (tries++ === 0) fails() }
    const store = faulty({ complete: once, release: once })
    const { post, app } = await start(t, 'memory', {
      options: { store },
      routes: app => app.post(
        '/', async (_request, reply) => await reply.code(outcome === 'kept' ? 201 : 500).send(outcome)
      )
    })
    t.equal((await post('k', '{}')).text, outcome)
    await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state !== 'held', 'the second try')
    const step = outcome === 'kept' ? 'complete' : 'release'
    t.same(store.calls, ['claim', step, 'renew', step], 'a renewal first: no body is queued while the store is away')
    const retry = await post('k', '{}')
    t.same([retry.text, retry.replayed], [outcome, outcome === 'kept'])
  }
})

t.test('G10: while the lease cannot be renewed, no body is sent to the store again', async t => {
  const faults: Faults = { complete: fails, renew: fails }
  const store = faulty(faults)
  const { post, app } = await start(t, 'memory', { options: { store }, routes: app => app.post('/', async () => 'ok') })
  await post('k', '{}')
  await until(() => store.calls.length >= 4, 'two renewals')
  t.same(store.calls.slice(0, 4), ['claim', 'complete', 'renew', 'renew'])
  delete faults.renew
  delete faults.complete
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'completed', 'the response is kept')
})

t.test('G10: keeping in the background ends with the lease, not when the store loses the record', async t => {
  const faults: Faults = { complete: fails }
  const store = faulty(faults)
  const lost = listen(t, 'lease-lost')
  const { post, app } = await start(
    t, 'memory', { options: { store, keyPrefix: '' }, routes: app => app.post('/', async () => 'ok') }
  )
  await post('gone', '{}')
  await app.idempotency.forget({ key: 'gone' })
  delete faults.complete
  await until(
    async () => (await app.idempotency.inspect({ key: 'gone' }))?.state === 'completed', 'the response is kept'
  )

  faults.complete = fails
  await post('taken', '{}')
  await app.idempotency.forget({ key: 'taken' })
  store.inner.claim(storeKey('', undefined, 'taken'), { token: 'a thief', lease: 60_000, ttl: 60_000, takeover: true })
  delete faults.complete
  await until(() => lost.length === 2, 'the loss')
  const calls = store.calls.length
  await new Promise(resolve => setTimeout(resolve, 250))
  t.equal(store.calls.length, calls, 'nothing is tried any more')
  t.equal((await app.idempotency.inspect({ key: 'taken' }))?.state, 'held')
})

t.test('G10: outcomes that wait for the store are bounded: past 64 MiB without bodies, then not at all', async t => {
  // Renewals fail as well, or bodies that are refused again and again would be let go.
  const faults: Faults = { complete: fails, renew: fails }
  // Room for an outcome that is written twice.
  const store = faulty(faults, new MemoryStore({ maxBytes: 268_435_456 }))
  const lost = listen(t, 'lease-lost')
  const { app, post } = await start(t, 'memory', {
    options: { store, maxResponseBytes: 8_388_608, lease: 60_000 },
    fastify: { bodyLimit: 80_000_000 },
    before: app => {
      app.addContentTypeParser('text/upload', { parseAs: 'buffer' }, (_request, body, done) => done(null, body.length))
    },
    routes: app => {
      app.post('/', async () => Buffer.alloc(8_388_608 - 5_000))
      app.post('/upload', async request => request.body)
    }
  })
  for (let i = 0; i < 9; i++) t.equal((await post(`k${i}`, '{}')).status, 200)
  const upload = await post(
    'large', Buffer.alloc(70_000_000), { path: '/upload', headers: { 'content-type': 'text/upload' } }
  )
  t.equal(upload.text, '70000000', 'the response is sent in any case')
  t.equal(lost.length, 1)
  delete faults.complete
  delete faults.renew
  for (const key of ['k0', 'k1', 'k6', 'k7', 'k8']) {
    await until(async () => (await app.idempotency.inspect({ key }))?.state === 'completed', `${key} is kept`)
  }
  t.ok((await Promise.all([0, 1, 6, 7].map(async i => await post(`k${i}`, '{}')))).every(({ replayed }) => replayed))
  t.match((await post('k8', '{}')).json(), { code: 'idempotency_response_unavailable', message: /status 200/ })
  t.equal((await app.idempotency.inspect({ key: 'large' }))?.state, 'held', 'free when its lease ends')
})

t.test('G10, G14: closing waits for what the store has not taken yet, but not for ever', async t => {
  for (const back of [true, false]) {
    const faults: Faults = { complete: fails }
    const store = faulty(faults)
    const { app, post } = await start(t, 'memory', {
      options: {
        store, keyPrefix: '', closeTimeout: back ? 10_000 : 200
      },
      routes: app => app.post('/', async () => 'ok')
    })
    await post('k', '{}')
    if (back) delete faults.complete
    await app.close()
    t.equal(store.inner.read(storeKey('', undefined, 'k'))?.state, back ? 'completed' : 'held')
  }
})

t.test('G10: a later outcome takes the place of one that is being tried again', async t => {
  for (const then of ['succeeds', 'fails']) {
    const trying = gate()
    const answer = gate()
    let tries = 0
    const faults: Faults = {
      complete: async () => {
        if (tries++ === 0) fails()
        trying.open()
        await answer.promise
        if (then === 'fails') fails()
      }
    }
    const store = faulty(faults)
    const { app, post } = await start(t, 'memory', {
      options: { store },
      routes: app => {
        failBehind(app, async () => await trying.promise)
        app.post('/', async () => 'ok')
      }
    })
    t.equal((await post('k', '{}')).status, 500)
    t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, 'freed')
    answer.open()
    await new Promise(resolve => setTimeout(resolve, 250))
    t.equal(store.calls.filter(call => call === 'complete').length, 2)
  }
})
