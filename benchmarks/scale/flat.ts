/** Whether a request costs the same however many keys are kept. */
import type { Part, Section } from '../part.ts'
import { RedisStore } from '../../lib/index.ts'
import { startOwnRedis, type OwnRedis } from '../redis.ts'
import { start, type Child } from './child.ts'
import { fillRedis } from './kept.ts'
import type { Answers } from './load.ts'
import { count, median, verify } from './figures.ts'
import type { Usage } from './server.ts'

const SIZES = [1_000, 1_000_000]
/** Each visits every size, in turn from another one on, so that a machine that slows down slows all. */
const ROUNDS = 7
const CLAIMS = 4_000
const FRESH = 2_000
const REQUESTS = 3_000

interface Place { size: number, server: Child, port: number, redis: OwnRedis | undefined }
type Step = 'replay' | 'fresh' | 'http'
const STEPS: Step[] = ['replay', 'fresh', 'http']
const NAMES = { replay: 'claim of a kept key', fresh: 'claim and outcome of a fresh key', http: 'replay over HTTP' }

/** Microseconds per step: of the Node.js process, and of Redis. */
interface Cost { node: number, redis: number }

async function measure ({ server, port, redis }: Place, step: Step, load: Child): Promise<Cost> {
  const before = await redis?.cpu() ?? 0
  let times = CLAIMS
  let node
  if (step === 'replay') {
    node = await server.ask<number>('costOfReplay', times)
  } else if (step === 'fresh') {
    times = FRESH
    node = await server.ask<number>('costOfFresh', times)
  } else {
    times = REQUESTS
    const kept = await server.ask<{ from: number, keys: number }>('kept')
    await server.ask('watch')
    // A stride through all keys: the same few would stay in the CPU's cache.
    const { kinds } = await load.ask<Answers>(
      'run', { ...kept, ports: [port], connections: 20, depth: 4, stride: 7_919, total: times }
    )
    const { cpu, executions } = await server.ask<Usage>('usage')
    verify(kinds['replayed'] === times && executions === 0, 'All requests with a kept key must be replayed', kinds)
    node = cpu / times
  }
  return { node, redis: (await redis?.cpu() ?? 0) / times - before / times }
}

async function rounds (places: Place[], load: Child): Promise<Record<Step, Cost[][]>> {
  const found: Record<Step, Cost[][]> = { replay: [], fresh: [], http: [] }
  // The first warms up.
  for (let round = -1; round < ROUNDS; round++) {
    for (const step of STEPS) {
      for (let i = 0; i < places.length; i++) {
        const at = (i + round + 1) % places.length
        const cost = await measure(places[at] as Place, step, load)
        if (round >= 0) (found[step][at] ??= []).push(cost)
      }
    }
  }
  return found
}

/** `3.10 µs (1.02)`: the median, and its ratio to 1,000 keys as the median of the rounds' own ratios. */
function cells (costs: Cost[][], whose: keyof Cost): string[] {
  return costs.map((own, at) => {
    const ratio = median(own.map((cost, round) => cost[whose] / (costs[0]?.[round]?.[whose] ?? NaN)))
    return `${median(own.map(cost => cost[whose])).toFixed(2)}${at === 0 ? '' : ` (${ratio.toFixed(2)})`}`
  })
}

async function prepare (size: number, inRedis: boolean, places: Place[]): Promise<void> {
  const server = await start('server.js')
  const redis = inRedis ? await startOwnRedis() : undefined
  const place: Place = { size, server, redis, port: 0 }
  places.push(place)
  if (redis !== undefined) {
    await fillRedis(redis, new RedisStore(redis.client), 0, size)
    verify(await redis.client.dbsize() === size, `Redis must have ${size} keys`)
  }
  // As many keys have been written to all: heap and code must not differ by their past.
  place.port = await server.ask<number>(
    'open', { filled: size, seen: Math.max(...SIZES), ...(redis === undefined ? {} : { redis: redis.port }) }
  )
  server.keep('with servers')
}

async function run (): Promise<Section> {
  const load = await start('load.js')
  load.keep('aside')
  const places: Place[] = []
  try {
    // All at once: nothing is measured yet.
    await Promise.all(SIZES.flatMap(size => [prepare(size, false, places), prepare(size, true, places)]))
    const sorted = places.sort((a, b) => a.size - b.size)
    const memory = await rounds(sorted.filter(({ redis }) => redis === undefined), load)
    const redis = await rounds(sorted.filter(({ redis }) => redis !== undefined), load)
    return {
      title: `Cost per request by the number of keys kept: CPU µs, median of ${ROUNDS} interleaved rounds (ratio to ` +
        '1,000 keys; to reach, of a request: 0.90 to 1.10)',
      table: {
        columns: ['store', 'step', 'CPU of', ...SIZES.map(size => `${count(size)} keys`)],
        rows: [
          ...STEPS.map(step => ['memory', NAMES[step], 'Node.js', ...cells(memory[step], 'node')]),
          ...STEPS.flatMap(step => (['node', 'redis'] as const).map(whose => [
            'Redis', NAMES[step], whose === 'node' ? 'Node.js' : 'Redis', ...cells(redis[step], whose)
          ]))
        ]
      },
      data: { sizes: SIZES, memory, redis }
    }
  } finally {
    await load.stop()
    for (const { server, redis } of places) {
      await server.stop()
      await redis?.stop()
    }
  }
}

export const flat: Part = { name: 'flat', run }
