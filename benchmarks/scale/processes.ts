/** Whether more processes on one Redis do more, until the cores are used up. */
import type { Part, Section } from '../part.ts'
import { coreCount } from '../pin.ts'
import { startOwnRedis, type OwnRedis } from '../redis.ts'
import { start, type Child } from './child.ts'
import type { Answers } from './load.ts'
import { count, median, verify } from './figures.ts'
import type { Usage } from './server.ts'

const NUMBERS = [1, 2, 4]
const ROUNDS = 2
const SECONDS = 1.5
const KEYS = 10_000

/** Requests per second, and cores in use by whom. */
interface Found { rate: number, servers: number, redis: number, load: number }
type Kind = 'replayed' | 'executed'
let fresh = 1_000_000

async function measure (kind: Kind, servers: Child[], ports: number[], redis: OwnRedis, load: Child): Promise<Found> {
  const before = await redis.cpu()
  for (const server of servers) await server.ask('watch')
  const series = kind === 'replayed' ? { from: 0, keys: KEYS, stride: 7_919 } : { from: fresh, keys: 1_000_000 }
  const { kinds, requests, seconds, cpu } = await load.ask<Answers>(
    'run', { ...series, ports, connections: 32, depth: 4, seconds: SECONDS }
  )
  if (kind === 'executed') fresh += requests
  const usages = await Promise.all(servers.map(async server => await server.ask<Usage>('usage')))
  const executions = usages.reduce((sum, usage) => sum + usage.executions, 0)
  verify(
    kinds[kind] === requests && executions === (kind === 'executed' ? requests : 0),
    `All answers must be ${kind}`,
    { ...kinds, executions }
  )
  const cores = (used: number): number => used / 1e6 / seconds
  return {
    rate: requests / seconds,
    servers: cores(usages.reduce((sum, usage) => sum + usage.cpu, 0)),
    redis: cores(await redis.cpu() - before),
    load: cores(cpu)
  }
}

async function run (): Promise<Section> {
  const redis = await startOwnRedis('anywhere')
  const load = await start('load.js')
  const servers: Child[] = []
  try {
    const ports: number[] = []
    for (let i = 0; i < Math.max(...NUMBERS); i++) {
      const server = await start('server.js')
      servers.push(server)
      ports.push(await server.ask<number>('open', { redis: redis.port }))
    }
    await load.ask('run', { ports, connections: 32, from: 0, keys: KEYS, total: KEYS })
    const cells: Array<{ number: number, kind: Kind, found: Found[] }> = NUMBERS.flatMap(number =>
      (['replayed', 'executed'] as const).map(kind => ({ number, kind, found: [] })))
    for (let round = 0; round < ROUNDS; round++) {
      for (const { number, kind, found } of cells) {
        found.push(await measure(kind, servers.slice(0, number), ports.slice(0, number), redis, load))
      }
    }
    const of = (found: Found[], what: keyof Found): number => median(found.map(each => each[what]))
    return {
      title: `Server processes on one Redis, on ${coreCount} cores, which the clients and Redis share`,
      table: {
        columns: [
          'processes', 'answers', 'requests/s', 'to one process', 'cores used: servers', 'Redis', 'clients', 'together'
        ],
        rows: cells.map(({ number, kind, found }) => {
          const one = cells.find(cell => cell.kind === kind)?.found ?? []
          const used = (['servers', 'redis', 'load'] as const).map(who => of(found, who))
          return [
            String(number),
            kind,
            count(of(found, 'rate')),
            (of(found, 'rate') / of(one, 'rate')).toFixed(2),
            ...used.map(cores => cores.toFixed(2)),
            used.reduce((sum, cores) => sum + cores, 0).toFixed(2)
          ]
        })
      },
      data: cells
    }
  } finally {
    for (const server of servers) await server.stop()
    await load.stop()
    await redis.stop()
  }
}

export const processes: Part = { name: 'processes', run }
