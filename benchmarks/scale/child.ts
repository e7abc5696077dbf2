/** Parts of a benchmark in processes of their own, which answer commands. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { keepAside, keepWithServers, letLoose } from '../pin.ts'

export interface Child {
  ask: <T>(command: string, argument?: unknown) => Promise<T>
  /**
   * On the servers' core, or off it; on any until then. A million keys are made first: the collector's helpers need
   * other cores.
   */
  keep: (where: 'with servers' | 'aside') => void
  stop: () => Promise<void>
}

interface Answer { value?: unknown, error?: string }

/** `file`: a module beside this one that calls `serve`; `heap`: MiB, for a million keys. */
export async function start (file: string, heap = 8_192): Promise<Child> {
  const child = fork(
    fileURLToPath(new URL(file, import.meta.url)), [], { execArgv: ['--expose-gc', `--max-old-space-size=${heap}`] }
  )
  const pid = child.pid ?? 0
  letLoose(pid)
  const exited = once(child, 'exit')
  const gone = exited.then(([code, signal]) => { throw new Error(`${file} ended: ${String(code ?? signal)}`) })
  gone.catch(() => {})
  // Commands are answered one at a time.
  let last: Promise<Answer> = Promise.resolve({})
  return {
    async ask<T> (command: string, argument: unknown = {}) {
      const before = last
      const { value, error } = await (last = before.catch(() => undefined).then(async () => {
        const answer = once(child, 'message')
        child.send([command, argument])
        return await Promise.race([answer.then(([answer]) => answer as Answer), gone])
      }))
      if (error !== undefined) throw new Error(`${file}: ${error}`)
      return value as T
    },
    keep (where) {
      const place = where === 'aside' ? keepAside : keepWithServers
      place(pid)
    },
    async stop () {
      child.kill('SIGKILL')
      await exited
    }
  }
}

/** In the child: answers one command at a time. */
export function serve (commands: Record<string, (argument: any) => unknown>): void {
  // Nothing is left behind when the parent is stopped.
  process.on('disconnect', () => process.exit())
  process.on('message', ([command, argument]: [string, unknown]) => {
    Promise.resolve().then(() => commands[command]?.(argument)).then(
      value => process.send?.({ value }),
      (error: Error) => process.send?.({ error: error.stack })
    )
  })
}
