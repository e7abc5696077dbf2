/** One Redis for the whole run, started when the first pair needs it. */
import { connect, startRedis, type RedisServer } from '../test/fixtures/redis.ts'
import { keepAside } from './pin.ts'

let running: Promise<RedisServer> | undefined

async function start (): Promise<RedisServer> {
  const server = await startRedis()
  keepAside(server.process.pid ?? 0)
  return server
}

async function ask<T> (question: (client: ReturnType<typeof connect>) => Promise<T>): Promise<T> {
  const { port } = await (running ??= start())
  const client = connect(port)
  const answer = await question(client)
  client.disconnect()
  return answer
}

/** The port of an empty Redis. */
export async function emptyRedis (): Promise<number> {
  await ask(async client => await client.flushall())
  return (await (running ??= start())).port
}

export async function redisVersion (): Promise<string> {
  const info = await ask(async client => await client.info('server'))
  const version = (name: string): string | undefined => new RegExp(`${name}_version:(\\S+)`).exec(info)?.[1]
  const valkey = version('valkey')
  return valkey === undefined ? `Redis ${version('redis')}` : `Valkey ${valkey}`
}

export async function stopRedis (): Promise<void> {
  await (await running)?.stop()
  running = undefined
}
