import { Redis as Redis5 } from 'ioredis-5'
import { Redis as Valkey } from 'iovalkey'
import t, { type Test } from 'tap'
import { RedisStore, type RedisStoreClient } from '../../lib/index.ts'
import { storeAppTests, storeTests, type Outage, type StoreTestOptions } from '../../lib/store-tests.ts'
import { until } from '../fixtures/app.ts'
import { connectCluster, startCluster } from '../fixtures/cluster.ts'
import { startProxy } from '../fixtures/proxy.ts'
import { connect, startRedis, type RedisServer } from '../fixtures/redis.ts'

/** The clients that the README names, each through the whole suite, on a server that is frozen or cut off. */

/** What all of these clients have beside what RedisStore needs. */
interface Client extends RedisStoreClient { ping: () => Promise<unknown>, disconnect: () => void }

/** A short time for outages, long enough for a server that was just thawed. */
const STORE_TIMEOUT = 500

function run (t: Test, client: Client, servers: RedisServer[], outage: Outage): void {
  const admins = servers.map(({ port }) => connect(port))
  t.teardown(() => { for (const each of [client, ...admins]) each.disconnect() })
  const options: StoreTestOptions = {
    async createStore () {
      // The scripts as well: a server that does not know them yet.
      await Promise.all(admins.flatMap(admin => [admin.flushall(), admin.script('FLUSH')]))
      return new RedisStore(client)
    },
    test: async (name, run) => await t.test(name, run),
    outage,
    storeTimeout: STORE_TIMEOUT
  }
  storeTests(options)
  storeAppTests(options)
}

/** The processes are stopped, and go on where they were. */
const frozen = (servers: RedisServer[]): Outage => {
  const signal = (name: NodeJS.Signals) => () => { for (const server of servers) server.process.kill(name) }
  return { begin: signal('SIGSTOP'), end: signal('SIGCONT') }
}

const options = { maxRetriesPerRequest: 1, retryStrategy: () => 50 }
const CLIENTS: Record<string, (port: number) => Client> = {
  'ioredis 6': connect,
  'ioredis 5': port => new Redis5(port, '127.0.0.1', options).on('error', () => {}),
  'ioredis 5, enableAutoPipelining': port => new Redis5(
    port, '127.0.0.1', { ...options, enableAutoPipelining: true }
  ).on('error', () => {}),
  iovalkey: port => new Valkey(port, '127.0.0.1', options).on('error', () => {})
}

const server = await startRedis()
t.teardown(server.stop)

for (const [name, create] of Object.entries(CLIENTS)) {
  t.test(`G10: the store contract: RedisStore with ${name}, the server frozen`, async t => {
    run(t, create(server.port), [server], frozen([server]))
  })
}

t.test('G10: the store contract: RedisStore with ioredis 6, the connection cut', async t => {
  const proxy = await startProxy(server.port)
  t.teardown(proxy.stop)
  const client = connect(proxy.port)
  run(t, client, [server], {
    begin () {
      proxy.lose = 'requests'
      proxy.cut()
    },
    async end () {
      proxy.lose = undefined
      proxy.cut()
      await until(async () => await client.ping().then(() => true, () => false), 'a connection')
    }
  })
})

t.test('G10: the store contract: RedisStore with a Cluster of ioredis 6, its servers frozen', async t => {
  const cluster = await startCluster()
  t.teardown(cluster.stop)
  run(t, connectCluster(cluster.ports), cluster.nodes, frozen(cluster.nodes))
})
