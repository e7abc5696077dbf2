import { randomUUID } from 'node:crypto'
import type { FastifyInstance } from 'fastify'
import type { Cluster } from 'ioredis'
import t, { type Test } from 'tap'
import { RedisStore } from '../../lib/index.ts'
import { gate, start, until } from '../fixtures/app.ts'
import { connectCluster, startCluster } from '../fixtures/cluster.ts'
import { connect } from '../fixtures/redis.ts'
import { replicaOf, startReplicated } from '../fixtures/replicas.ts'

/** An app that finds whichever is the primary of a pair. */
async function pair (t: Test, minReplicas: number, storeTimeout = 1_000, more = (_app: FastifyInstance): void => {}) {
  const { way, link, replica, failOver: promote } = await startReplicated(t)
  const client = connect(way.port)
  t.teardown(() => client.disconnect())
  let runs = 0
  const finish = gate()
  const entered = gate()
  const app = await start(t, 'memory', {
    options: { redis: client, minReplicas, storeTimeout, lease: 60_000 },
    routes: app => {
      more(app)
      app.post('/', async () => ({ run: ++runs, id: randomUUID() }))
      app.post('/slow', async () => {
        entered.open()
        await finish.promise
        return { run: ++runs, id: randomUUID() }
      })
    }
  })
  const failOver = async (): Promise<void> => {
    await promote()
    await until(async () => await client.ping().then(() => true, () => false), 'the new primary')
  }
  return { ...app, link, replica, failOver, finish, entered, client, runs: () => runs }
}

t.test('a failover with asynchronous replication can lose the last writes: the key starts anew', async t => {
  const { post, link, failOver, runs, client } = await pair(t, 0)
  const kept = await post('before', '{}')
  await until(async () => await client.wait(1, 100) === 1, 'the replica has it')
  link.lose = 'replies'
  const lost = await post('k', '{}')
  t.equal(lost.status, 200)
  await failOver()
  t.equal((await post('before', '{}')).text, kept.text)
  t.not((await post('k', '{}')).text, lost.text, 'what had not been replicated runs again')
  t.equal(runs(), 3)
})

t.test('G1, G3, G10: with minReplicas nothing runs that a failover could lose; answers survive it', async t => {
  const { post, link, replica, failOver, runs, client } = await pair(t, 1)
  link.lose = 'replies'
  const refused = await post('k', '{}')
  t.same([refused.status, refused.json().code, runs()], [503, 'idempotency_store_unavailable', 0])
  link.lose = undefined
  link.cut()
  await until(replica.isLinked, 'the replica is in sync again')
  const first = await post('k', '{}')
  t.equal(first.status, 200)
  await client.script('FLUSH')
  t.equal((await post('other', '{}')).status, 200)
  await failOver()
  const replay = await post('k', '{}')
  t.same([replay.text, replay.replayed, runs()], [first.text, true, 2])
  t.equal((await post('new', '{}')).status, 503, 'the new primary has no replica')
  await replicaOf(t, replica.port)
  await until(async () => (await post('new', '{}')).status === 200, 'it has one')
  t.equal(runs(), 3)
})

t.test('G16: with minReplicas a step counts once a replica has it, and survives a failover then', async t => {
  let charges = 0
  let mails = 0
  let fails = true
  let charging = (): void => {}
  const routes = (app: FastifyInstance): unknown => app.post('/steps', async (request, reply) => {
    const { step } = request.idempotency
    const charge = await step('charge', () => {
      charging()
      return ++charges
    })
    await step('mail', () => ++mails)
    return await reply.code(fails ? 500 : 201).send({ charge })
  })
  const { post, link, replica, failOver } = await pair(t, 1, 4_000, routes)
  const ask = async (): Promise<unknown[]> => {
    const { status, json } = await post('k', '{}', { path: '/steps' })
    return [status, json()['code'] ?? json()['charge'], charges, mails]
  }
  charging = () => { link.lose = 'replies' }
  t.same(await ask(), [503, 'idempotency_store_unavailable', 1, 0], 'the handler does not go on')
  link.lose = undefined
  link.cut()
  await until(replica.isLinked, 'the replica is in sync again')
  t.same(await ask(), [500, 1, 1, 1])
  fails = false
  await failOver()
  await replicaOf(t, replica.port)
  let answer: unknown[] = []
  await until(async () => (answer = await ask())[0] === 201, 'the new primary has a replica')
  t.same(answer, [201, 1, 1, 1], 'neither step has run again')
})

t.test('G1, G2, G10: a failover under a running handler', async t => {
  const { post, replica, failOver, finish, entered, runs } = await pair(t, 1, 4_000)
  const first = post('k', '{}', { path: '/slow' })
  await Promise.race([entered.promise, first])
  await failOver()
  t.equal((await post('k', '{}', { path: '/slow' })).json().code, 'idempotency_in_progress')
  finish.open()
  const { text, status } = await first
  t.equal(status, 200)
  t.not((await post('k', '{}', { path: '/slow' })).status, 500)
  await replicaOf(t, replica.port)
  await until(async () => (await post('k', '{}', { path: '/slow' })).replayed, 'the response is kept in the background')
  t.equal((await post('k', '{}', { path: '/slow' })).text, text)
  t.equal(runs(), 1)
})

t.test('G1, G3: a Redis Cluster that promotes the replica of a killed primary by itself', async t => {
  const cluster = await startCluster({ replica: true })
  t.teardown(cluster.stop)
  const client: Cluster = connectCluster(cluster.ports)
  t.teardown(() => client.disconnect())
  // Only the first primary, with the lowest slots, has a replica.
  let tag = 0
  while (await client.cluster('KEYSLOT', `{${tag}}`) > 5_000) tag++
  let runs = 0
  const { post } = await start(t, 'memory', {
    options: { redis: client, minReplicas: 1, keyPrefix: `{${tag}}` },
    routes: app => app.post('/', async () => ({ run: ++runs }))
  })
  const first = await post('k', '{}')
  t.equal(first.status, 200)
  await cluster.nodes[0]?.kill()
  let replay = await post('k', '{}')
  await until(async () => (replay = await post('k', '{}')).status === 200, 'the promotion')
  t.same([replay.text, replay.replayed, runs], [first.text, true, 1])
  t.equal((await post('new', '{}')).status, 503, 'the new primary has no replica')

  const alone = await start(t, 'memory', {
    options: { store: new RedisStore(client, { minReplicas: 1 }) }, routes: app => app.post('/', async () => 'ok')
  })
  t.equal((await alone.post('k', '{}')).status, 503, 'a primary without a replica')
})
