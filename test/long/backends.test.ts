import { basename } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { startCluster } from '../fixtures/cluster.ts'
import { loader } from '../fixtures/loader.ts'
import { has } from '../fixtures/redis.ts'

/** The tests that talk to Redis, once more on what takes its place. */
const NAMES = ['stores', 'protocol', 'endings', 'hang-ups', 'wire', 'replay', 'registration', 'leases']
const FILES = NAMES.map(name => `../${name}`)

const run = async (files: string[], env: Record<string, string>, what: string): Promise<void> => {
  for (const file of files) {
    const path = fileURLToPath(new URL(`${file}.test.ts`, import.meta.url))
    await t.spawn(
      process.execPath, [...loader, path], { env: { ...process.env, ...env } }, `${what}: ${basename(file)}`
    )
  }
}

const cluster = await startCluster()
t.teardown(cluster.stop)
await run(FILES, { TEST_REDIS_CLUSTER: cluster.ports.join() }, 'on a Redis Cluster of three')

if (has('valkey-server') && has('redis-server')) {
  const files = [...FILES, 'outages', 'outages-backlog', '../connections']
  await run(files, { TEST_REDIS_COMMAND: 'valkey-server' }, 'on Valkey')
} else {
  t.test('on Valkey', { skip: 'only one of redis-server and valkey-server is on PATH' }, () => {})
}
