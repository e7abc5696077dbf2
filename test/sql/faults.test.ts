import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { startPostgres, type PostgresServer } from '../fixtures/postgres.ts'
import { startRedis } from '../fixtures/redis.ts'
import { LEVELS, type Level } from './fixtures/adapters.ts'
import { newDatabase, run } from './fixtures/app.ts'
import { STEPS, type Options } from './fixtures/steps.ts'
import { Instance } from './fixtures/instances.ts'

/**
 * What becomes of an effect when the instance that is about to commit it is killed, frozen, or loses its store or its
 * database, at each step: eight requests stand at the eight steps, and then it happens to all of them.
 */

const LEASE = 1_000

interface Scene {
  holder: Instance
  other: Instance
  server: PostgresServer
  redis: Redis
  /** The answers to the first requests, in the order of the steps. */
  answers: Array<Promise<string>>
  go: () => Promise<void>
}

const keyOf = (step: string): string => step.replaceAll(' ', '-')

/** The fault, and the answers of the first clients after it; further ones are asked until they settle. */
const FAULTS: Record<string, { idleTimeout: number, happens: (scene: Scene) => Promise<void> }> = {
  'killed (SIGKILL)': {
    idleTimeout: LEASE,
    happens: async ({ holder }) => await holder.kill()
  },
  'frozen (SIGSTOP) until another is done': {
    idleTimeout: LEASE,
    async happens ({ holder, other, go }) {
      holder.freeze()
      // Is heard once it is thawed.
      const going = go()
      await Promise.all(STEPS.map(async step => await other.settled(keyOf(step))))
      holder.thaw()
      await going
    }
  },
  'the store is emptied, another runs at the same time': {
    idleTimeout: 60_000,
    async happens ({ other, redis, answers, go }) {
      await redis.flushall()
      const others = STEPS.map(async step => await other.settled(keyOf(step)))
      // Where the holder has not begun, or has committed, the other is not kept waiting.
      await Promise.all([others[0], others[5], others[6], others[7]])
      await go()
      await Promise.all([...others, ...answers])
    }
  },
  'PostgreSQL is stopped at once': {
    idleTimeout: 60_000,
    async happens ({ server, go }) {
      await server.stop('immediate')
      await go()
      await server.start()
    }
  },
  'killed, and the store is emptied': {
    idleTimeout: LEASE,
    async happens ({ holder, redis }) {
      await holder.kill()
      await redis.flushall()
    }
  },
  'frozen until another is done, and the store is emptied': {
    idleTimeout: LEASE,
    async happens ({ holder, other, redis, go }) {
      holder.freeze()
      const going = go()
      await redis.flushall()
      await Promise.all(STEPS.map(async step => await other.settled(keyOf(step))))
      holder.thaw()
      await going
    }
  }
}

async function play (t: Test, fault: string, level: Level): Promise<void> {
  const { idleTimeout, happens } = FAULTS[fault] as NonNullable<typeof FAULTS[string]>
  const [server, redisServer] = await Promise.all([startPostgres({ durable: true }), startRedis()])
  t.teardown(async () => { await Promise.all([server.remove(), redisServer.stop()]) })
  const redis = new Redis(redisServer.port)
  t.teardown(() => { redis.disconnect() })
  const postgres = await newDatabase(server)
  const options: Options = { redis: redisServer.port, postgres, lease: LEASE, idleTimeout, level }
  const instances = [new Instance(t, options), new Instance(t, options)] as const
  const [holder, other] = await Promise.all(
    instances.map(async instance => await instance.listening())
  ) as [Instance, Instance]

  const standing = await Promise.all(STEPS.map(async step => await holder.postUpTo(step, keyOf(step))))
  const answers = standing.map(({ answer }) => answer)
  const go = async (): Promise<void> => {
    await Promise.all(standing.map(async ({ go }) => await go()))
  }
  await happens({ holder, other, server, redis, answers, go })

  const rows = await run(postgres, 'select key, id, attempt from effects order by id')
  for (const [index, step] of STEPS.entries()) {
    const key = keyOf(step)
    const last = await other.settled(key)
    const first = String(await answers[index])
    const effects = (await run(postgres, 'select id, attempt from effects where key = $1', [key]))
    t.equal(effects.length, 1, `${step}: one row`)
    t.equal(last, `200 ${JSON.stringify(effects[0])}`, `${step}: the answer is the row's`)
    t.match(
      first,
      first.startsWith('200') ? last : /^(none|500|409 idempotency_in_progress)$/,
      `${step}: ${first.slice(0, 30)}, then ${last}`
    )
    t.comment(`| ${step} | ${fault}, ${level} | 1 | ${first.startsWith('200') ? 'the result' : first}, ` +
      `then the result of attempt ${String(effects[0]?.['attempt'])} |`)
  }
  t.ok(rows.length <= STEPS.length)
}

// All of them at each level take minutes: TEST_ALL=1.
const levels = (index: number): Level[] =>
  process.env['TEST_ALL'] === undefined ? [LEVELS[index % LEVELS.length] as Level] : LEVELS

for (const [index, fault] of Object.keys(FAULTS).entries()) {
  for (const level of levels(index)) {
    t.test(`G18: ${fault}, ${level}`, async t => await play(t, fault, level))
  }
}
