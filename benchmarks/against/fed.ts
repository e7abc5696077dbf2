/** A side that is fed from memory: what is compared is the server's own work, and less than 3 % can be told. */
import { startProcess } from '../servers.ts'
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
  const args = [app, String(redisPort), keys, path]
  const { ask, stop } = await startProcess('user/fed-server.js', args, { BENCH_BUILD: build })
  return { run: async requests => await ask<number>(requests), stop }
}
