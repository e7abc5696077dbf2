/** One core for the servers, the others for the load and Redis, where the system can pin processes. */
import { spawnSync } from 'node:child_process'

function allowedCores (): string[] {
  const { status, stdout } = spawnSync('taskset', ['-cp', String(process.pid)], { encoding: 'utf8' })
  if (status !== 0) return []
  // "pid 1's current affinity list: 0,2-3"
  return (stdout.split(':').at(-1) ?? '').trim().split(',').flatMap(range => {
    const [from = 0, to = from] = range.split('-').map(Number)
    return Array.from({ length: to - from + 1 }, (_, i) => String(from + i))
  })
}

const [first, ...others] = allowedCores()

export const isPinned = others.length > 0

/** What a server's command starts with. */
export const serverPrefix = isPinned ? ['taskset', '-c', String(first)] : []

/** Keeps a process and its threads off the servers' core. */
export function keepAside (pid: number): void {
  if (isPinned) spawnSync('taskset', ['-acp', others.join(','), String(pid)])
}
