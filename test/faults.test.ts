import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import * as diagnostics from 'node:diagnostics_channel'
import { Readable } from 'node:stream'
import t, { type Test } from 'tap'
import type { IdempotencyError, IdempotencyEvent, Store } from '../lib/index.ts'
import { MemoryStore } from '../lib/index.ts'
import { connect, startRedis } from './fixtures/redis.ts'
import { storeKey } from '../lib/fingerprint.ts'
import { gate, redisServer, send, start, stopRedis, until } from './fixtures/app.ts'

t.teardown(stopRedis)

type Fault = (() => unknown) | undefined
interface Faults { claim?: Fault, renew?: Fault, complete?: Fault, release?: Fault }

/** A store that answers late, as Redis does, and fails where a test says so. */
function faulty (faults: Faults): Store & { inner: MemoryStore, calls: string[] } {
  const inner = new MemoryStore()
  const calls: string[] = []
  const step = <A extends unknown[], R>(name: keyof Faults, run: (...args: A) => R) => async (...args: A): Promise<R> => {
    calls.push(name)
    await faults[name]?.()
    return run(...args)
  }
  return {
    inner,
    calls,
    claim: step('claim', inner.claim.bind(inner)),
    renew: step('renew', inner.renew.bind(inner)),
    complete: step('complete', inner.complete.bind(inner)),
    release: step('release', inner.release.bind(inner)),
    read: key => inner.read(key),
    remove: key => inner.remove(key)
  }
}

const fails = (): never => { throw new Error('the store is down') }
const hangs = async (): Promise<void> => { await new Promise(() => {}) }

function listen (t: Test, name: string): IdempotencyEvent[] {
  const events: IdempotencyEvent[] = []
  const push = (message: unknown): void => { events.push(message as IdempotencyEvent) }
  diagnostics.subscribe(`fastify-idempotency:${name}`, push)
  t.teardown(() => diagnostics.unsubscribe(`fastify-idempotency:${name}`, push))
  return events
}

for (const [what, fault] of [['fails', fails], ['hangs', hangs]] as const) {
  t.test(`G10: a store that ${what} before the handler is a 503, or is bypassed`, async t => {
    let runs = 0
    const events = listen(t, 'store-error')
    const store = faulty({ claim: fault })
    const { post } = await start(t, 'memory', {
      options: { store, storeTimeout: 20, retryAfter: 7 },
      routes: app => {
        app.post('/', async () => ({ runs: ++runs }))
        app.post('/bypass', { config: { idempotency: { onStoreError: 'bypass' } } }, async request => ({ runs: ++runs, idempotency: request.idempotency }))
      }
    })
    const answer = await post('k', '{}')
    t.same([answer.status, answer.json().code, answer.headers['retry-after']], [503, 'idempotency_store_unavailable', '7'])
    t.equal(runs, 0)
    t.same((await post('k', '{}', { path: '/bypass' })).json(), { runs: 1, idempotency: null })
    t.equal(events.length, 2)
    t.ok(events.every(({ error }) => error instanceof Error))
  })
}

t.test('G10: a synchronous store that throws is a 503 as well', async t => {
  const store = Object.assign(new MemoryStore(), { claim: fails })
  const { post } = await start(t, 'memory', { options: { store }, routes: app => app.post('/', async () => 'ok') })
  t.equal((await post('k', '{}')).status, 503)
})

t.test('G10: a claim granted after its deadline is given back', async t => {
  const late = gate()
  const faults: Faults = { claim: async () => await late.promise }
  const store = faulty(faults)
  const { post, app } = await start(t, 'memory', { options: { store, storeTimeout: 20 }, routes: app => app.post('/', async request => ({ attempt: request.idempotency?.attempt })) })
  t.equal((await post('k', '{}')).status, 503)
  faults.claim = undefined
  late.open()
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'freed', 'the key is given back')
  await post('k', '{}')
  // A late answer that grants nothing has nothing to give back; a late failure is nothing new.
  for (const then of [() => {}, fails]) {
    const again = gate()
    faults.claim = async () => { await again.promise; then() }
    t.equal((await post('k', '{}')).status, 503)
    again.open()
    await new Promise(resolve => setImmediate(resolve))
  }
  faults.claim = undefined
  t.equal((await post('k', '{}')).replayed, true)
})

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
    const { post, app } = await start(t, 'memory', { options: { store }, routes: app => app.post('/', async (_request, reply) => await reply.code(outcome === 'kept' ? 201 : 500).send(outcome)) })
    t.equal((await post('k', '{}')).text, outcome)
    await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state !== 'held', 'the second try')
    const step = outcome === 'kept' ? 'complete' : 'release'
    t.same(store.calls, ['claim', step, 'renew', step], 'a renewal first: no body is queued while the store is away')
    const retry = await post('k', '{}')
    t.same([retry.text, retry.replayed], [outcome, outcome === 'kept'])
  }
})

t.test('G10: keeping in the background ends when the lease is truly lost, and not because the store has lost the record', async t => {
  const faults: Faults = { complete: fails }
  const store = faulty(faults)
  const lost = listen(t, 'lease-lost')
  const { post, app } = await start(t, 'memory', { options: { store, prefix: '' }, routes: app => app.post('/', async () => 'ok') })
  await post('gone', '{}')
  await app.idempotency.forget({ key: 'gone' })
  delete faults.complete
  await until(async () => (await app.idempotency.inspect({ key: 'gone' }))?.state === 'completed', 'the response is kept')

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

t.test('G5: a live handler never loses its key, however long it runs; a short one is never renewed', async t => {
  const faults: Faults = {}
  const store = faulty(faults)
  const finish = gate()
  const entered = gate()
  const errors = listen(t, 'store-error')
  const { post } = await start(t, 'memory', {
    options: { store, lease: 90 },
    routes: app => {
      app.post('/', async () => 'ok')
      app.post('/long', async request => { entered.open(); await finish.promise; return { aborted: request.idempotency?.signal.aborted } })
      app.post('/other', { config: { idempotency: { lease: 60_000 } } }, async () => 'ok')
    }
  })
  await post('short', '{}')
  t.same(store.calls, ['claim', 'complete'])
  const long = post('long', '{"a":1}', { path: '/long' })
  await entered.promise
  await post('o', '{}', { path: '/other' })
  await until(() => store.calls.filter(call => call === 'renew').length >= 5, 'renewals for more than one lease')
  t.equal((await post('long', '{"a":1}', { path: '/long' })).json().code, 'idempotency_in_progress')
  t.equal((await post('long', '{"a":2}', { path: '/long' })).json().code, 'idempotency_key_mismatch', 'a renewal has told the fingerprint')
  faults.renew = fails
  await until(() => errors.length > 0, 'a renewal that fails')
  delete faults.renew
  finish.open()
  t.same((await long).json(), { aborted: false })
})

t.test('G2: a late holder is told, and its client gets the winner\'s response, or a 409 while the winner runs', async t => {
  const store = new MemoryStore()
  const lost = listen(t, 'lease-lost')
  const entered = [gate(), gate()]
  const finish = [gate(), gate()]
  let runs = 0
  const { post, app } = await start(t, 'memory', {
    options: { store, lease: 60_000 },
    before: app => { app.addHook('onRequest', (_request, reply, done) => { reply.header('x-hook', 'yes').header('x-run', 'none'); done() }) },
    routes: app => {
      const work = async (failing: boolean): Promise<unknown> => {
        const run = runs++
        entered[run]?.open()
        await finish[run]?.promise
        if (failing && run === 0) throw new Error('late failure')
        return { run, id: randomUUID() }
      }
      app.post('/value', async (_request, reply) => await reply.header('x-run', runs).header('x-late', 'yes').send(await work(false)))
      app.post('/failing', async () => await work(true))
      app.post('/stream', async () => { await work(false); return Readable.from(['a', 'b']) })
      app.post('/throw', { config: { idempotency: { errors: 'throw' } } }, async () => await work(false))
    }
  })
  const race = async (path: string, winnerFirst: boolean) => {
    runs = 0
    for (const i of [0, 1]) { entered[i] = gate(); finish[i] = gate() }
    const first = post(path, '{}', { path }).catch((error: Error) => error)
    await entered[0]?.promise
    await app.idempotency.forget({ key: path })
    const second = post(path, '{}', { path })
    await entered[1]?.promise
    if (winnerFirst) { finish[1]?.open(); await second }
    finish[0]?.open()
    const late = await first
    finish[1]?.open()
    const winner = await second
    await app.idempotency.forget({ key: path })
    return { late: late as Exclude<typeof late, Error>, winner }
  }
  for (const path of ['/value', '/failing']) {
    const { late, winner } = await race(path, true)
    t.same([late.status, late.text, late.replayed], [winner.status, winner.text, true], path)
    t.equal(late.headers['x-run'], winner.headers['x-run'], path)
    const { late: refused } = await race(path, false)
    t.same([refused.status, refused.json().code, refused.headers['x-run'], refused.headers['x-hook'], refused.headers['x-late']], [409, 'idempotency_in_progress', 'none', 'yes', undefined], path)
  }
  t.equal((await race('/throw', false)).late.json().code, 'idempotency_in_progress')
  t.type((await race('/stream', true)).late, Error, 'a stream that has begun is cut')
  t.equal(lost.length, 6)
})

t.test('G2: a record that the store has lost is written anew by its holder', async t => {
  const faults: Faults = {}
  const store = faulty(faults)
  const entered = gate()
  let finish = gate()
  const { post, app } = await start(t, 'memory', { options: { store }, routes: app => app.post('/', async () => { entered.open(); await finish.promise; return 'ok' }) })
  const run = async (before?: () => void) => {
    finish = gate()
    const first = post('k', '{}')
    await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'held', 'the claim')
    await app.idempotency.forget({ key: 'k' })
    before?.()
    finish.open()
    return (await first).text
  }
  t.equal(await run(), 'ok')
  t.equal((await post('k', '{}')).replayed, true)
  // If the store fails just then, nobody knows whether there is a winner: no outcome is shown, but it is not lost.
  await app.idempotency.forget({ key: 'k' })
  t.match(JSON.parse(await run(() => { faults.claim = fails })), { code: 'idempotency_in_progress' })
  delete faults.claim
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'completed', 'the response is kept later')
  t.equal((await post('k', '{}')).text, 'ok')
  await app.idempotency.forget({ key: 'k' })
  let completes = 0
  t.equal(await run(() => { faults.complete = () => { if (++completes === 2) fails() } }), 'ok')
  delete faults.complete
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'completed', 'the response is kept later')
})

t.test('G5: signal aborts when the lease is lost, whether it was asked for before or after', async t => {
  const finish = gate()
  const aborted = gate()
  const { post, app } = await start(t, 'memory', {
    options: { lease: 60 },
    routes: app => app.post('/', async request => {
      request.idempotency?.signal.addEventListener('abort', aborted.open)
      await finish.promise
      return { again: request.idempotency?.signal.aborted }
    })
  })
  const first = post('k', '{}')
  await until(async () => await app.idempotency.forget({ key: 'k' }), 'the claim')
  await aborted.promise
  finish.open()
  t.same((await first).json(), { again: true })

  const later = gate()
  const lost = listen(t, 'lease-lost')
  const { post: post2, app: app2 } = await start(t, 'memory', {
    options: { lease: 60 },
    routes: app => app.post('/', async request => { await later.promise; return { reason: String(request.idempotency?.signal.reason) } })
  })
  const second = post2('k', '{}')
  await until(async () => await app2.idempotency.forget({ key: 'k' }), 'the claim')
  await until(() => lost.length > 0, 'the loss')
  later.open()
  t.match((await second).json(), { reason: /lease of the idempotency key was lost/ })
})

t.test('a waiter whose client leaves, or that meets a failing store, does not take the key', async t => {
  const faults: Faults = {}
  const store = faulty(faults)
  const entered = gate()
  const finish = gate()
  let runs = 0
  const { post, port, app } = await start(t, 'memory', {
    options: { store, inFlight: { wait: 60_000 }, errors: 'throw' },
    routes: app => app.post('/', async (_request, reply) => { runs++; entered.open(); await finish.promise; return await reply.code(500).send('x') })
  })
  const first = post('k', '{}')
  await entered.promise
  const controller = new AbortController()
  const waiter = fetch(`http://127.0.0.1:${port}/`, { method: 'POST', headers: { 'idempotency-key': 'k', 'content-type': 'application/json' }, body: '{}', signal: controller.signal })
  await until(() => store.calls.filter(call => call === 'claim').length > 3, 'polling')
  controller.abort()
  await waiter.catch(() => {})
  const failing = post('k', '{}')
  await until(() => store.calls.filter(call => call === 'claim').length > 6, 'polling')
  faults.claim = fails
  t.equal((await failing).status, 503)
  delete faults.claim
  finish.open()
  await first
  await new Promise(resolve => setTimeout(resolve, 80))
  t.equal(runs, 1)
  t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, 'freed')
})

t.test('G4: a response that waits to be kept is forgotten when its reply turns into a failure', async t => {
  const faults: Faults = { complete: fails }
  const store = faulty(faults)
  const { post, app } = await start(t, 'memory', {
    options: { store },
    routes: app => {
      // A hook behind the plugin's, as another plugin would add it.
      app.addHook('onRoute', route => { route.onSend = [route.onSend ?? []].flat().concat(async () => { delete faults.complete; throw new Error('hook') }) })
      app.post('/', async () => 'ok')
    }
  })
  t.equal((await post('k', '{}')).status, 500)
  await new Promise(resolve => setTimeout(resolve, 150))
  t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, 'freed')
  t.equal(store.calls.filter(call => call === 'complete').length, 1)
})

t.test('inFlight wait: once the original\'s body is known, another body is told at once, and the same one waits', async t => {
  const finish = gate()
  const store = faulty({})
  const { post } = await start(t, 'memory', { options: { store, lease: 60, inFlight: { wait: 60_000 } }, routes: app => app.post('/', async () => { await finish.promise; return 'ok' }) })
  const first = post('k', '{"a":1}')
  await until(() => store.calls.includes('renew'), 'a renewal')
  const same = post('k', '{"a":1}')
  t.equal((await post('k', '{"a":2}')).json().code, 'idempotency_key_mismatch')
  const asked = store.calls.length
  await until(() => store.calls.slice(asked).filter(call => call === 'claim').length > 1, 'polling')
  finish.open()
  t.equal((await first).text, 'ok')
  t.equal((await same).replayed, true)
})

t.test('a waiter that a handler timeout has ended does not take the key', async t => {
  const finish = gate()
  let runs = 0
  const store = faulty({})
  const { post, app } = await start(t, 'memory', {
    options: { store, inFlight: { wait: 60_000 } },
    routes: app => app.post('/', { handlerTimeout: 100 }, async () => { runs++; await finish.promise; throw new Error('failed') })
  })
  t.same((await Promise.all([post('k'), post('k')])).map(({ status }) => status), [503, 503])
  const asked = store.calls.length
  finish.open()
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'freed', 'the end')
  await new Promise(resolve => setTimeout(resolve, 80))
  t.equal(runs, 1)
  t.ok(store.calls.slice(asked).filter(call => call === 'claim').length <= 1)
})

t.test('G2: a late failure whose body was never read is refused as well', async t => {
  const finish = gate()
  let runs = 0
  const { post, app } = await start(t, 'memory', {
    options: { lease: 60_000 },
    before: app => { app.addContentTypeParser('text/lazy', (_request, _payload, done) => done(null)) },
    routes: app => app.post('/', async () => { if (runs++ === 0) { await finish.promise; throw new Error('late') } return 'won' })
  })
  const lazy = { headers: { 'content-type': 'text/lazy', 'idempotency-key': 'k' } }
  const first = post('k', 'x'.repeat(500_000), lazy)
  await until(async () => await app.idempotency.forget({ key: 'k' }), 'the claim')
  t.equal((await post('k', 'x'.repeat(500_000), lazy)).text, 'won')
  finish.open()
  t.equal((await first).status, 409)
})

t.test('G10: a renewal that is answered after the end changes nothing', async t => {
  const renewing = gate()
  const answer = gate()
  const faults: Faults = { renew: async () => { renewing.open(); await answer.promise; fails() } }
  const errors = listen(t, 'store-error')
  const { post } = await start(t, 'memory', {
    options: { store: faulty(faults), lease: 30 },
    before: app => { app.addContentTypeParser('text/lazy', (_request, _payload, done) => done(null)) },
    routes: app => app.post('/', async () => { await renewing.promise; return 'ok' })
  })
  t.equal((await post('k', 'x'.repeat(500_000), { headers: { 'content-type': 'text/lazy', 'idempotency-key': 'k' } })).text, 'ok')
  answer.open()
  await new Promise(resolve => setImmediate(resolve))
  t.equal(errors.length, 0)
})

t.test('G2: a late holder is refused in a form that fails', async t => {
  const finish = gate()
  let runs = 0
  const { post, app } = await start(t, 'memory', {
    options: { errors: () => { throw new Error('no form') } },
    routes: app => app.post('/', async () => { if (runs++ === 0) await finish.promise; else await new Promise(resolve => setTimeout(resolve, 100)); return 'ok' })
  })
  const first = post('k', '{}')
  await until(async () => await app.idempotency.forget({ key: 'k' }), 'the claim')
  const second = post('k', '{}')
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'held', 'the second claim')
  finish.open()
  t.match((await first).json(), { statusCode: 500, message: 'no form' })
  t.equal((await second).text, 'ok')
  t.match((await post('', '{}')).json(), { statusCode: 500, message: 'no form' })
})

t.test('errors of a custom form and of the key option reach the client', async t => {
  const { post } = await start(t, 'memory', {
    routes: app => {
      app.post('/key', { config: { idempotency: { key: async () => { throw new Error('no key today') } } } }, async () => 'ok')
      app.post('/undefined', { config: { idempotency: { errors: (error: IdempotencyError) => { if (error.code === 'idempotency_key_invalid') return undefined; return error } } } }, async () => 'ok')
    }
  })
  t.match((await post('k', '{}', { path: '/key' })).json(), { statusCode: 500, message: 'no key today' })
  t.same([(await post('', '{}', { path: '/undefined' })).status, (await post('', '{}', { path: '/undefined' })).text], [400, ''])
})

t.test('G10: Redis that is killed or frozen is a 503 within storeTimeout, and all is well once it is back', async t => {
  let redis = await startRedis()
  t.teardown(async () => await redis.stop())
  const client = connect(redis.port)
  t.teardown(() => client.disconnect())
  let runs = 0
  const { post } = await start(t, 'memory', { options: { store: undefined as never, redis: client, storeTimeout: 300 }, routes: app => app.post('/', async () => ({ runs: ++runs })) })
  const first = await post('k', '{}')
  redis.process.kill('SIGSTOP')
  t.equal((await post('k', '{}')).status, 503)
  redis.process.kill('SIGCONT')
  await until(async () => (await post('k', '{}')).text === first.text, 'the replay, once Redis goes on')
  const { port } = redis
  await redis.stop()
  t.equal((await post('k', '{}')).status, 503)
  redis = await startRedis(port)
  await until(async () => (await post('k2', '{}')).status === 200, 'Redis is back')
  t.equal((await post('k2', '{}')).replayed, true)
})

t.test('G1, G3, G5: two processes on one Redis: one execution, the replay from the other, and a takeover after a crash', async t => {
  const { url } = await redisServer()
  const prefix = `${randomUUID()}:`
  const serve = async () => {
    const child = spawn(process.execPath, ['--import', import.meta.resolve('@tapjs/typescript/import'), new URL('fixtures/server.ts', import.meta.url).pathname, url, prefix], { stdio: ['ignore', 'pipe', 'inherit'] })
    t.teardown(() => { child.kill('SIGKILL') })
    const [line] = await once(child.stdout, 'data') as [Buffer]
    return { child, port: Number(String(line)) }
  }
  const [one, two] = await Promise.all([serve(), serve()])
  const post = async (port: number, key: string, body: string, path = '/') => await send(port, { key, body, path })
  const first = await post(one.port, 'k', '{"amount":1}')
  t.equal(first.status, 201)
  const replay = await post(two.port, 'k', '{"amount":1}')
  t.same([replay.status, replay.text, replay.replayed], [201, first.text, true])
  t.equal((await post(two.port, 'k', '{"amount":2}')).json().code, 'idempotency_key_mismatch')
  const all = await Promise.all(Array.from({ length: 40 }, async (_, i) => await post(i % 2 === 0 ? one.port : two.port, 'race', '{}')))
  const won = all.filter(({ status }) => status === 201)
  t.ok(won.length >= 1)
  t.equal(new Set(won.map(({ text }) => text)).size, 1)
  t.ok(all.every(({ status, json }) => status === 201 || json().code === 'idempotency_in_progress'))

  const dying = post(one.port, 'crash', '{}', '/hang').catch((error: Error) => error)
  await until(async () => (await send(two.port, { method: 'GET', path: '/state/crash' })).text === 'held', 'the first execution')
  // More than a lease: the live holder keeps its key.
  await new Promise(resolve => setTimeout(resolve, 500))
  t.equal((await post(two.port, 'crash', '{}', '/hang')).json().code, 'idempotency_in_progress')
  one.child.kill('SIGKILL')
  t.type(await dying, Error)
  let taken = await post(two.port, 'crash', '{}', '/hang')
  await until(async () => (taken = await post(two.port, 'crash', '{}', '/hang')).status === 200, 'the takeover')
  t.same(taken.json(), { attempt: 2, pid: two.child.pid })
})
