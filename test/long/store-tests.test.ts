import t from 'tap'
import { MemoryStore, type IdempotencyStore } from '../../lib/index.ts'
import { storeAppTests, storeTests, type StoreTestOptions } from '../../lib/store-tests.ts'
import { BROKEN, plain } from '../fixtures/broken-stores.ts'
import { BROKEN_RECORDERS } from '../fixtures/broken-recorders.ts'
import { BROKEN_WATCHES } from '../fixtures/broken-watches.ts'
import { remote, SOUND, UNSOUND } from '../fixtures/remote-store.ts'

/** The suite that users put their stores through must pass what is sound and see what is not. */

/** The names of the tests that fail, of all or of one. */
async function failures (options: Omit<StoreTestOptions, 'test'>, only?: string): Promise<string[]> {
  const tests: Array<[name: string, run: () => Promise<void>]> = []
  const test = (name: string, run: () => Promise<void>): void => {
    if (only === undefined || name === only) tests.push([name, run])
  }
  storeTests({ ...options, test })
  storeAppTests({ ...options, test })
  const failed: string[] = []
  for (const [name, run] of tests) await run().catch(() => failed.push(name))
  return failed
}

let now = 1_000_000
const advance = async (ms: number): Promise<void> => { now += ms }
const create = (): MemoryStore => new MemoryStore({ now: () => now })

t.test('a sound store passes, and is closed behind each test', async t => {
  let open = 0
  const createStore = (): IdempotencyStore => {
    open++
    return { ...plain(create()), close: () => { open-- } }
  }
  t.same(await failures({ createStore, advance }), [])
  t.equal(open, 0)
})

for (const { what, fault, seen } of [...BROKEN, ...BROKEN_RECORDERS, ...BROKEN_WATCHES]) {
  t.test(`a store that ${what} fails`, async t => {
    const createStore = (): ReturnType<typeof plain> => {
      const inner = create()
      return { ...plain(inner), ...fault(inner) }
    }
    t.same(await failures({ createStore, advance, storeTimeout: 100 }, seen), [seen])
  })
}

for (const [what, away] of Object.entries(SOUND)) {
  t.test(`cut off, an operation ${what}: passes`, async t => {
    t.same(await failures({ ...remote(create, away), advance, storeTimeout: 50 }), [])
  })
}

for (const [what, { away, empty, seen }] of Object.entries(UNSOUND)) {
  t.test(`cut off, a store that ${what} fails`, async t => {
    t.same(await failures({ ...remote(create, away, empty), advance, storeTimeout: 50 }, seen), [seen])
  })
}
