import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { postgresFolder } from '../fixtures/get-postgres.js'
import { loader } from '../fixtures/loader.ts'
import { startPostgres } from '../fixtures/postgres.ts'
import { newestFolder } from './fixtures/newest.ts'

/** The quick tests that take a store as it comes, once more with the keys in PostgreSQL. */
const FILES = ['protocol', 'lifecycle', 'replay', 'leases', 'departures']

const folders = { 'the PostgreSQL of this machine': postgresFolder(), 'the newest PostgreSQL': newestFolder() }
for (const [what, bin] of Object.entries(folders)) {
  if (bin === undefined || !existsSync(bin)) {
    t.test(what, { skip: 'it is not installed' }, () => {})
    continue
  }
  const server = await startPostgres({ bin })
  t.teardown(server.remove)
  // Only the tests that say in their names which store they have.
  const env = { ...process.env, TEST_POSTGRES_URL: server.url, TAP_GREP: '/postgres/' }
  for (const file of FILES) {
    const path = fileURLToPath(new URL(`../${file}.test.ts`, import.meta.url))
    await t.spawn(process.execPath, [...loader, path], { env }, `${what}: ${file}`)
  }
}
