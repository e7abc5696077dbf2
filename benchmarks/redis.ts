/**
 * One Redis for all that is measured against an anchor, started when it is first needed; more of them for a part that
 * fills its own.
 */
import type { Redis } from 'ioredis'
import { connect, startRedis } from '../test/fixtures/redis.ts'
import { keepAside, letLoose } from './pin.ts'

export interface OwnRedis {
  port: number
  /** For whatever there is to ask or prepare. */
  client: Redis
  /** Microseconds of CPU that the server has used so far. */
  cpu: () => Promise<number>
  stop: () => Promise<void>
}

/** `where`: off the servers' core, or on any. */
export async function startOwnRedis (where: 'aside' | 'anywhere' = 'aside'): Promise<OwnRedis> {
  const server = await startRedis()
  const place = where === 'aside' ? keepAside : letLoose
  place(server.process.pid ?? 0)
  const client = connect(server.port)
  return {
    port: server.port,
    client,
    async cpu () {
      const info = await client.info('cpu')
      const seconds = (name: string): number => Number(new RegExp(`^${name}:(.*)`, 'm').exec(info)?.[1])
      return (seconds('used_cpu_user') + seconds('used_cpu_sys')) * 1e6
    },
    async stop () {
      client.disconnect()
      await server.stop()
    }
  }
}

let running: Promise<OwnRedis> | undefined

const shared = async (): Promise<OwnRedis> => await (running ??= startOwnRedis())

/** The port of an empty Redis. */
export async function emptyRedis (): Promise<number> {
  const { port, client } = await shared()
  await client.flushall()
  return port
}

export async function redisVersion (): Promise<string> {
  const info = await (await shared()).client.info('server')
  const version = (name: string): string | undefined => new RegExp(`${name}_version:(\\S+)`).exec(info)?.[1]
  const valkey = version('valkey')
  return valkey === undefined ? `Redis ${version('redis')}` : `Valkey ${valkey}`
}

export async function stopRedis (): Promise<void> {
  await (await running)?.stop()
  running = undefined
}
