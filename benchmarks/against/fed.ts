/** A side that is fed from memory: what is compared is the server's own work, and less than 3 % can be told. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { serverPrefix } from '../pin.ts'
import type { Method, Side } from './pair.ts'
import type { Work } from './works.ts'

const warmUp = 50_000
const slices = Number(process.env['SLICES'] ?? 60)
const slice = 1_500

export const FED: Method = {
  effort: `warmed up with ${warmUp} requests each and then fed from memory in turn for ${slices} slices of ${slice} ` +
    'requests, so that neither the kernel nor a client counts',
  warmUp,
  slice,
  slices
}

export async function startFed ({ app, path, keys }: Work, build: string, redisPort: number): Promise<Side> {
  const [execPath = process.execPath, ...execArgv] = [...serverPrefix, process.execPath]
  const script = fileURLToPath(new URL('../user/fed-server.js', import.meta.url))
  const child = fork(script, [app, String(redisPort), keys, path], {
    execPath, execArgv, env: { ...process.env, BENCH_BUILD: build, NODE_ENV: 'production' }
  })
  const exited = once(child, 'exit')
  const failed = exited.then(() => { throw new Error(`the server "${app}" ended by itself`) })
  failed.catch(() => {})
  const message = async (): Promise<unknown[]> => await Promise.race([once(child, 'message'), failed])
  await message()
  return {
    async run (requests) {
      child.send(requests)
      return (await message())[0] as number
    },
    async stop () {
      child.kill()
      await exited
    }
  }
}
