import type { Part } from '../part.ts'
import { flat } from './flat.ts'
import { hot } from './hot.ts'
import { memory } from './memory.ts'
import { pauses } from './pauses.ts'
import { processes } from './processes.ts'
import { storm } from './storm.ts'

/** How the plugin behaves with many keys, many processes and many duplicates. */
export const scaleParts: Part[] = [flat, memory, pauses, processes, hot, storm].map(({ name, run }) => ({
  name,
  async run () {
    process.stderr.write(`${name} … `)
    const started = performance.now()
    const section = await run()
    process.stderr.write(`${((performance.now() - started) / 1_000).toFixed(0)} s\n`)
    return section
  }
}))
