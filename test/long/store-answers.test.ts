import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { MemoryStore, type FastifyIdempotencyOptions, type IdempotencyStore } from '../../lib/index.ts'
import { StoreCalls } from '../../lib/lease/store-calls.ts'
import { gate, redisServer, start, stopRedis, STORES, until } from '../fixtures/app.ts'
import { listen } from '../fixtures/faulty.ts'
import { wrapped } from '../fixtures/wrapped-store.ts'

/**
 * Stores that answer what the contract does not know, or late: nothing runs on the strength of it, and nothing breaks.
 */

t.teardown(stopRedis)

/** What nobody has caught. */
function uncaught (t: Test): unknown[] {
  const found: unknown[] = []
  const note = (error: unknown): void => { found.push(error) }
  process.on('unhandledRejection', note)
  t.teardown(() => process.off('unhandledRejection', note))
  return found
}

const result = { fingerprint: 'f', status: 200, replayable: true, headers: [], body: '', text: false }
const CLAIMS: Record<string, unknown> = {
  nothing: undefined,
  null: null,
  'a number': 1,
  'the answer inside a transaction': 'QUEUED',
  'an empty object': {},
  'an unknown outcome': { outcome: 'granted', attempt: 1 },
  'a grant without an attempt': { outcome: 'acquired' },
  'a grant whose attempt is a text': { outcome: 'acquired', attempt: '1' },
  'a holder without a fingerprint': { outcome: 'held', attempt: 1 },
  'a completed key without a result': { outcome: 'completed', attempt: 1 },
  'a result without headers': { outcome: 'completed', attempt: 1, result: { ...result, headers: undefined } },
  'a result without a body': { outcome: 'completed', attempt: 1, result: { ...result, body: undefined } },
  'a result without a fingerprint': { outcome: 'completed', attempt: 1, result: { ...result, fingerprint: undefined } },
  'a result without a status': { outcome: 'completed', attempt: 1, result: { ...result, status: '200' } }
}
const TIMINGS = { 'at once': (answer: unknown) => answer, later: async (answer: unknown) => answer }

for (const mode of STORES) {
  for (const [timing, answer] of Object.entries(TIMINGS)) {
    for (const onStoreError of ['reject', 'bypass'] as const) {
      t.test(`G1, G10: an answer to a claim that is none is a 503, ${timing}, ${onStoreError} (${mode})`, async t => {
        const broken = uncaught(t)
        let runs = 0
        let next: unknown
        const options = await wrapped(mode, () => ({ claim: () => answer(next) as never }))
        const { post } = await start(
          t, mode, { options: { ...options, onStoreError }, routes: app => app.post('/', async () => `run ${++runs}`) }
        )
        for (const [what, claim] of Object.entries(CLAIMS)) {
          next = claim
          t.match(await post(what, '{}'), { status: 503 }, what)
        }
        t.equal(runs, 0)
        t.same(broken, [])
      })
    }

    t.test(`G10: an answer to an outcome that is none is told, and tried again, ${timing} (${mode})`, async t => {
      const broken = uncaught(t)
      const errors = listen(t, 'store-error')
      let runs = 0
      let answers: unknown[] = []
      const options = await wrapped(mode, inner => {
        const odd = (): boolean => answers.length > 0
        return {
          complete: (...args) => odd() ? answer(answers.shift()) as never : inner.complete(...args),
          release: (...args) => odd() ? answer(answers.shift()) as never : inner.release(...args)
        }
      })
      const { app, post } = await start(t, mode, {
        options,
        routes: app => app.post('/:status', async (request, reply) => {
          runs++
          return await reply.code(Number((request.params as { status: string }).status)).send('once')
        })
      })
      for (const [index, odd] of [undefined, null, 'OK', 'QUEUED', 1, {}].entries()) {
        for (const status of [201, 503]) {
          answers = [odd]
          runs = 0
          errors.length = 0
          const [key, path] = [`${status} ${index}`, `/${status}`]
          t.match(await post(key, '{}', { path }), { status, text: 'once', replayed: false }, key)
          t.equal(errors.length, 1, `${key}: told`)
          await until(async () => (await app.idempotency.inspect({ key }))?.state !== 'held', `the end of ${key}`)
          t.match(await post(key, '{}', { path }), { status, text: 'once', replayed: status === 201 }, key)
          t.equal(runs, status === 201 ? 1 : 2, key)
        }
      }
      t.same(broken, [])
    })
  }

  t.test(`G10: a store whose watch throws, or gives no function, is polled (${mode})`, async t => {
    const broken = uncaught(t)
    const watches: Record<string, () => unknown> = {
      'gives nothing': () => undefined,
      'gives a promise': async () => () => {},
      'gives a promise that rejects': async () => { throw new Error('on purpose') },
      throws: () => { throw new Error('on purpose') },
      'gives a text': () => 'stop'
    }
    for (const [what, watch] of Object.entries(watches)) {
      const finish = gate()
      const [entered, asked] = [gate(), gate()]
      const options = await wrapped(mode, () => ({
        watch: () => {
          asked.open()
          return watch() as never
        }
      }))
      const { post } = await start(t, mode, {
        options: { ...options, inFlight: { wait: 20_000 } },
        routes: app => app.post('/', async () => {
          entered.open()
          await finish.promise
          return 'once'
        })
      })
      const first = post('k', '{}')
      await entered.promise
      const second = post('k', '{}')
      await asked.promise
      finish.open()
      t.match(await first, { text: 'once', replayed: false }, what)
      t.match(await second, { text: 'once', replayed: true }, what)
    }
    t.same(broken, [])
  })

  t.test(`G5: an outcome that takes the store longer than the lease is no lost lease (${mode})`, async t => {
    const lost = listen(t, 'lease-lost')
    const asked = gate()
    const renewed = gate()
    const options = await wrapped(mode, inner => ({
      async complete (...args) {
        asked.open()
        await renewed.promise
        return await inner.complete(...args)
      },
      async renew (...args) {
        // Late itself, as all of a slow store: past the end of the lease.
        if (asked.opened) await renewed.promise
        return await inner.renew(...args)
      }
    }))
    const { post } = await start(t, mode, {
      options: { ...options, lease: 100, storeTimeout: 10_000 }, routes: app => app.post('/', async () => 'once')
    })
    const first = post('k', '{}')
    await asked.promise
    await sleep(300)
    renewed.open()
    t.match(await first, { status: 200, text: 'once' })
    t.same(lost, [])
    t.match(await post('k', '{}'), { text: 'once', replayed: true })
  })
}

t.test('G1, G4: a client that gives numbers as text is understood', async t => {
  const { port } = await redisServer()
  const redis = new Redis({ port, stringNumbers: true })
  t.teardown(() => redis.disconnect())
  let runs = 0
  const options: FastifyIdempotencyOptions = { redis, lease: 200 }
  const { app, post } = await start(t, 'redis', {
    options,
    routes: app => app.post('/:status', async (request, reply) => {
      const { status } = request.params as { status: string }
      if (status === '202') await sleep(300)
      return await reply.code(Number(status)).send(`run ${++runs}, attempt ${request.idempotency.attempt}`)
    })
  })
  t.match(await post('k', '{}', { path: '/201' }), { status: 201, text: 'run 1, attempt 1', replayed: false })
  t.match(await post('k', '{}', { path: '/201' }), { status: 201, text: 'run 1, attempt 1', replayed: true })
  t.match(await post('f', '{}', { path: '/503' }), { status: 503, text: 'run 2, attempt 1', replayed: false })
  t.match(await post('f', '{}', { path: '/503' }), { status: 503, text: 'run 3, attempt 2', replayed: false })
  t.match(await post('slow', '{}', { path: '/202' }), { status: 202, text: 'run 4, attempt 1' })
  t.match(await app.idempotency.inspect({ key: 'k' }), { state: 'completed', attempt: 1, status: 201 })
  t.equal(await app.idempotency.forget({ key: 'k' }), true)
  t.equal(await app.idempotency.forget({ key: 'k' }), false)
})

/** The calls to a store of which the test says whether it answers. */
function counted (ms: number): {
  ask: () => Promise<string>, answer: (how: 'never' | 'at once' | 'later') => void, sent: () => number
} {
  let how = 'never'
  let sent = 0
  const remove = (): boolean | Promise<boolean> => {
    sent++
    if (how === 'at once') return true
    return how === 'later' ? Promise.resolve(true) : new Promise(() => {})
  }
  const calls = new StoreCalls({ remove } as unknown as IdempotencyStore, ms)
  const ask = async (): Promise<string> => await new Promise(
    resolve => { calls.remove('k', error => { resolve(error === null ? 'answered' : String(error)) }) }
  )
  return { ask, answer: given => { how = given }, sent: () => sent }
}

for (const how of ['at once', 'later'] as const) {
  t.test(`G10: a probe that is answered ${how} opens the way to the store again`, async t => {
    const { ask, answer, sent } = counted(20)
    await Promise.all(Array.from({ length: 1_000 }, ask))
    t.equal(sent(), 1_000)
    answer(how)
    let probed = ''
    await until(async () => (probed = await ask()) === 'answered', 'a probe')
    t.equal(probed, 'answered')
    for (let i = 0; i < 10; i++) t.equal(await ask(), 'answered')
    t.equal(sent(), 1_011)
  })

  t.test(`G10: answers in time, ${how}, make up for operations that were lost`, async t => {
    const { ask, answer } = counted(20)
    await Promise.all(Array.from({ length: 999 }, ask))
    answer(how)
    for (let i = 0; i < 100; i++) t.equal(await ask(), 'answered')
    answer('never')
    await Promise.all(Array.from({ length: 100 }, ask))
    answer(how)
    t.equal(await ask(), 'answered', 'not yet a thousand')
  })
}

t.test('G14: a thousand different ttls cost little memory, which maxBytes sees', async t => {
  const store = new MemoryStore({ maxBytes: 1_000_000 })
  const before = process.memoryUsage().arrayBuffers
  for (let ttl = 1; ttl <= 1_000; ttl++) {
    store.claim(`k${ttl}`, { token: `t${ttl}`, lease: 60_000, ttl: 60_000 + ttl, takeover: true })
    store.complete(`k${ttl}`, `t${ttl}`, { ...result, body: 'x'.repeat(100), text: true }, 60_000 + ttl)
  }
  const grown = process.memoryUsage().arrayBuffers - before
  t.ok(grown < 20_000_000, `${grown} bytes`)
  t.ok(store.bytes <= 1_000_000, `${store.bytes} bytes are within maxBytes`)
  t.ok(store.bytes > 500_000, `${store.bytes} bytes count what each ttl takes`)
  t.match(store.read('k1000'), { state: 'completed' })
})
