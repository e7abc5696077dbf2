import type { FastifyRequest } from 'fastify'
import t from 'tap'
import { start, stopRedis, STORES } from './fixtures/app.ts'

/** Calls of `step` that its type refuses, as plain JavaScript may make them. */

t.teardown(stopRedis)

const refused: Array<[call: unknown[], message: string]> = [
  [[], 'The name of a step must be a string that is not empty, got undefined'],
  [['', () => 1], 'The name of a step must be a string that is not empty, got ""'],
  [['\ud800', () => 1], String.raw`The name of a step must be well-formed Unicode; "\ud800" has half a surrogate pair`],
  [['a'], 'The step "a" needs its work, a function, after the name; got undefined'],
  [['a', { id: 1 }], 'The step "a" needs its work, a function, after the name; got [Object]'],
  [['a', () => 1, null], 'The options of the step "a" must be an object with interrupted; got null'],
  [['a', () => 1, { interupted: () => 2 }],
    'The options of the step "a": unknown option "interupted"; did you mean "interrupted"?'],
  [['a', () => 1, { timeout: 5 }],
    'The options of the step "a": unknown option "timeout"; the options here are interrupted'],
  [['a', () => 1, { interrupted: 5 }], 'The step "a": option "interrupted" must be a function, got 5'],
  [['a', () => 1, { interrupted: null }], 'The step "a": option "interrupted" must be a function, got null']
]

for (const mode of STORES) {
  t.test(`G16: a wrong call of a step says so the first time, and nothing runs (${mode})`, async t => {
    let runs = 0
    const tell = async (request: FastifyRequest, call: unknown[]): Promise<string> => {
      const [name, work, ...options] = call
      const counted = typeof work === 'function' ? () => ++runs : work
      const step = request.idempotency.step as (...given: unknown[]) => Promise<unknown>
      return await step(name, counted, ...options).then(() => 'ran', String)
    }
    const { post, app } = await start(t, mode, {
      routes: app => app.post('/', async (request, reply) => {
        const told = []
        for (const [call] of refused) told.push(await tell(request, call))
        told.push(await tell(request, ['a', () => 1, { interrupted: undefined }]))
        told.push(await tell(request, ['b', () => 1, {}]))
        return await reply.code(500).send({ told })
      })
    })
    const told = [...refused.map(([, message]) => `TypeError: ${message}`), 'ran', 'ran']
    for (const key of ['k', undefined]) t.same((await post(key, '{}')).json()['told'], told, String(key))
    t.equal(runs, 4)
    t.same((await app.idempotency.inspect({ key: 'k' }))?.steps.sort(), ['a', 'b'])
  })
}
