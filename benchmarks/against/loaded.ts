/** A side that is loaded over the network. */
import { SAME_KEY } from '../keys.ts'
import { fullLoad, type Target } from '../load.ts'
import { untilAccepted } from '../rejected.ts'
import { startServer, type RunningServer } from '../servers.ts'
import { post, verify } from '../verify.ts'
import type { Method, Side } from './pair.ts'
import type { Work } from './works.ts'

const warmUp = Number(process.env['WARM_UP'] ?? 5)
const slices = Number(process.env['SLICES'] ?? 50)
const slice = Number(process.env['SECONDS'] ?? 0.1)

export const LOADED: Method = {
  effort: `warmed up for ${warmUp} s each and then loaded in turn for ${slices} slices of ${slice} s`,
  warmUp,
  slice,
  slices
}

export async function startLoaded ({ app, path, keys }: Work, build: string, redisPort: number): Promise<Side> {
  const server = await startServer(app, redisPort, { BENCH_BUILD: build })
  const wrong = keys === 'none' ? undefined : await verify(server, path, true)
  if (wrong !== undefined) throw new Error(wrong)
  if (keys === 'same') await post(server.port, path, SAME_KEY)
  const target: Target = { port: server.port, path, keys }
  return {
    run: async seconds => await untilAccepted(async () => await costOf(server, target, seconds)),
    stop: server.stop
  }
}

/** Fails when the handler ran more or less often than it should. */
async function costOf (server: RunningServer, target: Target, seconds: number): Promise<number> {
  const before = await server.usage()
  const { requests } = await fullLoad(target, seconds)
  const after = await server.usage()
  const runs = after.executions - before.executions
  if (target.keys === 'same' ? runs > 0 : runs < requests) {
    throw new Error(`${target.path}: the handler ran ${runs} times for ${requests} requests`)
  }
  return (after.cpu - before.cpu) / requests
}
