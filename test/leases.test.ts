import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import t from 'tap'
import { MemoryStore } from '../lib/index.ts'
import { storeKey } from '../lib/protocol/fingerprint.ts'
import { failBehind, gate, start, stopRedis, until } from './fixtures/app.ts'
import { cutting, head } from './fixtures/cut.ts'
import { fails, faulty, listen, type Faults } from './fixtures/faulty.ts'

t.teardown(stopRedis)

t.test('G5: a live handler never loses its key, however long it runs; a short one is never renewed', async t => {
  const faults: Faults = {}
  const store = faulty(faults)
  const finish = gate()
  const entered = gate()
  const errors = listen(t, 'store-error')
  const { post } = await start(t, 'memory', {
    options: { store, lease: 120 },
    routes: app => {
      app.post('/', async () => 'ok')
      app.post('/long', async request => {
        entered.open()
        await finish.promise
        return { aborted: request.idempotency?.signal.aborted }
      })
      app.post('/other', { config: { idempotency: { lease: 60_000 } } }, async () => 'ok')
    }
  })
  t.teardown(finish.open)
  await post('short', '{}')
  t.same(store.calls, ['claim', 'complete'])
  const long = post('long', '{"a":1}', { path: '/long' })
  await entered.promise
  await post('o', '{}', { path: '/other' })
  await until(() => store.calls.filter(call => call === 'renew').length >= 5, 'renewals for more than one lease')
  t.equal((await post('long', '{"a":1}', { path: '/long' })).json().code, 'idempotency_in_progress')
  t.equal((
    await post('long', '{"a":2}', { path: '/long' })
  ).json().code, 'idempotency_key_mismatch', 'a renewal has told the fingerprint')
  faults.renew = fails
  await until(() => errors.length > 0, 'a renewal that fails')
  delete faults.renew
  finish.open()
  t.same((await long).json(), { aborted: false })
})

t.test('G2: a late holder is told; its client gets the winner\'s response, or a 409 while that runs', async t => {
  const store = new MemoryStore()
  const lost = listen(t, 'lease-lost')
  const entered = [gate(), gate()]
  const finish = [gate(), gate()]
  let runs = 0
  const { post, app } = await start(t, 'memory', {
    options: { store, lease: 60_000 },
    before: app => {
      app.addHook('onRequest', (_request, reply, done) => {
        reply.header('x-hook', 'yes').header('x-run', 'none')
        done()
      })
    },
    routes: app => {
      const work = async (failing: boolean): Promise<unknown> => {
        const run = runs++
        entered[run]?.open()
        await finish[run]?.promise
        if (failing && run === 0) throw new Error('late failure')
        return { run, id: randomUUID() }
      }
      app.post(
        '/value',
        async (_request, reply) => await reply.header('x-run', runs).header('x-late', 'yes').send(await work(false))
      )
      app.post('/failing', async () => await work(true))
      app.post('/stream', async () => {
        await work(false)
        return Readable.from(['a', 'b'])
      })
      app.post('/throw', { config: { idempotency: { errors: 'throw' } } }, async () => await work(false))
    }
  })
  const race = async (path: string, winnerFirst: boolean) => {
    runs = 0
    for (const i of [0, 1]) {
      entered[i] = gate()
      finish[i] = gate()
    }
    const first = post(path, '{}', { path }).catch((error: Error) => error)
    await entered[0]?.promise
    await app.idempotency.forget({ key: path })
    const second = post(path, '{}', { path })
    await entered[1]?.promise
    if (winnerFirst) {
      finish[1]?.open()
      await second
    }
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
    t.same(
      [
        refused.status, refused.json().code, refused.headers['x-run'], refused.headers['x-hook'],
        refused.headers['x-late']
      ],
      [409, 'idempotency_in_progress', 'none', 'yes', undefined], path
    )
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
  const { post, app } = await start(t, 'memory', {
    options: { store },
    routes: app => app.post('/', async () => {
      entered.open()
      await finish.promise
      return 'ok'
    })
  })
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
  await until(
    async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'completed', 'the response is kept later'
  )
  t.equal((await post('k', '{}')).text, 'ok')
  await app.idempotency.forget({ key: 'k' })
  let completes = 0
  const failsOnce = (): void => { if (++completes === 2) fails() }
  t.equal(await run(() => { faults.complete = failsOnce }), 'ok')
  delete faults.complete
  await until(
    async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'completed', 'the response is kept later'
  )
})

t.test('G5: signal aborts when the lease is lost, whether it was asked for before or after', async t => {
  const finish = gate()
  const aborted = gate()
  const { post, app } = await start(t, 'memory', {
    options: { lease: 120 },
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
    options: { lease: 120 },
    routes: app => app.post('/', async request => {
      await later.promise
      return { reason: String(request.idempotency?.signal.reason) }
    })
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
    routes: app => app.post('/', async (_request, reply) => {
      runs++
      entered.open()
      await finish.promise
      return await reply.code(500).send('x')
    })
  })
  const first = post('k', '{}')
  await entered.promise
  const controller = new AbortController()
  const waiter = fetch(`http://127.0.0.1:${port}/`, {
    method: 'POST',
    headers: {
      'idempotency-key': 'k', 'content-type': 'application/json'
    },
    body: '{}',
    signal: controller.signal
  })
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
      failBehind(app, () => { delete faults.complete })
      app.post('/', async () => 'ok')
    }
  })
  t.equal((await post('k', '{}')).status, 500)
  await new Promise(resolve => setTimeout(resolve, 150))
  t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, 'freed')
  t.equal(store.calls.filter(call => call === 'complete').length, 1)
})

t.test('inFlight wait: another body is told once it has been read, the same one waits', async t => {
  const finish = gate()
  const store = faulty({})
  const { post } = await start(t, 'memory', {
    options: { store, lease: 120, inFlight: { wait: 60_000 } },
    routes: app => {
      const handler = async (): Promise<string> => {
        await finish.promise
        return 'ok'
      }
      app.post('/parsed', { config: { idempotency: { hook: 'preHandler' } } }, handler)
      app.post('/unread', handler)
      app.post('/brief', { config: { idempotency: { inFlight: { wait: 30 } } } }, handler)
    }
  })
  const paths = ['/parsed', '/unread', '/brief']
  const send = async (path: string, body: string) => await post(path, body, { path })
  const firsts = paths.map(async path => await send(path, '{"a":1}'))
  await until(() => store.calls.filter(call => call === 'renew').length >= paths.length, 'renewals')
  t.equal((await send('/parsed', '{"a":2}')).json().code, 'idempotency_key_mismatch', 'at once')
  t.equal((await send('/brief', '{"a":2}')).json().code, 'idempotency_key_mismatch', 'at the limit')
  const same = send('/unread', '{"a":1}')
  const other = send('/unread', '{"a":2}')
  const asked = store.calls.length
  await until(() => store.calls.slice(asked).filter(call => call === 'claim').length > 3, 'polling')
  finish.open()
  for (const first of firsts) t.equal((await first).text, 'ok')
  t.equal((await same).replayed, true)
  t.equal((await other).json().code, 'idempotency_key_mismatch', 'after the wait')
})

t.test('a waiter that a handler timeout has ended does not take the key', async t => {
  const finish = gate()
  let runs = 0
  const store = faulty({})
  const { post, app } = await start(t, 'memory', {
    options: { store, inFlight: { wait: 60_000 } },
    routes: app => app.post('/', { handlerTimeout: 400 }, async () => {
      runs++
      await finish.promise
      throw new Error('failed')
    })
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
    routes: app => app.post('/', async () => {
      if (runs++ === 0) {
        await finish.promise
        throw new Error('late')
      }
      return 'won'
    })
  })
  const lazy = { headers: { 'content-type': 'text/lazy', 'idempotency-key': 'k' } }
  const first = post('k', 'x'.repeat(500_000), lazy)
  await until(async () => await app.idempotency.forget({ key: 'k' }), 'the claim')
  t.equal((await post('k', 'x'.repeat(500_000), lazy)).text, 'won')
  finish.open()
  t.equal((await first).status, 409)
})

t.test('G2: a late holder is refused in a form that fails', async t => {
  const [finish, finishSecond] = [gate(), gate()]
  let runs = 0
  const { post, app } = await start(t, 'memory', {
    options: { errors: () => { throw new Error('no form') } },
    routes: app => app.post('/', async () => {
      await (runs++ === 0 ? finish : finishSecond).promise
      return 'ok'
    })
  })
  const first = post('k', '{}')
  await until(async () => await app.idempotency.forget({ key: 'k' }), 'the claim')
  const second = post('k', '{}')
  await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.state === 'held', 'the second claim')
  finish.open()
  t.match((await first).json(), { statusCode: 500, message: 'no form' })
  finishSecond.open()
  t.equal((await second).text, 'ok')
  t.match((await post('', '{}')).json(), { statusCode: 500, message: 'no form' })
})

t.test('G14: a failure that waits behind an outcome is given up with the app, and is not written later', async t => {
  const [writing, answer, failed, left] = [gate(), gate(), gate(), gate()]
  let [completes, passes] = [0, 0]
  const store = faulty({
    async complete () {
      if (++completes === 1) fails()
      writing.open()
      await answer.promise
    }
  })
  const { app, port } = await start(t, 'memory', {
    options: { store, keyPrefix: '', closeTimeout: 100 },
    // Before the plugin's own hook: the failure is with the plugin then.
    before: app => app.addHook('onSend', async () => { if (++passes === 2) setImmediate(failed.open) }),
    routes: app => {
      failBehind(app, async () => await writing.promise)
      app.post('/', async (_request, reply) => {
        reply.raw.once('close', left.open)
        return 'ok'
      })
    }
  })
  const socket = await cutting(port, head('/', 'k'))
  await failed.promise
  socket.destroy()
  await left.promise
  await app.close()
  answer.open()
  const stored = (): boolean => store.inner.read(storeKey('', undefined, 'k'))?.state === 'completed'
  await until(stored, 'the outcome that was on its way')
  await new Promise(resolve => setImmediate(resolve))
  t.notOk(store.calls.includes('release'), 'what was given up')
})
