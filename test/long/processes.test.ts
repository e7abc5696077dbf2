import { randomUUID } from 'node:crypto'
import t from 'tap'
import { redisServer, stopRedis, until } from '../fixtures/app.ts'
import { instances, type Pair } from '../fixtures/instances.ts'
import { play, type Cell, type Stopped } from '../fixtures/scene.ts'

/** What becomes of a key when the instance that holds it is killed, frozen, or has its clock set, at each step. */

t.teardown(stopRedis)

const LEASE = 1_000
const DAY = 86_400_000
/** The barriers stand inside the store's operations, whose time must not run out meanwhile. */
const OPTIONS = { lease: LEASE, storeTimeout: 30_000 }
const IN_PROGRESS = '409 idempotency_in_progress'
const UNKNOWN = '409 idempotency_outcome_unknown'

type Fault = keyof typeof FAULTS

const MATRIX: Array<Cell<Fault>> = [
  // the dead one's client | a retry at once | a retry after the lease | another
  {
    fault: 'killed',
    step: 'before the claim',
    executions: ['other 1'],
    answers: [
      'none', '201 other 1', '201 other 1 replayed', '201 other 1 replayed'
    ]
  },
  {
    fault: 'killed',
    step: 'after the claim',
    executions: ['other 2'],
    answers: [
      'none', IN_PROGRESS, '201 other 2', '201 other 2 replayed'
    ]
  },
  {
    fault: 'killed',
    step: 'in the handler',
    executions: ['holder 1', 'other 2'],
    answers: [
      'none', IN_PROGRESS, '201 other 2', '201 other 2 replayed'
    ]
  },
  {
    fault: 'killed',
    step: 'before the keep',
    executions: ['holder 1', 'other 2'],
    answers: [
      'none', IN_PROGRESS, '201 other 2', '201 other 2 replayed'
    ]
  },
  {
    fault: 'killed',
    step: 'after the keep',
    executions: ['holder 1'],
    answers: [
      'none', '201 holder 1 replayed', '201 holder 1 replayed', '201 holder 1 replayed'
    ]
  },

  {
    fault: "killed, with abandoned: 'reject'",
    step: 'in the handler',
    executions: ['holder 1'],
    answers: [
      'none', IN_PROGRESS, UNKNOWN, UNKNOWN
    ]
  },

  // the other's client | the late one's client | a retry with the late one
  {
    fault: 'frozen until the other is done',
    step: 'before the claim',
    executions: ['other 1'],
    answers: [
      '201 other 1', '201 other 1 replayed', '201 other 1 replayed'
    ]
  },
  {
    fault: 'frozen until the other is done',
    step: 'after the claim',
    executions: ['other 2'],
    answers: [
      '201 other 2', '201 other 2 replayed', '201 other 2 replayed'
    ]
  },
  {
    fault: 'frozen until the other is done',
    step: 'in the handler',
    executions: ['holder 1', 'other 2'],
    answers: [
      '201 other 2', '201 other 2 replayed', '201 other 2 replayed'
    ]
  },
  {
    fault: 'frozen until the other is done',
    step: 'before the keep',
    executions: ['holder 1', 'other 2'],
    answers: [
      '201 other 2', '201 other 2 replayed', '201 other 2 replayed'
    ]
  },
  {
    fault: 'frozen until the other is done',
    step: 'after the keep',
    executions: ['holder 1'],
    answers: [
      '201 holder 1 replayed', '201 holder 1', '201 holder 1 replayed'
    ]
  },

  // the late one's client | the other's client | a retry with the late one
  {
    fault: 'frozen until the other runs',
    step: 'before the claim',
    executions: ['other 1'],
    answers: [
      IN_PROGRESS, '201 other 1', '201 other 1 replayed'
    ]
  },
  {
    fault: 'frozen until the other runs',
    step: 'after the claim',
    executions: ['other 2'],
    answers: [
      IN_PROGRESS, '201 other 2', '201 other 2 replayed'
    ]
  },
  {
    fault: 'frozen until the other runs',
    step: 'in the handler',
    executions: ['holder 1', 'other 2'],
    answers: [
      IN_PROGRESS, '201 other 2', '201 other 2 replayed'
    ]
  },
  {
    fault: 'frozen until the other runs',
    step: 'before the keep',
    executions: ['holder 1', 'other 2'],
    answers: [
      IN_PROGRESS, '201 other 2', '201 other 2 replayed'
    ]
  },

  // a retry after more than a lease | the holder's client | a retry
  {
    fault: 'set a day ahead',
    step: 'in the handler',
    executions: ['holder 1'],
    answers: [
      IN_PROGRESS, '201 holder 1', '201 holder 1 replayed'
    ]
  },
  {
    fault: 'set a day back',
    step: 'in the handler',
    executions: ['holder 1'],
    answers: [
      IN_PROGRESS, '201 holder 1', '201 holder 1 replayed'
    ]
  }
]

const PROMISES: Record<Fault, string> = {
  killed: 'G3, G5',
  "killed, with abandoned: 'reject'": 'G1',
  'frozen until the other is done': 'G2',
  'frozen until the other runs': 'G2',
  'set a day ahead': 'G1, G5',
  'set a day back': 'G1, G5'
}

async function kill ({ scene, first }: Stopped): Promise<string[]> {
  await scene.holder.kill()
  return [await first, await scene.ask(scene.other), await scene.settled(scene.other), await scene.ask(scene.other)]
}

function setClock (offset: number) {
  return async ({ scene, barrier, first }: Stopped): Promise<string[]> => {
    const { holder, other, key } = scene
    const before = holder.renewals.length
    await holder.setClock(offset)
    // One may have been under way; four more are more than a lease.
    await until(() => holder.renewals.slice(before).filter(renewed => renewed === key).length >= 5, 'renewals')
    const retry = await scene.ask(other)
    await barrier.go()
    const answers = [retry, await first, await scene.ask(other)]
    await holder.setClock(0)
    return answers
  }
}

const FAULTS = {
  killed: kill,
  "killed, with abandoned: 'reject'": kill,
  async 'frozen until the other is done' ({ scene, barrier, first }: Stopped) {
    const { holder, other } = scene
    holder.freeze()
    const winner = await scene.settled(other)
    holder.thaw()
    await barrier.go()
    return [winner, await first, await scene.ask(holder)]
  },
  async 'frozen until the other runs' ({ scene, barrier, first }: Stopped) {
    const { holder, other, key } = scene
    holder.freeze()
    const running = await other.stopAt('in the handler', key)
    const winner = scene.settled(other)
    await running.reached
    holder.thaw()
    await barrier.go()
    const late = await first
    await running.go()
    return [late, await winner, await scene.ask(holder)]
  },
  'set a day ahead': setClock(DAY),
  'set a day back': setClock(-DAY)
}

const { port } = await redisServer()
const options = { ...OPTIONS, keyPrefix: `${randomUUID()}:` }
const [shared, rejecting] = await Promise.all([
  instances(t, ['holder', 'other'], port, options),
  instances(t, ['other'], port, { ...options, abandoned: 'reject' })
])
/** Who is killed serves one cell only; the next one starts meanwhile. */
const victim = async (): Promise<Pick<Pair, 'holder'>> => await instances(t, ['holder'], port, options)
let next = victim()

async function pairFor (fault: Fault): Promise<Pair> {
  if (!fault.startsWith('killed')) return shared
  const { holder } = await next
  next = victim()
  return { holder, ...(fault === 'killed' ? { other: shared.other } : rejecting) }
}

for (const cell of MATRIX) {
  const { fault, step } = cell
  t.test(`${PROMISES[fault]}: the holder is ${fault}, ${step}`, async t => await play(
    t, await pairFor(fault), cell, FAULTS[fault]
  ))
}

t.test('G1, G2, G3: two processes on one Redis: one execution of many, replayed by the other', async t => {
  const { holder, other } = shared
  const first = await holder.post('k', '{"amount":1}')
  t.equal(first.status, 201)
  const replay = await other.post('k', '{"amount":1}')
  t.same([replay.status, replay.text, replay.replayed], [201, first.text, true])
  t.equal((await other.post('k', '{"amount":2}')).json().code, 'idempotency_key_mismatch')

  const all = await Promise.all(
    Array.from({ length: 40 }, async (_, i) => await (i % 2 === 0 ? holder : other).post('race'))
  )
  const won = all.filter(({ status }) => status === 201)
  t.ok(won.length >= 1)
  t.equal(new Set(won.map(({ text }) => text)).size, 1)
  t.ok(all.every(({ status, json }) => status === 201 || json().code === 'idempotency_in_progress'))
  t.equal(
    (await Promise.all([holder, other].map(async instance => await instance.executionsOf('race')))).flat().length, 1
  )
})
