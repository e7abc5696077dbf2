/** What the figures were measured on. */
import { cpus } from 'node:os'
import { isPinned } from './pin.ts'
import { redisVersion } from './redis.ts'
import { rejections } from './rejected.ts'
import { PAIRS, ROUNDS, SECONDS } from './settings.ts'

export interface Machine {
  cpu: string
  cores: number
  node: string
  redis: string
  date: string
  pinned: boolean
  pairs: number
  rounds: number
  seconds: number
  rejected: number
}

export async function describeMachine (): Promise<Machine> {
  return {
    cpu: cpus()[0]?.model.trim() ?? 'unknown CPU',
    cores: cpus().length,
    node: process.version,
    redis: await redisVersion(),
    date: new Date().toISOString().slice(0, 10),
    pinned: isPinned,
    pairs: PAIRS,
    rounds: ROUNDS,
    seconds: SECONDS,
    rejected: rejections()
  }
}

export const machineText = (
  { cpu, cores, node, redis, date, pinned, pairs, rounds, seconds, rejected }: Machine
): string =>
  `${cpu}, ${cores} cores; Node.js ${node}; ${redis}; ${date}. ` +
  (pinned
    ? 'Ratios: the server on one core, the load and Redis on the others; '
    : 'Nothing is pinned to a core: taskset is missing or there is one core only. Ratios: ') +
  `medians of ${pairs * rounds} interleaved rounds of ${seconds} s, ${rounds} in each of ${pairs} pairs of ` +
  'processes; in brackets, the lowest and the highest round.' +
  (rejected === 0
    ? ''
    : ` Rejected and measured again, because requests failed or the machine stood still: ${rejected}.`)
