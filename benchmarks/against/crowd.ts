/** Other busy servers on the servers' core, which keep its caches cold. */
import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { startServer, type RunningServer } from '../servers.ts'
import { keepAside } from '../pin.ts'

const CROWD = Number(process.env['CROWD'] ?? 0)

export interface Crowd { servers: number, stop: () => Promise<void> }

/** Starts `CROWD` bare servers, and one process that keeps all of them busy. */
export async function crowd (): Promise<Crowd> {
  const servers: RunningServer[] = []
  for (let i = 0; i < CROWD; i++) servers.push(await startServer('bare', 0))
  let load: ChildProcess | undefined
  if (CROWD > 0) {
    load = fork(fileURLToPath(new URL('crowd-load.js', import.meta.url)), servers.map(({ port }) => String(port)))
    keepAside(load.pid ?? 0)
    await once(load, 'message')
  }
  return {
    servers: CROWD,
    async stop () {
      load?.kill()
      await Promise.all(servers.map(async server => { await server.stop() }))
    }
  }
}
