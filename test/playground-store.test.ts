import { deserialize, serialize } from 'node:v8'
import t from 'tap'
import { keepsSteps, observedStore, storeOverIpc } from '../examples/playground/store-over-ipc.ts'
import { MemoryStore, type IdempotencyStore } from '../lib/index.ts'
import { storeTests } from '../lib/store-tests.ts'

/** What the instances of the playground have for a store passes on all that the store contract has. */

/** As IPC with advanced serialization does. */
const copy = (value: unknown): never => deserialize(serialize(value)) as never

function createStore (): IdempotencyStore {
  const parent = observedStore(
    new MemoryStore(), () => {}
  ) as unknown as Record<string, (...args: unknown[]) => unknown>
  return storeOverIpc(async (method, ...args) => copy(await parent[method]?.(...copy(args) as unknown[])))
}

t.test('it keeps steps', async t => t.ok(keepsSteps(createStore())))

storeTests({ createStore, test: async (name, run) => await t.test(`over IPC: ${name}`, run) })
