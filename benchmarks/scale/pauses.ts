/** Whether dropping a million keys, one by one or all at once, holds up the event loop. */
import type { Part, Section } from '../part.ts'
import { setTimeout as sleep } from 'node:timers/promises'
import { RedisStore } from '../../lib/index.ts'
import { startOwnRedis } from '../redis.ts'
import { start, type Child } from './child.ts'
import { DAY, fillRedis } from './kept.ts'
import type { Answers } from './load.ts'
import { own } from './loop.ts'
import { count, ms, verify } from './figures.ts'
import type { Usage } from './server.ts'

const KEYS = 1_000_000
/** Requests, first executions all, that go on meanwhile. */
const RATE = 1_000
/** Keys written in each turn of the event loop beside them: many turns' writes in little time. */
const PER_TURN = 10
/** Enough for a Map of a million to be made anew on the way. */
const EVICTIONS = 100_000
const EVICTION_SECONDS = 6
/** What has not been dropped by then is reported as such. */
const EXPIRY_SECONDS = 15
const FIRST_REQUEST = 100_000_000

interface Found { name: string, dropped: number, answers: Answers, usage: Usage }

async function requests (load: Child, port: number, seconds: number): Promise<Answers> {
  const answers = await load.ask<Answers>(
    'run', { ports: [port], connections: 20, from: FIRST_REQUEST, keys: KEYS, rate: RATE, seconds }
  )
  verify(answers.kinds['executed'] === answers.requests, 'Each fresh key must be executed', answers.kinds)
  return answers
}

/** What every other figure is to be read against: the same writes and requests, with nothing to drop. */
async function control (load: Child): Promise<Found> {
  const server = await start('server.js')
  try {
    const port = await server.ask<number>('open', {})
    await server.ask('watch')
    await server.ask('startWriting', { from: 0, to: 50_000, perTurn: PER_TURN })
    const answers = await requests(load, port, 3)
    await server.ask('stopWriting')
    return {
      name: 'memory, a new store: nothing to drop', dropped: 0, answers, usage: await server.ask<Usage>('usage')
    }
  } finally {
    await server.stop()
  }
}

async function inMemory (load: Child): Promise<Found[]> {
  const server = await start('server.js')
  try {
    const port = await server.ask<number>('open', { filled: KEYS })
    const full = await server.ask<number>('bytes')
    const one = full / KEYS

    await server.ask('watch')
    await server.ask('startWriting', { from: KEYS, to: KEYS + EVICTIONS, perTurn: PER_TURN })
    const evicting = await requests(load, port, EVICTION_SECONDS)
    const written = await server.ask<number>('stopWriting')
    const evictionUsage = await server.ask<Usage>('usage')
    const bytes = await server.ask<number>('bytes')
    const gone = await Promise.all([written - 1, 0].map(async index => !await server.ask<boolean>('known', index)))
    verify(gone.every(Boolean) && await server.ask<boolean>('known', KEYS + written - 1) && bytes <= full &&
      bytes > full - 2 * one, 'A full store must drop the oldest keys, and no more', { written, bytes, full })

    await server.ask('pass', DAY + 1)
    await server.ask('watch')
    await server.ask('startWriting', { from: 2 * KEYS, to: 4 * KEYS, perTurn: PER_TURN })
    const answers: Answers[] = []
    const started = performance.now()
    let sent = 0
    let left = KEYS
    // Records of requests are a little larger or smaller than those that were filled in; gone is gone within a
    // thousandth.
    while (left > KEYS / 1_000 && performance.now() - started < EXPIRY_SECONDS * 1_000) {
      const each = await load.ask<Answers>('run', {
        ports: [port],
        connections: 20,
        from: FIRST_REQUEST + (answers.length + 1) * KEYS,
        keys: KEYS,
        rate: RATE,
        seconds: 1
      })
      answers.push(each)
      sent += each.requests
      left = Math.max(0, await server.ask<number>('bytes') / one - await server.ask<number>('writtenNow') - sent)
    }
    verify(
      Object.keys(answers[0]?.kinds ?? {}).join() === 'executed', 'Each fresh key must be executed', answers[0]?.kinds
    )
    await server.ask('stopWriting')
    const worst = answers.reduce((most, each) => each.p99 > most.p99 ? each : most)
    return [
      {
        name: 'memory, full: each write drops the oldest',
        dropped: written + evicting.requests,
        answers: evicting,
        usage: evictionUsage
      },
      {
        name: 'memory, all expired at once',
        dropped: Math.round(KEYS - left),
        answers: worst,
        usage: await server.ask<Usage>('usage')
      }
    ]
  } finally {
    await server.stop()
  }
}

async function inRedis (load: Child): Promise<Found> {
  const redis = await startOwnRedis('anywhere')
  const server = await start('server.js')
  try {
    const port = await server.ask<number>('open', { redis: redis.port })
    const store = new RedisStore(redis.client)
    await fillRedis(redis, store, 0, KEYS)
    verify(await redis.client.dbsize() === KEYS, 'Redis must have a million keys')
    // All within the next second: the fill itself takes longer than that.
    const until = Date.now() + 3_000
    const expire = "local c = ARGV[1] repeat local r = redis.call('SCAN', c, 'COUNT', 1000) c = r[1] for _, " +
      "k in ipairs(r[2]) do redis.call('PEXPIREAT', k, ARGV[2]) end until c == '0' return c"
    await redis.client.eval(expire, 0, '0', until)
    await sleep(Math.max(0, until - 200 - Date.now()))
    await server.ask('watch')
    const answers: Answers[] = []
    let sent = 0
    const started = performance.now()
    do {
      const each = await load.ask<Answers>('run', {
        ports: [port], connections: 20, from: FIRST_REQUEST + answers.length * KEYS, keys: KEYS, rate: RATE, seconds: 1
      })
      answers.push(each)
      sent += each.requests
    } while (await redis.client.dbsize() > sent && performance.now() - started < EXPIRY_SECONDS * 1_000)
    const usage = await server.ask<Usage>('usage')
    const left = await redis.client.dbsize()
    verify(left === sent, 'Redis must have dropped the million', { left, sent })
    const worst = answers.reduce((most, each) => each.p99 > most.p99 ? each : most)
    return { name: 'Redis, all expired at once', dropped: KEYS, answers: worst, usage }
  } finally {
    await server.stop()
    await redis.stop()
  }
}

async function run (): Promise<Section> {
  const load = await start('load.js')
  try {
    const found = [await control(load), ...await inMemory(load), await inRedis(load)]
    return {
      title: 'Pauses of the event loop while keys are dropped from a million, ' +
        `under ${count(RATE)} first executions/s over HTTP (to reach: none over 20 ms of the process itself, ` +
        'the collector and the rest of the machine aside)',
      table: {
        columns: [
          'store',
          'dropped',
          'in',
          'event loop delay: min, p50, p99, p99.9, max',
          'longest pause (of it GC)',
          'longest GC pause',
          'pauses over 20 ms',
          'without GC',
          'of them the process itself',
          'longest of the process itself',
          'GC share',
          'p99 of requests'
        ],
        rows: found.map(({ name, dropped, answers, usage: { loop } }) => [
          name, count(dropped), `${loop.seconds.toFixed(1)} s`,
          (['min', 'p50', 'p99', 'p999', 'max'] as const).map(share => ms(loop.delay[share])).join(', '),
          `${ms(loop.longest.wall)} (${ms(loop.longest.gc)})`, ms(Math.max(loop.gc.longestMinor, loop.gc.longestMajor)),
          count(loop.over20), count(loop.over20WithoutGc), count(loop.ownOver20), ms(own(loop.longestOwn)),
          `${(loop.gc.total / loop.seconds / 10).toFixed(0)} %`, ms(answers.p99)
        ])
      },
      notes: [
        'A pause without GC is what is left of it without the collector\'s part; of the process itself is no more ' +
          'of that than the CPU time that it used: the rest is other processes\' work. ' +
          'The delays are of `monitorEventLoopDelay` at a resolution of 1 ms.'
      ],
      data: found
    }
  } finally {
    await load.stop()
  }
}

export const pauses: Part = { name: 'pauses', run }
