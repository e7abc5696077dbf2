/**
 * A server that is fed from memory: `fed.js <app> <keys>` prints the CPU time of one request in µs, without a kernel
 * and a client in it; `fed.js <app> <keys> allocation` the bytes that one allocates.
 */
import { PerformanceObserver } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { executions } from '../apps/executions.ts'
import { apps, type AppName } from '../apps/index.ts'
import type { Keys } from '../cases.ts'
import { spread } from '../spread.ts'
import { feed } from './feeder.ts'

const WARM_UP = 60_000
const ROUNDS = 9
const REQUESTS = 20_000
/** So few that what the store keeps outside of the heap starts no collection. */
const FEW = 5_000

const [name, keys, what] = process.argv.slice(2) as [AppName, Keys, 'allocation' | undefined]
const start = await apps[name]()
const server = await start(0)

const { answer, refused } = feed(server, keys, '/payments')

await answer(1)
await answer(WARM_UP)

/** CPU time of one request in µs. */
async function costOfRequest (): Promise<number> {
  const before = process.cpuUsage()
  await answer(REQUESTS)
  const { user, system } = process.cpuUsage(before)
  return (user + system) / REQUESTS
}

/** Bytes that one request allocates; NaN when a collection came between: the heap says nothing then. */
async function bytesOfRequest (): Promise<number> {
  let collections = 0
  const observer = new PerformanceObserver(list => { collections += list.getEntries().length })
  globalThis.gc?.()
  await sleep(10)
  observer.observe({ entryTypes: ['gc'] })
  const before = process.memoryUsage().heapUsed
  await answer(requests)
  const bytes = process.memoryUsage().heapUsed - before
  await sleep(10)
  observer.disconnect()
  return collections > 0 ? NaN : bytes / requests
}

const requests = what === 'allocation' ? FEW : REQUESTS
const samples: number[] = []
for (let round = 0; round < ROUNDS; round++) {
  samples.push(await (what === 'allocation' ? bytesOfRequest : costOfRequest)())
}
const measured = samples.filter(sample => !Number.isNaN(sample))
if (measured.length < ROUNDS / 2) {
  throw new Error(`${name}: collections came between in ${ROUNDS - measured.length} of ${ROUNDS} rounds`)
}
const expected = keys === 'same' && name !== 'bare' ? 1 : 1 + WARM_UP + ROUNDS * requests
if (refused() > 0 || executions() !== expected) {
  throw new Error(`${name}: ${refused()} requests were not answered with 201; the handler ran ${executions()} times ` +
    `instead of ${expected}`)
}
console.log(spread(measured).median)
process.exit()
