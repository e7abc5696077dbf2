import t from 'tap'
import { MemoryStore, RedisStore, type IdempotencyStore } from '../lib/index.ts'
import { start } from './fixtures/app.ts'
import { plain } from './fixtures/broken-stores.ts'

/** A store that answers a question about steps with what is no answer: nothing runs on the strength of it. */

const RECORDINGS: unknown[] = [
  undefined, null, true, 'QUEUED', {}, { outcome: 'acquired' }, { outcome: 'known', result: 1 },
  { outcome: 'known', result: null }
]
const STEPS: unknown[] = [
  undefined, null, 'QUEUED', {}, [undefined], [null], ['step'], [{}], [{ name: 1 }], [{ name: 'step', result: 1 }],
  [{ name: 'step', result: null }]
]

for (const [method, answers, asked] of [
  ['record', RECORDINGS, 'a step to be recorded'], ['recorded', STEPS, 'the question for recorded steps']
] as const) {
  t.test(`G16: an answer to ${method} that is none is a 503, and no step is run, or run again`, async t => {
    const store = new MemoryStore()
    let answer: { wrong: unknown } | undefined
    const broken = {
      ...plain(store),
      [method]: (...args: Parameters<MemoryStore['record']>) => answer === undefined
        ? (store[method] as (...args: unknown[]) => unknown)(...args)
        : answer.wrong
    } as IdempotencyStore
    const logs: Array<{ msg: string, err?: { message: string } }> = []
    let runs = 0
    const { post } = await start(t, 'memory', {
      options: { store: broken, onStoreError: 'bypass' },
      fastify: { logger: { level: 'error', stream: { write: line => { logs.push(JSON.parse(line)) } } } },
      routes: app => app.post('/', async (request, reply) => {
        const { step, attempt } = request.idempotency
        // It has begun, as far as the store knows, before it runs.
        const run = await step('a', () => ++runs, { interrupted: () => -1 })
        return await reply.code(attempt === 1 ? 500 : 201).send({ run })
      })
    })
    for (const [index, wrong] of answers.entries()) {
      const key = `k${index}`
      const before = runs
      // Recorded steps are asked for from the second attempt on.
      if (method === 'recorded') t.same((await post(key, '{}')).json(), { run: before + 1 })
      const ran = runs
      answer = { wrong }
      const { status, json } = await post(key, '{}')
      t.same([status, json()['code']], [503, 'idempotency_store_unavailable'], JSON.stringify(wrong))
      const err = logs.splice(0).find(({ msg }) => msg.includes('a step could not be'))?.err
      t.match(err, { message: new RegExp(`answer to ${asked} is none`) })
      t.equal(runs, ran, 'nothing has run')
      answer = undefined
      const again = await post(key, '{}')
      t.same([again.status, again.json()], [201, { run: before + 1 }])
    }
    t.equal(runs, answers.length)
  })
}

t.test('G16: an answer to RedisStore.record that is none is an error', async t => {
  for (const answer of ['QUEUED', null, 1, Buffer.from('QUEUED'), Buffer.alloc(0)]) {
    const store = new RedisStore({ callBuffer: async () => answer })
    await t.rejects(store.record('k', 't', 'f', 'a', '1'), {
      name: 'StoreAnswerError', message: /answer to a step to be recorded is none/
    }, String(answer))
  }
})

t.test('G16: a step that was recorded, the answer being lost, is not run again when it is called again', async t => {
  const store = new MemoryStore()
  let lost = true
  const calls: string[] = []
  const broken = {
    ...plain(store),
    record: (...args: Parameters<MemoryStore['record']>) => {
      const answer = store.record(...args)
      if (lost) throw new Error('the answer was lost')
      return answer
    }
  } as IdempotencyStore
  const { post } = await start(t, 'memory', {
    options: { store: broken },
    routes: app => app.post('/', async request => {
      const { step } = request.idempotency
      const work = (name: string) => (): string => {
        calls.push(name)
        return name
      }
      const failed: unknown[] = []
      const note = (error: { code?: unknown }): unknown => failed.push(error.code)
      lost = true
      await step('ended', work('ended')).catch(note)
      await step('begun', work('begun'), { interrupted: work('asked') }).catch(note)
      lost = false
      return {
        failed,
        ended: await step('ended', work('ended'), { interrupted: work('asked too much') }),
        begun: await step('begun', work('begun'), { interrupted: work('asked') })
      }
    })
  })
  t.same((await post('k', '{}')).json(), {
    failed: ['idempotency_store_unavailable', 'idempotency_store_unavailable'], ended: 'ended', begun: 'asked'
  })
  t.same(calls, ['ended', 'asked'])
})
