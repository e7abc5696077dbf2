/** What a kept key takes beside its response. */
import type { Part, Section } from '../part.ts'
import { RedisStore } from '../../lib/index.ts'
import { startOwnRedis } from '../redis.ts'
import { start } from './child.ts'
import { bytesOf, fillRedis, outcome } from './kept.ts'
import type { Answers } from './load.ts'
import { count, verify } from './figures.ts'

interface Found { perKey: number, counted?: number, response: number }
interface Case { store: string, keys: number, bytes: number, form: 'string' | 'Buffer' | 'served' }

const CASES: Case[] = [
  ...(['string', 'Buffer'] as const).flatMap(form =>
    [300, 2_048].map(bytes => ({ store: 'memory', keys: 100_000, bytes, form }))),
  { store: 'memory', keys: 1_000_000, bytes: 300, form: 'string' },
  { store: 'memory', keys: 20_000, bytes: 300, form: 'served' },
  { store: 'Redis', keys: 100_000, bytes: 300, form: 'string' },
  { store: 'Redis', keys: 100_000, bytes: 2_048, form: 'string' },
  { store: 'Redis', keys: 1_000_000, bytes: 300, form: 'string' }
]
const FORMS = { string: 'a string', Buffer: 'a Buffer', served: 'as a handler sent it, over HTTP' }

async function inMemory ({ keys, bytes, form }: Case): Promise<Found> {
  const child = await start('memory-child.js')
  try {
    return await child.ask<Found>('measure', { keys, bytes, form })
  } finally {
    await child.stop()
  }
}

async function served ({ keys, bytes }: Case): Promise<Found> {
  const server = await start('server.js')
  const load = await start('load.js')
  try {
    const port = await server.ask<number>('open', {})
    const send = async (from: number, total: number): Promise<void> => {
      const { kinds } = await load.ask<Answers>(
        'run', { ports: [port], connections: 20, depth: 2, from, keys: total, total }
      )
      verify(kinds['executed'] === total, 'Each fresh key must be executed', kinds)
    }
    await send(1_000_000, 5_000)
    const before = await server.ask<number>('heap')
    await send(0, keys)
    return { perKey: (await server.ask<number>('heap') - before) / keys, response: bytesOf(outcome(0, bytes)) }
  } finally {
    await server.stop()
    await load.stop()
  }
}

async function inRedis ({ keys, bytes }: Case): Promise<Found> {
  const redis = await startOwnRedis('anywhere')
  try {
    const used = async (): Promise<number> => Number(/^used_memory:(\d+)/m.exec(await redis.client.info('memory'))?.[1])
    const store = new RedisStore(redis.client)
    // Scripts and buffers are not the keys'.
    await fillRedis(redis, store, keys, keys + 1_000)
    const before = await used()
    await fillRedis(redis, store, 0, keys, { bytes })
    verify(await redis.client.dbsize() === keys + 1_000, 'All keys must be kept')
    return { perKey: (await used() - before) / keys, response: bytesOf(outcome(0, bytes)) }
  } finally {
    await redis.stop()
  }
}

async function run (): Promise<Section> {
  const found: Array<Case & Found> = []
  // No time is measured: as many as there are cores, most often, are filled at once.
  const left = [...CASES].sort((a, b) => b.keys * b.bytes - a.keys * a.bytes)
  await Promise.all(Array.from({ length: 2 }, async () => {
    for (let next = left.shift(); next !== undefined; next = left.shift()) {
      found.push({
        ...next,
        ...await (next.store === 'Redis' ? inRedis(next) : next.form === 'served' ? served(next) : inMemory(next))
      })
    }
  }))
  const isOf = (each: Case) => ({ store, keys, bytes, form }: Case): boolean =>
    store === each.store && keys === each.keys && bytes === each.bytes && form === each.form
  const sorted = CASES.map(each => found.find(isOf(each))).filter(each => each !== undefined)
  return {
    title: 'Memory per kept key: bytes (to reach: at most 400 beside the response, which is its ' +
      'body and its header lines)',
    table: {
      columns: ['store', 'keys', 'body', 'response', 'memory per key', 'beside the response', 'counted by the store'],
      rows: sorted.map(({ store, keys, bytes, form, perKey, response, counted }) => [
        store, count(keys), `${count(bytes)} B, ${FORMS[form]}`, count(response),
        count(perKey), count(perKey - response), counted === undefined ? '' : count(counted)
      ])
    },
    notes: ['What Redis uses is by its own account, `used_memory`; its allocator rounds each value up to a size ' +
      'class: 512, 640, 768 bytes, and so on.'],
    data: sorted
  }
}

export const memory: Part = { name: 'memory', run }
