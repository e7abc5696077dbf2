import fc from 'fast-check'
import t from 'tap'
import { MemoryStore, RedisStore, type RedisStoreClient } from '../../lib/index.ts'
import { redisClient, STORES, stopRedis } from '../fixtures/app.ts'
import { History, type Backend, type Ending, type Op } from '../fixtures/model-history.ts'
import { clock } from '../fixtures/model-world.ts'

t.teardown(stopRedis)

/** Histories per store, of which more search deeper, and the seed of a failure that is looked into. */
const { MODEL_RUNS, MODEL_SEED } = process.env
const RUNS = { memory: 300, redis: 300 }
/** Must all have come up in so many histories: without them they prove nothing. */
const EVENTS = [
  'takeovers', 'late holders', 'late grants', 'replays', 'mismatches', 'in progress',
  'steps that do not run again', 'results that had come first', 'late results', 'bound to another request',
  'steps dropped', 'steps forgotten'
]

const peer = fc.nat({ max: 2 })
const op: fc.Arbitrary<Op> = fc.oneof(
  {
    weight: 9,
    arbitrary: fc.record(
      { op: fc.constant('send'), peer, key: fc.constantFrom(0, 0, 0, 1), body: fc.constantFrom(0, 0, 0, 1) }
    )
  },
  {
    weight: 5,
    arbitrary: fc.record({
      op: fc.constant('finish'),
      nth: fc.nat({ max: 3 }),
      as: fc.constantFrom<Ending>('created', 'refused', 'failed', 'thrown')
    })
  },
  { weight: 3, arbitrary: fc.record({ op: fc.constant('pass'), thirds: fc.constantFrom(3, 1, 2, 4) }) },
  {
    weight: 3,
    arbitrary: fc.record({ op: fc.constant('pause'), peer, link: fc.constantFrom('cut', 'mute'), frozen: fc.boolean() })
  },
  { weight: 5, arbitrary: fc.record({ op: fc.constant('begin'), nth: fc.nat({ max: 3 }), name: fc.nat({ max: 1 }) }) },
  {
    weight: 6,
    arbitrary: fc.record(
      { op: fc.constant('work'), nth: fc.nat({ max: 3 }), fails: fc.constantFrom(false, false, false, true) }
    )
  },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('forget'), peer, key: fc.constantFrom(0, 0, 1) }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('step'), peer }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('resume'), peer }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('crash'), peer }) }
)

/** How a holder is overtaken, which single steps seldom add up to; any of them may be left out. */
const often = fc.constantFrom(false, true, true, true, true, true, true)
const overtaking = fc.tuple(fc.tuple(
  often, often, often, often, often
), peer, fc.boolean(), fc.constantFrom<Ending>('failed', 'created'), fc.constantFrom<Ending>('created', 'failed'))
  .map(([use, peer, frozen, winner, late]): Op[] => ([
    { op: 'pause', peer, link: 'cut', frozen },
    { op: 'pass', thirds: 3 },
    { op: 'send', peer: peer + 1, key: 0, body: 0 },
    { op: 'finish', nth: 1, as: winner },
    { op: 'finish', nth: 0, as: late }
  ] satisfies Op[]).filter((_, i) => use[i]))

/** A step, its execution's end, and a later execution of the same key. */
const goingOn = fc.tuple(
  fc.tuple(often, often, often, often, often, often), peer, fc.nat({ max: 1 }),
  fc.constantFrom<'crash' | 'failed' | 'created'>('crash', 'failed', 'failed', 'created'), fc.constantFrom(0, 0, 0, 1)
).map(([use, peer, name, end, body]): Op[] => ([
  { op: 'send', peer, key: 0, body: 0 },
  { op: 'begin', nth: 0, name },
  { op: 'work', nth: 0, fails: false },
  end === 'crash' ? { op: 'crash', peer } : { op: 'finish', nth: 0, as: end },
  { op: 'pass', thirds: 3 },
  { op: 'send', peer: peer + 1, key: 0, body },
  { op: 'begin', nth: 0, name },
  { op: 'work', nth: 0, fails: false }
] satisfies Op[]).filter((_, i) => use[i] ?? true))

/** One step of two executions, of which the first was cut off. */
const twice = fc.tuple(
  fc.tuple(often, often, often, often, often, often), peer, fc.boolean(), fc.constantFrom(0, 1)
).map(([use, peer, frozen, first]): Op[] => ([
  { op: 'send', peer, key: 0, body: 0 },
  { op: 'begin', nth: 0, name: 0 },
  { op: 'pause', peer, link: 'cut', frozen },
  { op: 'pass', thirds: 3 },
  { op: 'send', peer: peer + 1, key: 0, body: 0 },
  { op: 'begin', nth: 0, name: 0 },
  { op: 'pass', thirds: 1 },
  { op: 'work', nth: first, fails: false },
  { op: 'resume', peer },
  { op: 'work', nth: 0, fails: false }
] satisfies Op[]).filter((_, i) => use[i] ?? true))

const histories = fc.array(fc.oneof(
  { weight: 16, arbitrary: op.map(op => [op]) },
  { weight: 2, arbitrary: overtaking },
  { weight: 2, arbitrary: goingOn },
  { weight: 1, arbitrary: twice }
), { minLength: 1, maxLength: 30, size: 'max' }).map(parts => parts.flat())

/** Uses every script of the store. */
const FIRST: Op[] = [
  { op: 'send', peer: 0, key: 0, body: 0 },
  { op: 'begin', nth: 0, name: 0 },
  { op: 'work', nth: 0, fails: false },
  { op: 'pass', thirds: 1 },
  { op: 'finish', nth: 0, as: 'failed' },
  { op: 'send', peer: 0, key: 0, body: 0 },
  { op: 'begin', nth: 0, name: 0 }
]

/** Histories of several faults, which the dice seldom throw. */
const RARE: { [name: string]: Op[] } = {
  'a key whose grant came late is held for a lease from then on': [
    { op: 'pause', peer: 0, link: 'mute', frozen: true },
    { op: 'send', peer: 0, key: 0, body: 0 },
    { op: 'pass', thirds: 3 },
    { op: 'resume', peer: 0 },
    { op: 'send', peer: 1, key: 0, body: 0 }
  ],
  'a duplicate of the one that has a forgotten key now is not compared with the one that had it': [
    { op: 'send', peer: 0, key: 0, body: 1 },
    { op: 'forget', peer: 0, key: 0 },
    { op: 'send', peer: 0, key: 0, body: 0 },
    { op: 'send', peer: 0, key: 0, body: 0 }
  ],
  'a late outcome finds its key free again, and loses it once more before it is written': [
    { op: 'send', peer: 0, key: 0, body: 0 },
    { op: 'pause', peer: 0, link: 'cut', frozen: true },
    { op: 'pass', thirds: 3 },
    { op: 'send', peer: 1, key: 0, body: 0 },
    { op: 'finish', nth: 1, as: 'failed' },
    { op: 'resume', peer: 0 },
    { op: 'pause', peer: 0, link: 'mute', frozen: true },
    { op: 'finish', nth: 0, as: 'created' },
    { op: 'step', peer: 0 },
    { op: 'pass', thirds: 3 },
    { op: 'send', peer: 1, key: 0, body: 0 },
    { op: 'finish', nth: 0, as: 'created' },
    { op: 'resume', peer: 0 }
  ]
}

const backends = {
  async memory () {
    return (): Backend => ({ store: new MemoryStore({ now: () => clock.now }), pass: async () => {} })
  },
  async redis () {
    const client = await redisClient()
    return (): Backend => {
      const keys = new Set<string>()
      const watched: RedisStoreClient = {
        callBuffer: async (command, ...args) => {
          keys.add(String(args[2]))
          return await client.callBuffer(command, ...args)
        }
      }
      return {
        store: new RedisStore(watched),
        pass: async ms => {
          await Promise.all([...keys].map(async key => await age(client, key, ms)))
        }
      }
    }
  }
}

/** Lets time pass for a held record: it began earlier (an f64 after version, state and attempt), and ends earlier. */
async function age (client: Awaited<ReturnType<typeof redisClient>>, key: string, ms: number): Promise<void> {
  const record = await client.getBuffer(key)
  if (record === null || record[1] !== 'h'.charCodeAt(0)) return
  record.writeDoubleBE(record.readDoubleBE(6) - ms, 6)
  await client.set(key, record, 'PX', await client.pttl(key) - ms)
}

for (const mode of STORES) {
  t.test(`G1, G2, G5, G6, G16, G17: whatever the history, the plugin does what the model does (${mode})`, async t => {
    const kind = mode as 'memory' | 'redis'
    const create = await backends[kind]()
    // The first use of a script takes two round trips, and would let another call pass.
    await new History(create()).run(FIRST)
    const seen: { [what: string]: number } = {}
    const started = process.hrtime.bigint()
    const numRuns = Number(MODEL_RUNS ?? RUNS[kind])
    const result = await fc.check(fc.asyncProperty(histories, async ops => {
      const history = new History(create())
      await history.run(ops)
      for (const [what, count] of Object.entries(history.model.seen)) seen[what] = (seen[what] ?? 0) + count
    }), { numRuns, ...(MODEL_SEED === undefined ? {} : { seed: Number(MODEL_SEED) }) })
    t.comment(`${numRuns} histories in ${Number(process.hrtime.bigint() - started) / 1e9} s`, seen)
    if (result.failed) {
      // The smallest one that fails, a line per step.
      const [what = '', ...history] = String(result.errorInstance).split('\n')
      return t.fail(what, { seed: result.seed, history, stack: '' })
    }
    if (numRuns >= RUNS[kind]) for (const what of EVENTS) t.ok(seen[what], what)
  })

  for (const [name, ops] of Object.entries(RARE)) {
    t.test(`G1, G2: ${name} (${mode})`, async t => {
      const create = await backends[mode as 'memory' | 'redis']()
      await t.resolves(new History(create()).run(ops))
    })
  }
}
