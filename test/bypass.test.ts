import { randomUUID } from 'node:crypto'
import t from 'tap'
import { RedisStore, UnreadableRecordError, type StoreClaim } from '../lib/index.ts'
import { storeKey } from '../lib/protocol/fingerprint.ts'
import { gate, MODES, redisClient, redisServer, start, stopRedis, until } from './fixtures/app.ts'
import { fails, faulty, listen } from './fixtures/faulty.ts'
import { connect } from './fixtures/redis.ts'

/** What a store that is away may let run, and what it may not. */

t.teardown(stopRedis)

const BYPASS = { onStoreError: 'bypass', inFlight: { wait: 60_000 } } as const
const first = MODES.some(mode => mode === 'memory') ? ['memory', 'memory, routes declared first'] as const : []

for (const mode of first) {
  for (const [what, fault] of [['fails', fails], ['is answered too late', 'late']] as const) {
    t.test(`G1, G10: nobody passes by the store and runs beside a holder; a poll ${what} (${mode})`, async t => {
      const [entered, finish, answerLate] = [gate(), gate(), gate()]
      let [runs, claims] = [0, 0]
      const store = faulty({
        async claim () {
          claims++
          // The first is the holder's; the next is the duplicate's; the third is its first poll.
          if (claims !== 3) return
          if (fault === 'late') await answerLate.promise
          else fault()
        }
      })
      const served = await start(t, mode, {
        options: { store, storeTimeout: 40, ...BYPASS },
        routes: app => {
          app.post('/', async () => {
            runs++
            entered.open()
            await finish.promise
            return `run ${runs}`
          })
        }
      })
      const holder = served.post('k', '{}')
      await entered.promise
      const duplicate = served.post('k', '{}')
      await until(() => claims >= 4, 'another poll after the one that failed')
      t.equal(runs, 1, 'nobody runs beside the holder')
      finish.open()
      t.same([(await holder).text, (await duplicate).text, (await duplicate).replayed], ['run 1', 'run 1', true])
      answerLate.open()
      t.same([(await served.post('k', '{}')).replayed, runs], [true, 1], 'a late answer changes nothing')
    })
  }

  t.test(`G1: a poll granted late is the duplicate's, and frees nothing under its handler (${mode})`, async t => {
    const [entered, running, finish, answerLate] = [gate(), gate(), gate(), gate()]
    let [runs, claims] = [0, 0]
    const store = faulty({})
    const { claim } = store
    store.claim = async (key, request) => {
      claims++
      // Granted at the third, since the holder has failed meanwhile; the answer comes when the time is over.
      if (claims !== 3) return await claim(key, request)
      while (true) {
        const found = await claim(key, request) as StoreClaim
        if (found.outcome === 'acquired') {
          await answerLate.promise
          return found
        }
        await new Promise(resolve => setImmediate(resolve))
      }
    }
    const served = await start(t, mode, {
      options: { store, storeTimeout: 40, ...BYPASS },
      routes: app => {
        app.post('/', async (_request, reply) => {
          if (++runs === 1) {
            entered.open()
            await finish.promise
            return await reply.code(503).send('busy')
          }
          running.open()
          await answerLate.promise
          return `run ${runs}`
        })
      }
    })
    const holder = served.post('k', '{}')
    await entered.promise
    const duplicate = served.post('k', '{}')
    await until(() => claims >= 3, 'the poll')
    finish.open()
    t.equal((await holder).status, 503)
    await running.promise
    answerLate.open()
    t.same([(await duplicate).text, (await duplicate).replayed], ['run 2', false])
    const retry = await served.post('k', '{}')
    t.same([retry.text, retry.replayed, runs], ['run 2', true, 2], 'it was kept')
  })
}

for (const mode of MODES) {
  for (const hook of ['onRequest', 'preValidation'] as const) {
    t.test(`a record that cannot be read is a 503, bypass or not, at the end of ${hook} (${mode})`, async t => {
      let runs = 0
      const errors = listen(t, 'store-error')
      const keyPrefix = `${randomUUID()}:`
      const unreadable = (): never => { throw new UnreadableRecordError('of another version') }
      const options = mode.startsWith('redis')
        ? { redis: await redisClient(), keyPrefix }
        : { store: faulty({ claim: unreadable }), keyPrefix }
      if ('redis' in options) await options.redis.set(storeKey(keyPrefix, undefined, 'k'), '\u0009garbage')
      const { app, post } = await start(t, mode, {
        options: { ...options, ...BYPASS, hook },
        routes: app => app.post('/', async () => `run ${++runs}`)
      })
      const { status, headers, json } = await post('k', '{}')
      t.match([status, json(), headers['retry-after']], [503, { code: 'idempotency_store_unavailable' }, '1'])
      t.match(errors.map(({ error }) => error), [UnreadableRecordError])
      t.equal(runs, 0)
      await app.close()
      t.equal(errors.length, 1, 'nothing was granted, and nothing is given back')
    })
  }
}

for (const onStoreError of ['reject', 'bypass'] as const) {
  t.test(`G1: inside a client's transaction, which answers QUEUED, nothing runs (${onStoreError})`, async t => {
    let runs = 0
    const client = connect((await redisServer()).port)
    t.teardown(() => client.disconnect())
    const { post } = await start(t, 'redis', {
      options: { redis: client, keyPrefix: `${randomUUID()}:`, onStoreError },
      routes: app => app.post('/', async () => `run ${++runs}`)
    })
    t.equal((await post('before', '{}')).text, 'run 1')
    await client.multi({ pipeline: false })
    const answers = await Promise.all([1, 2, 3].map(async () => await post('k', '{}')))
    for (const { status, json } of answers) t.same([status, json()['code']], [503, 'idempotency_store_unavailable'])
    t.equal(runs, 1)
    await client.discard()
    await until(async () => (await post('k', '{}')).status === 200, 'the client as it was')
    t.same([(await post('k', '{}')).replayed, runs], [true, 2])
  })
}

for (const mode of first) {
  t.test(`G10: a request that passes by the store runs as without the plugin, whatever it does (${mode})`, async t => {
    const { post } = await start(t, mode, {
      options: { store: faulty({ claim: fails }), ...BYPASS },
      routes: app => {
        app.post('/', async request => request.idempotency.attempt)
        app.post('/fails', async () => { throw Object.assign(new Error('broken'), { statusCode: 418 }) })
      }
    })
    for (let i = 0; i < 2; i++) {
      t.match(await post('k', '{}'), { status: 200, text: '1', replayed: false })
      t.match(await post('k', '{}', { path: '/fails' }), { status: 418, text: /broken/, replayed: false })
    }
  })
}

const NONE = [
  'QUEUED', 'OK', 1, 0, true, null, undefined, [], {},
  { outcome: 'acquired' }, { outcome: 'held', attempt: 1 }, { outcome: 'completed', attempt: 1 }
]
for (const answer of NONE) {
  t.test(`G1: a store's answer to a claim that is none, ${JSON.stringify(answer)}, lets nothing run`, async t => {
    let runs = 0
    const store = Object.assign(faulty({}), { claim: async () => answer as unknown as StoreClaim })
    const { post } = await start(t, 'memory', {
      options: { store, onStoreError: 'bypass' },
      routes: app => app.post('/', async () => `run ${++runs}`)
    })
    const { status, json } = await post('k', '{}')
    t.same([status, json()['code'], runs], [503, 'idempotency_store_unavailable', 0])
  })
}

const inWords = (reply: unknown): string => JSON.stringify(String(reply))

t.test('a RedisStore accepts what its script can answer, and nothing else', async t => {
  const claim = { token: randomUUID(), lease: 30_000, ttl: 60_000, takeover: true }
  const text = ['QUEUED', 'a\0\0\0\x01']
  for (const reply of [...text, Buffer.from('QUEUED'), Buffer.from('a'), Buffer.alloc(0), null, 1, []]) {
    const store = new RedisStore({ callBuffer: async () => reply })
    await t.rejects(async () => await store.claim('k', claim), { name: 'StoreAnswerError' }, `claim: ${inWords(reply)}`)
  }
  for (const reply of ['QUEUED', Buffer.from('QUEUED'), null, 2, []]) {
    const store = new RedisStore({ callBuffer: async () => reply })
    const error = { name: 'StoreAnswerError' }
    const { token } = claim
    await t.rejects(async () => await store.renew('k', token, 30_000, 60_000, ''), error, `renew: ${inWords(reply)}`)
    await t.rejects(async () => await store.release('k', token, 60_000, true), error, `release: ${inWords(reply)}`)
  }
})
