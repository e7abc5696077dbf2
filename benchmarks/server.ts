/** A server that is measured, in a process of its own: `server.js <app> <port of Redis>`. */
import type { AddressInfo } from 'node:net'
import { apps, type AppName } from './apps/index.ts'
import { executions } from './apps/executions.ts'

/** What the server has used and done so far. */
export interface Usage {
  /** Microseconds of CPU time, of all threads. */
  cpu: number
  /** Microseconds since the process started. */
  wall: number
  executions: number
}

const [name, redisPort] = process.argv.slice(2)
const start = await apps[name as AppName]()
const server = await start(Number(redisPort))

process.on('message', () => {
  const { user, system } = process.cpuUsage()
  process.send?.({ cpu: user + system, wall: performance.now() * 1_000, executions: executions() } satisfies Usage)
})
// Nothing is left behind when the parent is stopped.
process.on('disconnect', () => process.exit())
process.send?.((server.address() as AddressInfo).port)
