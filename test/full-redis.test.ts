import { randomUUID } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import type { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { RedisStore, type StoreClaimRequest, type StoreOutcome } from '../lib/index.ts'
import { gate, start, until } from './fixtures/app.ts'
import { connect, startRedis } from './fixtures/redis.ts'

/** A Redis that has no memory left, and evicts nothing: it refuses all that may need more. */

const server = await startRedis()
const redis = connect(server.port)
t.teardown(async () => {
  redis.disconnect()
  await server.stop()
})

const LEASE = 60_000
const TTL = 3_600_000
const RESULT: StoreOutcome = { fingerprint: 'fp', status: 200, replayable: true, headers: [], body: 'done', text: true }

async function fill (client: Redis): Promise<void> {
  await client.config('SET', 'maxmemory', '1')
}

async function empty (client: Redis): Promise<void> {
  await client.config('SET', 'maxmemory', '0')
}

/** A store, and what it says of one key; Redis is full from `fill` to `empty`, or to the end of the test. */
function scene (t: Test) {
  t.teardown(async () => await empty(redis))
  const store = new RedisStore(redis)
  const key = `{${randomUUID()}}`
  const claim = async (token: string, more: Partial<StoreClaimRequest> = {}) => await store.claim(
    key, { token: token.padEnd(36), lease: LEASE, ttl: TTL, takeover: false, ...more }
  )
  const release = async (token: string, executed: boolean) => await store.release(key, token.padEnd(36), TTL, executed)
  const acquired = (attempt: number) => ({ outcome: 'acquired', attempt, takeover: false })
  return { store, key, claim, release, acquired }
}

t.test('G5: a lease is renewed by a Redis that is full, and its fingerprint is told once there is room', async t => {
  const { store, key, claim } = scene(t)
  await claim('a')
  const before = await store.read(key)
  await fill(redis)
  await t.rejects(redis.set('x', 'y'), /OOM/, 'it is full')
  t.equal(await store.renew(key, 'a'.padEnd(36), 2 * LEASE, TTL, 'fp'), true)
  const after = await store.read(key)
  t.ok(Number(after?.until) - Number(before?.until) >= LEASE, 'the lease is longer by what was asked for')
  t.same([after?.state, after?.since], ['held', before?.since])
  t.equal(await store.renew(key, 'b'.padEnd(36), LEASE, TTL, 'fp'), false, 'another token')
  t.match(await claim('b'), { outcome: 'held', attempt: 1, fingerprint: '' })
  await empty(redis)
  t.equal(await store.renew(key, 'a'.padEnd(36), LEASE, TTL, 'fp'), true)
  t.match(await claim('b'), { outcome: 'held', attempt: 1, fingerprint: 'fp' })
})

t.test('G4: a failure frees its key though Redis is full, and counts as an attempt', async t => {
  const { store, key, claim, release, acquired } = scene(t)
  t.same(await claim('a'), acquired(1))
  await fill(redis)
  t.equal(await release('a', true), true)
  t.match(await store.read(key), { state: 'freed', attempt: 1 })
  t.equal(await release('a', true), true, 'once more, since the answer may have been lost')
  t.equal(await store.renew(key, 'a'.padEnd(36), LEASE, TTL, 'fp'), false)
  await t.rejects(claim('b'), /OOM/, 'a new lease needs memory')
  await empty(redis)
  t.same(await claim('b'), acquired(2), 'nobody takes it for a dead holder\'s')
  t.ok(await redis.pttl(key) > TTL, 'it expires as any held key does')
})

t.test('G4: a claim that nobody used is given back to a Redis that is full, and counts as no attempt', async t => {
  const { store, key, claim, release, acquired } = scene(t)
  t.same(await claim('a'), acquired(1))
  await fill(redis)
  t.equal(await release('a', false), true)
  t.equal(await redis.exists(key), 0, 'there is nothing to remember')
  await empty(redis)
  t.same(await claim('b'), acquired(1))
  t.equal(await release('b', true), true)
  t.same(await claim('c'), acquired(2))
  await fill(redis)
  t.equal(await release('c', false), true)
  t.match(await store.read(key), { state: 'freed', attempt: 1 })
  t.equal(await release('c', false), true)
  await empty(redis)
  t.same(await claim('d'), acquired(2))
})

t.test('G4: what was kept and then fails in a later hook is forgotten though Redis is full', async t => {
  const { store, key, claim, release, acquired } = scene(t)
  await claim('a')
  t.equal(await store.complete(key, 'a'.padEnd(36), RESULT, TTL), true)
  await fill(redis)
  t.equal(await release('a', true), true)
  t.equal(await store.read(key), undefined)
  await empty(redis)
  t.same(await claim('b'), acquired(1))
})

t.test('a holder that died is told from a key that was freed while Redis was full', async t => {
  const { store, key, claim, release, acquired } = scene(t)
  await claim('dead', { lease: 1 })
  await until(async () => (await claim('b')).outcome === 'abandoned', 'the end of the lease')
  await fill(redis)
  t.equal(await release('dead', true), true)
  t.match(await store.read(key), { state: 'freed', attempt: 1 })
  await empty(redis)
  t.same(await claim('b'), acquired(2))
})

t.test('G4, G5, G10: in a full Redis handlers hold their keys, failures free them, outcomes wait for room', async t => {
  const finish = gate()
  const store = new RedisStore(redis)
  const renewals = new Map<string, number>()
  const { renew } = store
  store.renew = async (key, ...args) => {
    const renewed = await renew.call(store, key, ...args)
    if (renewed) renewals.set(key, (renewals.get(key) ?? 0) + 1)
    return renewed
  }
  t.teardown(async () => await empty(redis))
  let entered = 0
  const { post, app } = await start(t, 'memory', {
    options: { store, lease: 3_000 },
    routes: app => {
      const work = async (request: FastifyRequest) => {
        entered++
        await finish.promise
        return { attempt: request.idempotency?.attempt, aborted: request.idempotency?.signal.aborted }
      }
      app.post('/', work)
      app.post('/fails', async (request, reply) => await reply.code(500).send(await work(request)))
    }
  })
  const good = post('good', '{}')
  const bad = post('bad', '{}', { path: '/fails' })
  await until(() => entered === 2, 'both handlers')
  await fill(redis)
  await until(
    () => renewals.size === 2 && [...renewals.values()].every(count => count > 3), 'renewals for more than a lease'
  )
  for (const [key, path] of [['good', '/'], ['bad', '/fails']] as const) {
    t.equal((await post(key, '{}', { path })).json()['code'], 'idempotency_in_progress', path)
  }
  t.equal((await post('new', '{}')).json()['code'], 'idempotency_store_unavailable')
  finish.open()
  t.same((await good).json(), { attempt: 1, aborted: false }, 'what cannot be kept is sent all the same')
  t.same((await bad).json(), { attempt: 1, aborted: false })
  t.equal((await app.idempotency.inspect({ key: 'good' }))?.state, 'held', 'until it is kept')
  t.equal((await app.idempotency.inspect({ key: 'bad' }))?.state, 'freed', 'before the reply has left')
  await empty(redis)
  await until(async () => (await app.idempotency.inspect({ key: 'good' }))?.state === 'completed', 'the outcome')
  t.equal((await post('good', '{}')).replayed, true)
  t.same((await post('bad', '{}', { path: '/fails' })).json(), { attempt: 2, aborted: false })
  t.equal(entered, 3)
})
