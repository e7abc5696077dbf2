/** Calls over the IPC channel between a child process and its parent. */
import type { ChildProcess } from 'node:child_process'

type Methods = Record<string, (...args: any[]) => unknown>
export interface Call { call: number, method: string, args: unknown[] }
type Reply = { reply: number, value: unknown } | { reply: number, error: string }

/** In the child: calls a method of the parent. */
export function createCaller (): (method: string, ...args: unknown[]) => Promise<unknown> {
  const open = new Map<number, (reply: Reply) => void>()
  let count = 0
  process.on('message', (message: Reply) => {
    open.get(message.reply)?.(message)
    open.delete(message.reply)
  })
  return async (method, ...args) => await new Promise((resolve, reject) => {
    const call = ++count
    open.set(call, reply => 'error' in reply ? reject(new Error(reply.error)) : resolve(reply.value))
    process.send?.({ call, method, args } satisfies Call)
  })
}

/** In the parent: answers the calls of a child. A caller that has died meanwhile gets no answer. */
export function answerCalls (child: ChildProcess, methods: Methods): void {
  const reply = (message: Reply): void => { if (child.connected) child.send(message, () => {}) }
  child.on('message', async ({ call, method, args }: Call) => {
    try {
      reply({ reply: call, value: await methods[method]?.(...args) })
    } catch (error) {
      reply({ reply: call, error: String(error) })
    }
  })
}
