import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { postgresFolder } from '../fixtures/get-postgres.js'
import { loader } from '../fixtures/loader.ts'
import { startPostgres } from '../fixtures/postgres.ts'
import { newestFolder } from './fixtures/newest.ts'

/** The quick tests that take a store as it comes, once more with the keys in PostgreSQL. */
const FILES = ['protocol', 'endings', 'hang-ups', 'wire', 'replay', 'leases', 'departures', 'early-replies']

const folders = { 'the PostgreSQL of this machine': postgresFolder(), 'the newest PostgreSQL': newestFolder() }
// All are started first: a test file that is idle between two of its tests has ended.
const servers = await Promise.all(Object.entries(folders).map(async ([what, bin]) => {
  const server = bin === undefined || !existsSync(bin) ? undefined : await startPostgres({ bin })
  t.teardown(async () => { await server?.remove() })
  return { what, server }
}))

for (const { what, server } of servers) {
  if (server === undefined) {
    t.test(what, { skip: 'it is not installed' }, () => {})
    continue
  }
  // Only the tests that say in their names which store they have.
  const env = { ...process.env, TEST_POSTGRES_URL: server.url, TAP_GREP: '/postgres/' }
  for (const file of FILES) {
    const path = fileURLToPath(new URL(`../${file}.test.ts`, import.meta.url))
    await t.spawn(process.execPath, [...loader, path], { env }, `${what}: ${file}`)
  }
}
