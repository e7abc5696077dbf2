/** Starts and stops the servers, and asks them what they have used. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { AppName } from './apps/index.ts'
import { serverPrefix } from './pin.ts'
import type { Usage } from './server.ts'

export interface RunningServer {
  port: number
  pid: number
  usage: () => Promise<Usage>
  stop: () => Promise<void>
}

export async function startServer (
  app: AppName, redisPort: number, env: NodeJS.ProcessEnv = {}
): Promise<RunningServer> {
  const [execPath = process.execPath, ...execArgv] = [...serverPrefix, process.execPath]
  const child = fork(fileURLToPath(new URL('server.js', import.meta.url)), [app, String(redisPort)], {
    execPath, execArgv, env: { ...process.env, ...env, NODE_ENV: 'production' }
  })
  const exited = once(child, 'exit')
  const failed = exited.then(() => { throw new Error(`the server "${app}" ended by itself`) })
  failed.catch(() => {})
  const message = async <T>(): Promise<T> => (await Promise.race([once(child, 'message'), failed]) as [T])[0]
  const port = await message<number>()
  return {
    port,
    pid: child.pid ?? 0,
    async usage () {
      const answered = message<Usage>()
      child.send('usage')
      return await answered
    },
    async stop () {
      child.kill()
      await exited
    }
  }
}
