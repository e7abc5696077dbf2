/** The API under load, in a process of its own; its parent fills the store and asks what happened. */
import { randomBytes } from 'node:crypto'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify, { type RouteHandlerMethod } from 'fastify'
import { Redis } from 'ioredis'
import idempotency, { MemoryStore, RedisStore, type IdempotencyStore } from '../../lib/index.ts'
import { serve } from './child.ts'
import { keep, keyOf, location, PATH, payment, PREFIX } from './kept.ts'
import { cpu, LoopWatch, type Loop } from './loop.ts'
import { costOfFresh, costOfReplay, each } from './steps.ts'
import { verify } from './figures.ts'

export interface ServerOptions {
  /** The port of Redis; without it a MemoryStore keeps the keys. */
  redis?: number
  /**
   * Keys, from 0 on, that the store has from the start. A MemoryStore has room for these and no more, and evicts one
   * for each that is written.
   */
  filled?: number
  /**
   * Keys that a MemoryStore has seen by then, in all; of them it has the last `filled`. Default: no more than these.
   */
  seen?: number
  /** What a duplicate waits for the original, ms; without it, it is refused. */
  wait?: number
  /** How long a handler takes, ms. */
  work?: number
  /** The handler goes on 100 ms after so many requests have come. */
  barrier?: number
}

export interface Usage {
  executions: number
  /** Microseconds of CPU. */
  cpu: number
  loop: Loop
}

/** Bytes that one filled key counts for in a MemoryStore. */
async function sizeOfOne (): Promise<number> {
  const store = new MemoryStore()
  await keep(store, 0)
  return store.bytes
}

let clock = 0
/** The keys from `oldest` up to `next` are kept. */
let oldest = 0
let next = 0
let store: IdempotencyStore
let executions = 0
let used = 0
let watch: LoopWatch | undefined
let writer = { stopped: false, written: 0, done: Promise.resolve() }

async function open ({ redis, filled, seen, wait, work = 0, barrier }: ServerOptions): Promise<number> {
  const one = await sizeOfOne()
  const memory = new MemoryStore({
    maxBytes: filled === undefined ? Infinity : filled * one,
    now: () => performance.timeOrigin + performance.now() + clock
  })
  store = redis === undefined ? memory : new RedisStore(new Redis(redis, '127.0.0.1'))
  next = (redis === undefined ? seen : undefined) ?? filled ?? 0
  oldest = next - (filled ?? 0)
  if (redis === undefined) for (let index = 0; index < next; index++) await keep(store, index)

  let arrived = 0
  let go = (): void => {}
  const gone = new Promise<void>(resolve => { go = resolve })
  const app = Fastify()
  await app.register(
    idempotency,
    { store, keyPrefix: PREFIX, storeTimeout: 60_000, ...(wait === undefined ? {} : { inFlight: { wait } }) }
  )
  if (barrier !== undefined) {
    app.addHook('onRequest', (_request, _reply, done) => {
      if (++arrived === barrier) setTimeout(go, 100)
      done()
    })
  }
  const pay: RouteHandlerMethod = async (request, reply) => {
    executions++
    if (work > 0) await sleep(work)
    if (barrier !== undefined) await gone
    const key = String(request.headers['idempotency-key'])
    reply.code(201).header('location', location(key))
    return payment(key, randomBytes(4).toString('hex'))
  }
  const properties = {
    id: { type: 'string' },
    run: { type: 'string' },
    amount: { type: 'integer' },
    status: { type: 'string' },
    note: { type: 'string' }
  }
  const schema = {
    body: { type: 'object', required: ['amount'], properties: { amount: { type: 'integer' } } },
    response: { 201: { type: 'object', properties } }
  }
  app.post(PATH, { schema }, pay)
  app.post('/plain', { schema, config: { idempotency: false } }, pay)
  await app.listen({ port: 0, host: '127.0.0.1', backlog: 1_024 })
  return (app.server.address() as AddressInfo).port
}

/** Writes beside the requests, a few in every turn of the loop, until `to` keys are written. */
async function write (own: typeof writer, from: number, to: number, perTurn: number): Promise<void> {
  for (let index = from; index < to && !own.stopped;) {
    for (const end = Math.min(index + perTurn, to); index < end; index++) {
      await keep(store, index)
      own.written++
    }
    await new Promise(resolve => setImmediate(resolve))
  }
}

serve({
  open,
  watch () {
    executions = 0
    used = cpu()
    watch = new LoopWatch()
  },
  async usage (): Promise<Usage> {
    return { executions, cpu: cpu() - used, loop: await watch?.stop() as Loop }
  },
  startWriting ({ from, to, perTurn }: { from: number, to: number, perTurn: number }) {
    writer = { stopped: false, written: 0, done: Promise.resolve() }
    writer.done = write(writer, from, to, perTurn)
  },
  async stopWriting () {
    writer.stopped = true
    await writer.done
    return writer.written
  },
  writtenNow: () => writer.written,
  kept: () => ({ from: oldest, keys: next - oldest }),
  costOfReplay: async (times: number) => await costOfReplay(store, oldest, next, times),
  async costOfFresh (times: number) {
    const cost = await costOfFresh(store, next, times)
    if (store instanceof MemoryStore) {
      oldest += times
      next += times
      verify(
        await store.read(keyOf(oldest - 1)) === undefined && await store.read(keyOf(oldest)) !== undefined,
        'A full store must drop the oldest keys, and only these'
      )
    } else {
      await each(times, async i => { await store.remove(keyOf(next + i)) })
    }
    return cost
  },
  heap () {
    for (let i = 0; i < 3; i++) globalThis.gc?.()
    const { heapUsed, external } = process.memoryUsage()
    // Array buffers are part of what is external.
    return heapUsed + external
  },
  bytes: () => (store as MemoryStore).bytes,
  /** Moves the store's clock. */
  pass (ms: number) { clock += ms },
  async known (index: number) {
    return await store.read(keyOf(index)) !== undefined
  }
})
