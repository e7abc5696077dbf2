/** What a MemoryStore adds to the memory of its process. */
import { MemoryStore } from '../../lib/index.ts'
import { serve } from './child.ts'
import { bytesOf, DAY, keep, keyOf, outcome } from './kept.ts'
import { verify } from './figures.ts'

function used (): number {
  for (let i = 0; i < 3; i++) globalThis.gc?.()
  const { heapUsed, external } = process.memoryUsage()
  // Array buffers are part of what is external.
  return heapUsed + external
}

serve({
  async measure ({ keys, bytes, form }: { keys: number, bytes: number, form: 'string' | 'Buffer' }) {
    // What the code itself takes is not the store's.
    const warm = new MemoryStore({ maxBytes: 10_000 })
    for (let index = 0; index < 5_000; index++) await keep(warm, index, DAY, outcome(index, bytes, form))
    const before = used()
    const store = new MemoryStore({ maxBytes: Infinity })
    for (let index = 0; index < keys; index++) await keep(store, index, DAY, outcome(index, bytes, form))
    const perKey = (used() - before) / keys
    verify(store.read(keyOf(0)) !== undefined && store.read(keyOf(keys - 1)) !== undefined, 'All keys must be kept')
    return { perKey, counted: store.bytes / keys, response: bytesOf(outcome(0, bytes, form)) }
  }
})
