import fc from 'fast-check'
import t from 'tap'
import {
  decodeOutcome, encodeOutcome, MemoryStore, RedisStore, type StoreOutcome, type RedisStoreClient
} from '../lib/index.ts'
import { PostgresStore } from '../lib/sql.ts'
import { storeAppTests, storeTests } from '../lib/store-tests.ts'
import { redisClient, serversOf, stopRedis } from './fixtures/app.ts'

t.teardown(stopRedis)
const token = 'a'.repeat(36)
const claim = { token, lease: 10_000, ttl: 60_000, takeover: true }
const outcome: StoreOutcome = {
  fingerprint: 'f', status: 200, replayable: true, headers: [], body: 'x'.repeat(1_000), text: true
}

async function emptyStore (client: Awaited<ReturnType<typeof redisClient>>): Promise<RedisStore> {
  await Promise.all(serversOf(client).map(async server => await server.flushall()))
  return new RedisStore(client)
}

async function flushScripts (client: Awaited<ReturnType<typeof redisClient>>): Promise<void> {
  await Promise.all(serversOf(client).map(async server => await server.script('FLUSH')))
}

t.test('the store contract: MemoryStore, on a clock of the test\'s own', async t => {
  let now = 1_000_000
  const options = {
    createStore: () => new MemoryStore({ now: () => now }),
    test: async (name: string, run: () => Promise<void>) => await t.test(name, run),
    advance: async (ms: number) => { now += ms }
  }
  storeTests(options)
  storeAppTests(options)
})

t.test('the store contract: RedisStore', async t => {
  const client = await redisClient()
  const options = {
    createStore: async () => await emptyStore(client),
    test: async (name: string, run: () => Promise<void>) => await t.test(name, run)
  }
  storeTests(options)
  storeAppTests(options)
})

t.test('G14: MemoryStore drops the oldest ended keys at maxBytes, and never a held one', async t => {
  const store = new MemoryStore({ maxBytes: 10_000 })
  store.claim('held', claim)
  for (let i = 0; i < 50; i++) {
    store.claim(`k${i}`, claim)
    store.complete(`k${i}`, token, outcome, 60_000)
    t.ok(store.bytes <= 10_000)
  }
  t.equal(store.read('held')?.state, 'held')
  t.equal(store.read('k0'), undefined)
  t.equal(store.read('k49')?.state, 'completed')
  t.throws(() => new MemoryStore({ maxBytes: 0 }), /maxBytes/)
  t.throws(() => new MemoryStore({ maxBytes: NaN }), /maxBytes/)
})

t.test('G14: MemoryStore gives expired records back while others are written', async t => {
  let now = 0
  const store = new MemoryStore({ now: () => now })
  for (let i = 0; i < 100; i++) {
    store.claim(`k${i}`, claim)
    store.complete(`k${i}`, token, outcome, 50)
  }
  const full = store.bytes
  now = 100
  for (let i = 0; i < 40; i++) {
    store.claim(`late${i}`, { ...claim, lease: 1, ttl: 1 })
    store.complete(`late${i}`, token, { ...outcome, body: Buffer.alloc(0) }, 1)
    now += 5
  }
  t.ok(store.bytes < full / 10, `${store.bytes} of ${full} bytes are left`)
})

t.test('G14: MemoryStore drops the oldest first whatever their ttl, and finds all others among thousands', async t => {
  let now = 0
  const store = new MemoryStore({ maxBytes: 1_000_000, now: () => now })
  const keep = (i: number, body: string): void => {
    now++
    store.claim(`k${i}`, claim)
    store.complete(`k${i}`, token, { ...outcome, body }, 60_000 + i % 3)
  }
  const known = (i: number): string | undefined => {
    const body = store.read(`k${i}`)?.result?.body
    return body === undefined ? undefined : String(body)
  }
  for (let i = 0; i < 5_000; i++) keep(i, `body ${i}`)
  for (let i = 0; i < 5_000; i += 5) t.equal(store.remove(`k${i}`), true)
  for (let i = 0; i < 5_000; i++) {
    if (known(i) !== (i % 5 === 0 ? undefined : `body ${i}`)) {
      t.fail(
    `k${i} is ${known(i)}`
      )
    }
  }
  // Larger than a segment of the log, and most of what fits.
  keep(5_000, 'x'.repeat(600_000))
  const gone = Array.from({ length: 5_001 }, (_, i) => i).filter(i => i % 5 !== 0 && known(i) === undefined)
  t.ok(gone.length > 0 && gone.length < 4_000)
  t.equal(gone.at(-1), gone.length + Math.floor(gone.length / 4) - (
    gone.length % 4 === 0 ? 1 : 0
  ), 'the oldest, without a gap')
  t.equal(known(5_000)?.length, 600_000)
  for (let i = 5_001; i < 10_000; i++) keep(i, `body ${i}`)
  t.equal(known(5_000), undefined)
  t.equal(known(9_999), 'body 9999')
  t.ok(store.bytes <= 1_000_000)
})

t.test('G1, G14: MemoryStore counts all of a response in maxBytes, and drops nothing for one that cannot fit', t => {
  const store = new MemoryStore({ maxBytes: 5_000 })
  store.claim('small', claim)
  store.complete('small', token, { ...outcome, body: 'small' }, 60_000)
  for (const [key, more] of [
    ['body', { body: 'x'.repeat(4_950) }], ['headers', { headers: [['x-long', 'x'.repeat(6_000)]] }]
  ] as const) {
    store.claim(key, claim)
    t.equal(store.complete(key, token, { ...outcome, ...more } as StoreOutcome, 60_000), true)
    t.match(store.read(key), { state: 'completed', result: { status: 200, replayable: false } }, key)
  }
  t.match(store.read('small'), { state: 'completed', result: { body: 'small' } })
  t.end()
})

t.test('G1, G14: MemoryStore knows that a response was sent which is larger than its maxBytes', async t => {
  const store = new MemoryStore({ maxBytes: 5_000 })
  store.claim('k', claim)
  store.complete('k', token, { ...outcome, body: 'x'.repeat(5_000) }, 60_000)
  t.match(store.claim('k', { ...claim, token: 'b'.repeat(36) }), {
    outcome: 'completed', result: { status: 200, replayable: false, body: '' }
  })
})

t.test('G14, G16: MemoryStore frees a key whose steps are larger than its maxBytes, unbound', async t => {
  const store = new MemoryStore({ maxBytes: 5_000 })
  store.claim('k', claim)
  const binding = { fingerprint: 'f', steps: [{ name: 'step', result: 'x'.repeat(5_000) }] }
  t.equal(store.release('k', token, 60_000, true, binding), true)
  t.match(store.read('k'), { state: 'freed', attempt: 1 })
  t.same(store.recorded('k'), [])
  t.strictSame(store.claim('k', claim), { outcome: 'acquired', attempt: 2, takeover: false })
  const tiny = new MemoryStore({ maxBytes: 1 })
  tiny.claim('k', claim)
  t.equal(tiny.release('k', token, 60_000, true), true)
  t.equal(tiny.read('k'), undefined, 'there is no room at all')
})

t.test('G13: what MemoryStore has handed out stays as it is when its memory is used again', async t => {
  const store = new MemoryStore({ maxBytes: 600_000 })
  const large = { ...outcome, body: Buffer.alloc(10_000, 'a'), text: false }
  const keep = (key: string): void => {
    store.claim(key, claim)
    store.complete(key, token, large, 60_000)
  }
  keep('first')
  const held = store.claim('first', { ...claim, token: 'b'.repeat(36) })
  t.equal(held.outcome, 'completed')
  large.body = Buffer.alloc(10_000, 'b')
  for (let i = 0; i < 200; i++) keep(`k${i}`)
  t.equal(store.read('first'), undefined)
  t.ok((held as { result: StoreOutcome }).result.body.toString() === 'a'.repeat(10_000))
})

t.test('G14: MemoryStore forgets dead holders after their ttl', async t => {
  let now = 0
  const store = new MemoryStore({ now: () => now })
  store.claim('dead', { ...claim, lease: 10, ttl: 10 })
  now = 50
  store.claim('k', claim)
  store.complete('k', token, outcome, 60_000)
  t.equal(store.remove('dead'), false)
})

t.test('G14: every key that RedisStore writes has a ttl', async t => {
  const client = await redisClient()
  const store = new RedisStore(client)
  const ttl = async (): Promise<number> => await client.pttl('ttl')
  await store.claim('ttl', claim)
  t.ok(await ttl() > 69_000 && await ttl() <= 70_000)
  await store.renew('ttl', token, 20_000, 60_000, '')
  t.ok(await ttl() > 79_000)
  await store.complete('ttl', token, outcome, 5_000)
  t.ok(await ttl() > 0 && await ttl() <= 5_000)
  await store.release('ttl', token, 3_000, true)
  t.ok(await ttl() > 0 && await ttl() <= 3_000)
})

t.test('G10: RedisStore survives SCRIPT FLUSH', async t => {
  const client = await redisClient()
  const store = new RedisStore(client)
  await store.claim('flush', claim)
  await flushScripts(client)
  t.equal(await store.complete('flush', token, outcome, 60_000), true)
})

t.test('RedisStore does each step in one round trip', async t => {
  const client = await redisClient()
  const store = new RedisStore(client)
  await store.claim('warm', claim)
  await store.renew('warm', token, 1_000, 1_000, '')
  await store.complete('warm', token, outcome, 1_000)
  await store.read('warm')
  const commands: string[] = []
  const counting = new RedisStore({
    callBuffer: async (command, ...args) => {
      commands.push(command)
      return await client.callBuffer(command, ...args)
    }
  })
  await counting.claim('trip', claim)
  await counting.renew('trip', token, 1_000, 1_000, '')
  await counting.complete('trip', token, outcome, 60_000)
  await counting.claim('trip', { ...claim, token: 'b'.repeat(36) })
  await counting.release('trip', token, 1_000, true)
  await counting.read('trip')
  await counting.remove('trip')
  t.same(commands, ['EVALSHA', 'EVALSHA', 'EVALSHA', 'EVALSHA', 'EVALSHA', 'EVALSHA', 'DEL'])
})

t.test('a record of an unknown version is an error that says so, never a replay', async t => {
  const client = await redisClient()
  const store = new RedisStore(client)
  await store.claim('version', claim)
  await client.setrange('version', 0, '\x07')
  await t.rejects(store.claim('version', claim), /unknown version 7/)
  await store.remove('version')
  await store.claim('version', claim)
  await store.complete('version', token, outcome, 60_000)
  await client.setrange('version', 58, '9')
  await t.rejects(store.claim('version', claim), /unknown record version "9"/)
  await t.rejects(store.read('version'), /unknown record version "9"/)
  await client.hset('hash', 'a', 'b')
  await t.rejects(store.claim('hash', claim), /WRONGTYPE/)
  await flushScripts(client)
  await t.rejects(store.claim('hash', claim), /WRONGTYPE/)
  t.throws(() => decodeOutcome(Buffer.alloc(0)), /unknown record version none/)
  for (const flags of [1, 3]) {
    for (const head of ['200 f\r\n', '2x0 f\r\n\r\n', '200 f\r\na\r\nb: c\r\n\r\n', '200 f\r\nb; c\r\n\r\n']) {
      t.throws(() => decodeOutcome(Buffer.from(`1${flags}${head}`)), /damaged/)
    }
  }
})

t.test('G14: MemoryStore refuses a key that is too long for its log, and goes on', async t => {
  const store = new MemoryStore()
  t.throws(() => store.claim('k'.repeat(20_000), claim), /key and token may have 20000 characters, got 20036/)
  const longest = '\u20ac'.repeat(20_000 - token.length)
  store.claim(longest, claim)
  t.equal(store.complete(longest, token, outcome, 60_000), true)
  t.match(store.claim(longest, claim), { outcome: 'completed', result: outcome })
})

t.test('G13: any outcome comes back from its binary form as it was', async t => {
  // What Node.js lets into a header: field names in lower case, latin1 values without control characters.
  const name = fc.string({ unit: fc.constantFrom(...'abcxyz019-_.'), minLength: 1 })
  const value = fc.string({ unit: fc.constantFrom(...'aZ0 :;=",\t\xe9\xff') })
  const body = fc.oneof(
    fc.string({ unit: 'grapheme', maxLength: 5_000 }), fc.uint8Array().map(bytes => Buffer.from(bytes))
  )
  fc.assert(fc.property(
    fc.record({
      fingerprint: fc.string({ unit: fc.constantFrom(...'abcXYZ019-_.') }),
      status: fc.integer({ min: 200, max: 599 }),
      replayable: fc.boolean(),
      headers: fc.uniqueArray(
        fc.tuple(name, fc.oneof(value, fc.array(value, { minLength: 2 }))), { selector: ([name]) => name }
      )
    }), body,
    (head, body) => {
      const { body: decoded, ...rest } = decodeOutcome(encodeOutcome({ ...head, body, text: typeof body === 'string' }))
      t.strictSame(rest, { ...head, text: typeof body === 'string' })
      t.ok(Buffer.from(decoded as string).equals(Buffer.from(body as string)))
    }), {
    numRuns: 300, examples: [[{ fingerprint: 'f', status: 200, replayable: true, headers: [] }, 'ü'.repeat(3_000)]]
  })
})

t.test('a client of another shape is refused with what is needed', async t => {
  t.throws(() => new RedisStore({} as RedisStoreClient), /ioredis client.*callBuffer/)
  t.throws(() => new RedisStore(null as unknown as RedisStoreClient), TypeError)
  const callBuffer = async (): Promise<unknown> => null
  for (const options of [{ minReplicas: -1 }, { minReplicas: 1.5 }, { replicaTimeout: 0 }]) {
    t.throws(() => new RedisStore({ callBuffer }, options), /must be whole numbers/)
  }
})

t.test('an option of a store that is unknown, mistyped or wrong is refused when the store is made', async t => {
  const client: RedisStoreClient = { callBuffer: async () => null }
  const pool = { query: async () => ({ rows: [] }) }
  const makers: Record<string, [make: (options: never) => unknown, names: string, typo: string, meant: string]> = {
    MemoryStore: [options => new MemoryStore(options), 'maxBytes, now', 'maxbyte', 'maxBytes'],
    RedisStore: [
      options => new RedisStore(client, options), 'minReplicas, replicaTimeout', 'minReplica', 'minReplicas'
    ],
    PostgresStore: [options => new PostgresStore(pool, options), 'table, prepare', 'prepared', 'prepare']
  }
  for (const [name, [make, names, typo, meant]] of Object.entries(makers)) {
    const refused = (options: unknown, message: string): void => {
      const full = `fastify-idempotency: the options of ${name}${message}`
      t.throws(() => make(options as never), { name: 'TypeError', message: full })
    }
    refused(null, ` must be an object with ${names}; got null`)
    refused('fast', ` must be an object with ${names}; got 'fast'`)
    refused([], ` must be an object with ${names}; got []`)
    refused({ [typo]: 1 }, `: unknown option "${typo}"; did you mean "${meant}"?`)
    refused({ keyPrefix: 'k:' }, `: unknown option "keyPrefix"; the options here are ${names}`)
    const [first = ''] = names.split(', ')
    t.doesNotThrow(() => make({ [first]: undefined } as never), name)
  }
  for (const now of [1, null, new Date(0)]) {
    t.throws(() => new MemoryStore({ now: now as never }), {
      name: 'TypeError', message: /^MemoryStore: option "now" must be a function that gives milliseconds .*, got /
    })
  }
})

t.test('a sweep of PostgresStore takes a whole number of keys, and asks nothing otherwise', async t => {
  const asked: unknown[] = []
  const store = new PostgresStore({
    async query ({ values }) {
      asked.push(values[1])
      return { rows: [{ seen: '0', gone: '0' }] }
    }
  })
  const wrong: Array<[limit: unknown, got: string]> = [
    [-1, '-1'], [0, '0'], [1.5, '1.5'], [2 ** 53, '9007199254740992'], [NaN, 'NaN'], ['5', "'5'"], [null, 'null'],
    [{ limit: 5 }, '[Object]']
  ]
  for (const [limit, got] of wrong) {
    await t.rejects(store.sweep(limit as number), {
      name: 'TypeError',
      message: `PostgresStore: the limit of a sweep must be a whole number, at least 1, got ${got}`
    })
  }
  for (const limit of [undefined, 1, 2 ** 31]) t.equal(await store.sweep(limit), 0)
  t.same(asked, ['1000', '1', '2147483648'])
})

t.test('G10: RedisStore says why a write counts too few replicas', async t => {
  const results: Array<Array<[Error | null, unknown]>> = []
  const client: RedisStoreClient = {
    callBuffer: async () => Buffer.from('a\0\0\0\x01'),
    pipeline: () => ({ exec: async () => results.shift() ?? null })
  }
  const store = new RedisStore(client, { minReplicas: 1, replicaTimeout: 50 })
  const claim = async (): Promise<unknown> => await store.claim('k', { token: 't', lease: 1, ttl: 1, takeover: true })
  results.push([[null, 1], [null, 1]], [[null, 1], [null, 0]])
  // The record is gone by the time that it is touched.
  results.push([[null, 0], [null, 1]])
  results.push([[new Error('touch'), undefined], [null, 1]], [[null, 1], [new Error('wait'), undefined]])
  t.match(await claim(), { outcome: 'acquired' })
  await t.rejects(claim(), { message: '0 of 1 replicas have the write after 50 ms' })
  await t.rejects(claim(), { message: '0 of 1 replicas have the write after 50 ms' })
  await t.rejects(claim(), { message: /^1 of 1/, cause: { message: 'touch' } })
  await t.rejects(claim(), { message: /^0 of 1/, cause: { message: 'wait' } })
})
