/** One core for the servers, the others for the load and Redis, where the system can pin processes. */
import { spawnSync } from 'node:child_process'
import { availableParallelism } from 'node:os'

function allowedCores (): string[] {
  const { status, stdout } = spawnSync('taskset', ['-cp', String(process.pid)], { encoding: 'utf8' })
  if (status !== 0) return []
  // "pid 1's current affinity list: 0,2-3"
  return (stdout.split(':').at(-1) ?? '').trim().split(',').flatMap(range => {
    const [from = 0, to = from] = range.split('-').map(Number)
    return Array.from({ length: to - from + 1 }, (_, i) => String(from + i))
  })
}

const allowed = allowedCores()
const [first = '', ...others] = allowed

export const isPinned = others.length > 0

/** Before anything is pinned. */
export const coreCount = availableParallelism()

/** What a server's command starts with. */
export const serverPrefix = isPinned ? ['taskset', '-c', first] : []

function keepOn (cores: string[], pid: number): void {
  if (isPinned) spawnSync('taskset', ['-acp', cores.join(','), String(pid)])
}

/** Keeps a process and its threads off the servers' core. */
export function keepAside (pid: number): void {
  keepOn(others, pid)
}

/** Keeps a process that runs already, and its threads, on the servers' core. */
export function keepWithServers (pid: number): void {
  keepOn([first], pid)
}

/** Lets a process use all cores; one that is started has those of whoever starts it. */
export function letLoose (pid: number): void {
  keepOn(allowed, pid)
}
