/** Runs one instance as a child process: starts it again when it has died, and never leaves it behind. */
import { fork, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import type { Name } from './events.ts'
import { answerCalls } from './ipc.ts'

// The parent's own way: .ts from the sources, .js once compiled.
const file = fileURLToPath(import.meta.url).replace('supervisor', 'instance')

export interface Hooks {
  methods: Parameters<typeof answerCalls>[1]
  life: (what: 'starting' | 'up' | 'down') => void
}

export class Supervised {
  readonly name: Name
  readonly #argument: string
  readonly #hooks: Hooks
  #child: ChildProcess | undefined
  #port: Promise<number> | undefined
  #stopped = false

  constructor (name: Name, options: object, hooks: Hooks) {
    this.name = name
    this.#argument = JSON.stringify(options)
    this.#hooks = hooks
  }

  /** The instance's port, once it listens; starts it if it does not run. */
  async port (): Promise<number> {
    if (this.#stopped) throw new Error('The playground is closed')
    return await (this.#port ??= this.#start())
  }

  async #start (): Promise<number> {
    this.#hooks.life('starting')
    const child = fork(file, [this.#argument], { serialization: 'advanced' })
    this.#child = child
    child.once('exit', () => {
      this.#port = undefined
      if (!this.#stopped) this.#hooks.life('down')
      // What dies before it has ever listened would die again.
      if (listens && !this.#stopped) this.port().catch(() => {})
    })
    let listens = false
    return await new Promise<number>((resolve, reject) => {
      child.once('exit', () => reject(new Error(`Instance ${this.name} did not start`)))
      answerCalls(child, {
        ...this.#hooks.methods,
        listening: (port: number) => {
          listens = true
          this.#hooks.life('up')
          resolve(port)
        }
      })
    })
  }

  /** No chance to clean up: as power or memory ends. */
  kill (): void {
    this.#child?.kill('SIGKILL')
  }

  async stop (): Promise<void> {
    this.#stopped = true
    const child = this.#child
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const gone = once(child, 'exit')
    this.kill()
    await gone
  }
}
