import { randomUUID } from 'node:crypto'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import idempotency, { MemoryStore, type StoreAnswer, type IdempotencyStore } from '../../lib/index.ts'
import { gate } from '../fixtures/app.ts'
import { listen } from '../fixtures/faulty.ts'
import { turns, VirtualTime } from '../fixtures/virtual-time.ts'

/**
 * A store that is away for a part of a lease, at several points of a handler that lives five
 * leases; another instance, which reaches it all the time, asks for the same key again and again.
 */

const LEASE = 600
const STORE_TIMEOUT = LEASE / 20
const LIFE = 5
const STARTS = [0.02, 0.2, 0.32, 0.35, 0.49, 1.1, 2.33, 3.05, 3.6, 4.2, 4.55, 4.9]
const LENGTHS = [0.1, 0.2, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9]
/** How far one may be away and cost nothing. */
const HARMLESS = 0.5

const never = async (): Promise<never> => await new Promise(() => {})

/** What becomes of an operation that is asked for during the outage, which ends in `left` ms. */
type Fault = <T>(run: () => StoreAnswer<T>, left: number, name: keyof IdempotencyStore) => StoreAnswer<T>
const sleep = async (ms: number): Promise<void> => await new Promise(resolve => setTimeout(resolve, ms))
const FAULTS: Record<string, Fault> = {
  refuses: async () => { throw new Error('connection refused') },
  'answers nothing': never,
  'is frozen, and does all of it later': async (run, left) => {
    await sleep(left)
    return await run()
  },
  'answers late': async (run, left) => {
    const answer = await run()
    await sleep(left)
    return answer
  },
  'is full': async (run, _left, name) => {
    if (name === 'renew') return await run()
    throw new Error('OOM command not allowed')
  }
}

interface Row {
  fault: string
  start: number
  length: number
  key: string
  app: FastifyInstance
  executions: number
  outcomes: Set<string>
}

const payload = (key: string) => ({ method: 'POST', url: '/', headers: { 'idempotency-key': key } } as const)

/** An instance whose way to the store is `store`. */
async function instance (store: IdempotencyStore, executed: (key: string) => void): Promise<FastifyInstance> {
  const app = Fastify()
  await app.register(idempotency, { store, lease: LEASE, storeTimeout: STORE_TIMEOUT })
  app.post('/', async request => {
    executed(String(request.headers['idempotency-key']))
    await sleep(LIFE * LEASE)
    return randomUUID()
  })
  await app.ready()
  return app
}

function away (inner: IdempotencyStore, fault: Fault, time: VirtualTime, from: number, to: number): IdempotencyStore {
  const step = <A extends unknown[], R>(
    name: keyof IdempotencyStore, run: (...args: A) => StoreAnswer<R>
  ) => async (...args: A): Promise<R> =>
      time.now >= from && time.now < to ? await fault(() => run(...args), to - time.now, name) : await run(...args)
  return {
    claim: step('claim', inner.claim.bind(inner)),
    renew: step('renew', inner.renew.bind(inner)),
    complete: step('complete', inner.complete.bind(inner)),
    release: step('release', inner.release.bind(inner)),
    read: inner.read.bind(inner),
    remove: inner.remove.bind(inner)
  }
}

async function ask ({ key, outcomes }: Row, app: FastifyInstance): Promise<number> {
  const { statusCode, body } = await app.inject(payload(key))
  if (statusCode === 200) outcomes.add(body)
  return statusCode
}

/** All rows at once: time is the same for all of them. */
async function play (t: Test, rows: Array<Pick<Row, 'fault' | 'start' | 'length'>>): Promise<{
  played: Row[], lost: Set<unknown>
}> {
  const time = new VirtualTime(t)
  const events = listen(t, 'lease-lost')
  const inner = new MemoryStore({ now: () => time.now })
  const byKey = new Map<string, Row>()
  const executed = (key: string): void => { (byKey.get(key) as Row).executions++ }
  const other = await instance(inner, executed)
  const begin = time.now + 100
  await Promise.all(rows.map(async ({ fault, start, length }) => {
    const from = begin + start * LEASE
    const store = away(inner, FAULTS[fault] as Fault, time, from, from + length * LEASE)
    const key = `${fault} for ${length} from ${start}`
    byKey.set(
      key, { fault, start, length, key, app: await instance(store, executed), executions: 0, outcomes: new Set() }
    )
  }))
  const played = [...byKey.values()]
  await time.pass(begin - time.now)
  const answers = played.map(async row => await ask(row, row.app))
  await turns()
  // A second execution, if there is one, has ended as well.
  for (let passed = 0; passed < 2 * LIFE + 2; passed += 0.15) {
    await time.pass(0.15 * LEASE)
    for (const row of played) ask(row, other).catch(t.threw)
    await turns()
  }
  await Promise.all(answers)
  t.same(
    await Promise.all(played.map(async row => await ask(row, other))), played.map(() => 200), 'all have an outcome'
  )
  const closed = Promise.all([other, ...played.map(({ app }) => app)].map(async app => await app.close()))
  await time.pass(LEASE)
  await closed
  return { played, lost: new Set(events.map(({ key }) => key)) }
}

for (const fault of Object.keys(FAULTS)) {
  t.test(`G2, G5: one store, and it ${fault} for a part of a lease`, async t => {
    const { played, lost } = await play(t, STARTS.flatMap(start => LENGTHS.map(length => ({ fault, start, length }))))
    const harmless = played.filter(({ length }) => length <= HARMLESS)
    t.same(
      harmless.filter(({ key }) => lost.has(key)).map(({ key }) => key), [], 'a live handler does not lose its key'
    )
    t.same(harmless.filter(({ executions }) => executions > 1).map(({ key }) => key), [], 'it runs once')
    // A reply that left while the store was away may be a second outcome once the lease has passed: see the docs.
    const unkept = ({ start, length }: Row): boolean => length > HARMLESS && start < LIFE && start + length > LIFE
    t.same(
      played.filter(row => row.outcomes.size > 1 && !unkept(row)).map(({ key }) => key), [],
      'nobody sees two outcomes, however long it was'
    )
  })
}

t.test('G5: a renewal that is answered after storeTimeout counts from when it was sent', async t => {
  const time = new VirtualTime(t)
  const events = listen(t, 'lease-lost')
  const inner = new MemoryStore({ now: () => time.now })
  const { renew } = inner
  let late = 0
  // It is carried out at once, and answered after a third of the lease, always.
  const store = Object.assign(inner, {
    renew: async (...args: Parameters<typeof renew>) => {
      const answer = renew.apply(inner, args)
      await sleep(LEASE / 3)
      late++
      return answer
    }
  })
  const started = gate()
  let signal: AbortSignal | undefined
  let runs = 0
  const app = Fastify()
  await app.register(idempotency, { store, lease: LEASE, storeTimeout: STORE_TIMEOUT })
  app.post('/', async request => {
    runs++
    signal = request.idempotency?.signal
    started.open()
    await sleep(LIFE * LEASE)
    return randomUUID()
  })
  await app.ready()
  const first = app.inject(payload('k'))
  await started.promise
  await time.pass((LIFE - 1) * LEASE)
  t.ok(late > 3, 'several were answered late')
  t.equal(signal?.aborted, false)
  t.equal((await app.inject(payload('k'))).json().code, 'idempotency_in_progress')
  await time.pass(2 * LEASE)
  const { statusCode, body } = await first
  t.equal(statusCode, 200)
  const retry = await app.inject(payload('k'))
  t.same([retry.body, retry.headers['idempotent-replayed'], runs, events.length], [body, 'true', 1, 0])
  const closed = app.close()
  await time.pass(LEASE)
  await closed
})
