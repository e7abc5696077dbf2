/** What two builds are compared by. */
import type { AppName } from '../apps/index.ts'
import type { Keys } from '../cases.ts'
import type { Path } from '../payloads.ts'

export interface Work { id: string, name: string, app: AppName, path: Path, keys: Keys }

const works: Work[] = [
  { id: 'first', name: 'first execution, in process', app: 'build', path: '/payments', keys: 'fresh' },
  { id: 'first-16k', name: 'first execution of 16 KiB, in process', app: 'build', path: '/large', keys: 'fresh' },
  { id: 'first-redis', name: 'first execution, Redis', app: 'build-redis', path: '/payments', keys: 'fresh' },
  {
    id: 'first-redis-16k', name: 'first execution of 16 KiB, Redis', app: 'build-redis', path: '/large', keys: 'fresh'
  },
  { id: 'replay', name: 'replay, in process', app: 'build', path: '/payments', keys: 'same' },
  { id: 'replay-16k', name: 'replay of 16 KiB, in process', app: 'build', path: '/large', keys: 'same' },
  { id: 'replay-redis', name: 'replay, Redis', app: 'build-redis', path: '/payments', keys: 'same' },
  { id: 'replay-redis-16k', name: 'replay of 16 KiB, Redis', app: 'build-redis', path: '/large', keys: 'same' },
  { id: 'no-key', name: 'no key sent', app: 'build', path: '/payments', keys: 'none' },
  { id: 'opted-out', name: 'route opted out', app: 'build-opted-out', path: '/payments', keys: 'none' }
]

/** Those that are named, or all. @throws {Error} where a name is none of the works. */
export function worksOf (names: string[]): Work[] {
  const unknown = names.find(name => works.every(({ id }) => id !== name))
  if (unknown !== undefined) {
    throw new Error(`There is no work "${unknown}". Works: ${works.map(({ id }) => id).join(', ')}`)
  }
  return works.filter(({ id }) => names.length === 0 || names.includes(id))
}
