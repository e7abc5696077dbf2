/**
 * `npm run bench -- redis-side [git ref]`: what each step of the store costs Redis itself, in CPU time, commands and
 * bytes; with a ref, beside another build, the two in turn.
 */
import type { IdempotencyStore, RedisStoreClient, StoreOutcome } from '../lib/index.ts'
import { buildOf, WORK_TREE } from './against/build.ts'
import type { Section } from './part.ts'
import { startOwnRedis, type OwnRedis } from './redis.ts'
import { spread } from './spread.ts'

const ROUNDS = Number(process.env['ROUNDS'] ?? 9)
/** Keys of each round. */
const KEYS = 4_000
/** Commands that are under way at once. */
const DEPTH = 50
const LEASE = 30_000
const TTL = 86_400_000

type Store = Required<Pick<IdempotencyStore, 'claim' | 'renew' | 'complete' | 'release'>>
interface Build { RedisStore: new (client: RedisStoreClient) => Store }

interface Cost {
  /** Microseconds of Redis' time in the command itself, by its commandstats. */
  redis: number
  /** Commands that the client has sent, each a round trip; and those that its scripts have called. */
  sent: number
  called: number
  bytesTo: number
  bytesFrom: number
}

/** The steps in the order in which each round takes them; every step finds what it needs. */
const STEPS = [
  'claim of a fresh key', 'first renewal', 'later renewal',
  'claim of a key that is held', 'completion', 'claim of a kept key', 'release'
] as const
type Step = typeof STEPS[number]

const fingerprint = 'mVY5aG7v1kqA0aUo8n2b4c6d8e0f1g2h.POST.812345'
const outcome: StoreOutcome = {
  fingerprint,
  status: 201,
  replayable: true,
  headers: [['content-type', 'application/json; charset=utf-8'], ['location', '/payments/12345678']],
  body: JSON.stringify({ payment: 'x'.repeat(286) }),
  text: true
}

/** As long as a token of the plugin. */
const tokenOf = (key: string): string => key.padEnd(36, '0').slice(-36)
const request = (token: string): Parameters<Store['claim']>[1] => ({ token, lease: LEASE, ttl: TTL, takeover: true })

function take (store: Store, step: Step, key: string): unknown {
  const token = tokenOf(key)
  switch (step) {
    case 'claim of a fresh key': return store.claim(key, request(token))
    case 'first renewal':
    case 'later renewal': return store.renew(key, token, LEASE, TTL, fingerprint)
    case 'claim of a key that is held':
    case 'claim of a kept key': return store.claim(key, request(tokenOf(`${key}-other`)))
    case 'completion': return store.complete(key, token, outcome, TTL)
    case 'release': return store.release(key, token, TTL, true)
  }
}

const STATS = /^cmdstat_(\w+):calls=(\d+),usec=(\d+)/gm

async function measure ({ client }: OwnRedis, run: (key: string) => unknown, prefix: string): Promise<Cost> {
  const stream = client.stream as { bytesRead: number, bytesWritten: number }
  await client.config('RESETSTAT')
  const { bytesRead, bytesWritten } = stream
  for (let from = 0; from < KEYS; from += DEPTH) {
    await Promise.all(
      Array.from({ length: DEPTH }, (_, i) => run(`idempotency:${prefix}${String(from + i).padStart(32, '0')}`))
    )
  }
  const to = stream.bytesWritten - bytesWritten
  const back = stream.bytesRead - bytesRead
  const commands = Array.from((await client.info('commandstats')).matchAll(STATS), ([, name = '', calls, usec]) =>
    ({ name, calls: Number(calls), usec: Number(usec) })).filter(({ name }) => name !== 'config' && name !== 'info')
  const total = (chosen: typeof commands, what: 'calls' | 'usec'): number =>
    chosen.reduce((sum, each) => sum + each[what], 0) / KEYS
  const scripts = commands.filter(({ name }) => name.startsWith('eval'))
  return {
    redis: total(scripts, 'usec'),
    sent: total(scripts, 'calls'),
    called: total(commands.filter(({ name }) => !name.startsWith('eval')), 'calls'),
    bytesTo: to / KEYS,
    bytesFrom: back / KEYS
  }
}

/** `ratio`: to a script that gets and sets one key and does nothing else, measured in the same rounds. */
export interface StepCost extends Cost { step: Step, before: number | undefined, ratio: number }

const GET_AND_SET = "redis.call('GET', KEYS[1]) redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1"

async function measureYardstick (redis: OwnRedis): Promise<Cost> {
  const sha = String(await redis.client.script('LOAD', GET_AND_SET))
  const value = 'x'.repeat(450)
  return await measure(redis, async key => await redis.client.evalsha(sha, 1, key, value, TTL), 'yardstick')
}

/** Redis' own time per step of this build, and of another, where one is given. */
export async function redisCosts (ref?: string): Promise<{ sha: string | undefined, costs: StepCost[] }> {
  const other = ref === undefined ? undefined : buildOf(ref)
  const entries = [WORK_TREE, ...(other === undefined ? [] : [other.entry])]
  const redis = await startOwnRedis()
  try {
    const builds = await Promise.all(entries.map(async entry => await import(entry) as Build))
    const stores = builds.map(({ RedisStore }) => new RedisStore(redis.client))
    const yardsticks: number[] = []
    const found = STEPS.map(() => entries.map((): Cost[] => []))
    for (let round = 0; round <= ROUNDS; round++) {
      process.stderr.write('.')
      await redis.client.flushall()
      const yardstick = await measureYardstick(redis)
      if (round > 0) yardsticks.push(yardstick.redis)
      for (const [at, step] of STEPS.entries()) {
        const order = [...stores.entries()]
        if (round % 2 === 1) order.reverse()
        for (const [build, store] of order) {
          // A released key must have been held, not completed.
          if (step === 'release') await measure(redis, key => take(store, 'claim of a fresh key', key), `r${build}`)
          const cost = await measure(
            redis, key => take(store, step, key), step === 'release' ? `r${build}` : `k${build}`
          )
          if (round > 0) found[at]?.[build]?.push(cost)
        }
      }
    }
    process.stderr.write('\n')
    const median = (costs: Cost[] | undefined, what: keyof Cost): number =>
      spread((costs ?? []).map(cost => cost[what])).median
    const costs = STEPS.map((step, at): StepCost => {
      const [own, others] = found[at] ?? []
      return {
        step,
        ratio: median(own, 'redis') / spread(yardsticks).median,
        redis: median(own, 'redis'),
        sent: median(own, 'sent'),
        called: median(own, 'called'),
        bytesTo: median(own, 'bytesTo'),
        bytesFrom: median(own, 'bytesFrom'),
        before: others === undefined ? undefined : median(others, 'redis')
      }
    })
    return { sha: other?.sha, costs }
  } finally {
    await redis.stop()
  }
}

/** With `ref`, beside the build of that commit. */
export async function redisSide (ref?: string): Promise<Section<StepCost[]>> {
  process.stderr.write('Redis\' side ')
  const { sha, costs } = await redisCosts(ref)
  return {
    title: 'What a step costs Redis: its own time, commands and bytes',
    notes: [`Redis' own time is what its commandstats say of the script. Medians of ${ROUNDS} rounds of ${KEYS} ` +
      `keys each, a response of ${String(outcome.body).length} bytes. ` +
      'A first execution is the claim of a fresh key and a completion; a replay is the claim of a kept key. ' +
      'Each command is one round trip.'],
    table: {
      columns: [
        'step',
        'Redis, µs',
        'of a script with GET and SET',
        ...(sha === undefined ? [] : [`${sha}, µs`, 'change']),
        'commands sent',
        'called by its script',
        'bytes to Redis',
        'bytes back'
      ],
      rows: costs.map(({ step, redis, ratio, before, sent, called, bytesTo, bytesFrom }) => [
        step,
        `**${redis.toFixed(2)}**`,
        ratio.toFixed(2),
        ...(before === undefined ? [] : [before.toFixed(2), `${Math.round((redis / before - 1) * 100)} %`]),
        sent.toFixed(0),
        called.toFixed(0),
        bytesTo.toFixed(0),
        bytesFrom.toFixed(0)
      ])
    },
    data: costs
  }
}
