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

/** A script in a process of its own, on the servers' core. */
export interface ServerProcess<First> {
  /** What it has said once it had started. */
  first: First
  pid: number
  /** Sends it a message. Its answer. */
  ask: <T>(question: string | number) => Promise<T>
  stop: () => Promise<void>
}

export async function startProcess<First> (
  script: string, args: string[], env: NodeJS.ProcessEnv
): Promise<ServerProcess<First>> {
  const [execPath = process.execPath, ...execArgv] = [...serverPrefix, process.execPath]
  const child = fork(fileURLToPath(new URL(script, import.meta.url)), args, {
    execPath, execArgv, env: { ...process.env, ...env, NODE_ENV: 'production' }
  })
  const exited = once(child, 'exit')
  const failed = exited.then(() => { throw new Error(`the server "${args[0]}" ended by itself`) })
  failed.catch(() => {})
  const message = async <T>(): Promise<T> => (await Promise.race([once(child, 'message'), failed]) as [T])[0]
  return {
    first: await message<First>(),
    pid: child.pid ?? 0,
    async ask<T> (question: string | number) {
      const answered = message<T>()
      child.send(question)
      return await answered
    },
    async stop () {
      child.kill()
      await exited
    }
  }
}

export async function startServer (
  app: AppName, redisPort: number, env: NodeJS.ProcessEnv = {}
): Promise<RunningServer> {
  const { first: port, pid, ask, stop } = await startProcess<number>('server.js', [app, String(redisPort)], env)
  return { port, pid, usage: async () => await ask<Usage>('usage'), stop }
}
