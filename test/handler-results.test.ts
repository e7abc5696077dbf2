import type { AddressInfo } from 'node:net'
import Fastify, { type FastifyInstance } from 'fastify'
import t, { type Test } from 'tap'
import {
  gate, MODES, send, start, stopRedis, STORES, until, type Answer, type Gate, type TestApp
} from './fixtures/app.ts'
import { cutting, head, stateOf } from './fixtures/cut.ts'
import { REPLAY, ROWS, RUNS_AGAIN, UNAVAILABLE, type Row, type Situation } from './fixtures/handler-table.ts'

/** What a handler returns, and what becomes of it: its work is done once, whoever is there to see it. */

t.teardown(stopRedis)

/** One row's route, and what its handler has done. */
class Stage {
  runs = 0
  started: Gate = gate()
  finish: Gate = gate()
  left: Gate = gate()

  async work (): Promise<void> {
    this.runs++
    this.started.open()
    await this.finish.promise
  }
}

type Stages = Map<Row, Stage>

function routes (app: FastifyInstance, rows: Row[], stages: Stages, handlerTimeout?: number): void {
  rows.forEach((row, index) => {
    const stage = new Stage()
    stages.set(row, stage)
    const timeout = handlerTimeout === undefined ? {} : { handlerTimeout }
    app.post(`/${index}`, timeout, (_request, reply) => {
      reply.raw.once('close', stage.left.open)
      return row.handler(async () => await stage.work(), reply)
    })
  })
}

async function bare (t: Test, rows: Row[], stages: Stages): Promise<number> {
  const app = Fastify()
  routes(app, rows, stages)
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(async () => await app.close())
  return (app.server.address() as AddressInfo).port
}

const inWords = ({ status, text }: Answer): string => `${status} ${text}`
const rowsFor = (situation: Situation): Row[] => ROWS.filter(({ without = [] }) => !without.includes(situation))
/** All rows at once; one that breaks down does not hide the others. */
const each = async (t: Test, rows: Row[], run: (row: Row, path: string) => Promise<void>): Promise<void> => {
  await Promise.all(
    rows.map(async (row, index) => await run(row, `/${index}`).catch(error => t.fail(row.what, { error })))
  )
}
const codeOf = ({ status, text }: Answer): string => `${status} ${/"code":"(\w+)"/.exec(text)?.[1] ?? text}`

/** Sends a request whose client leaves while the work is done; the work ends afterwards. */
async function hangUp (port: number, path: string, stage: Stage): Promise<void> {
  const socket = await cutting(port, head(path, path, 'Content-Length: 0\r\n'))
  await stage.started.promise
  socket.destroy()
  await stage.left.promise
  stage.finish.open()
}

/** Sends the retry of a row, and checks it, and how often the work was done by then. */
async function retry (
  t: Test, { post }: TestApp, path: string, row: Row, situation: Situation, stage: Stage
): Promise<void> {
  const expected = row.retry?.[situation] ?? (situation === 'timed out' ? UNAVAILABLE : REPLAY)
  const answer = await post(path, undefined, { path })
  const runs = stage.runs
  const name = `${row.what}: the retry`
  if (expected === RUNS_AGAIN) t.same([inWords(answer), answer.replayed, runs], [row.bare, false, 2], name)
  else if (expected === REPLAY) t.same([inWords(answer), answer.replayed, runs], [row.bare, true, 1], name)
  else t.same([codeOf(answer), runs], [expected, 1], name)
}

t.test('bare Fastify, beside which the plugin is seen', async t => {
  const rows = rowsFor('there')
  const stages: Stages = new Map()
  const port = await bare(t, rows, stages)
  await each(t, rows, async (row, path) => {
    stages.get(row)?.finish.open()
    t.same([inWords(await send(port, { path })), stages.get(row)?.runs], [row.bare, 1], row.what)
  })

  const gone = rowsFor('gone')
  const later: Stages = new Map()
  const other = await bare(t, gone, later)
  await each(t, gone, async (row, path) => {
    const stage = later.get(row) as Stage
    await hangUp(other, path, stage)
    await new Promise(resolve => setImmediate(resolve))
    t.equal(stage.runs, 1, `${row.what}: the client has gone`)
  })
})

for (const mode of MODES) {
  t.test(`G1: whatever a handler returns, its work is done once, and the retry gets the answer (${mode})`, async t => {
    const rows = rowsFor('there')
    const stages: Stages = new Map()
    const served = await start(t, mode, { routes: app => routes(app, rows, stages) })
    await each(t, rows, async (row, path) => {
      const stage = stages.get(row) as Stage
      stage.finish.open()
      const first = await served.post(path, undefined, { path })
      t.same([inWords(first), first.replayed, stage.runs], [row.bare, false, 1], row.what)
      await retry(t, served, path, row, 'there', stage)
    })
  })

  t.test(`G1, G7: … also where the client hangs up meanwhile (${mode})`, async t => {
    const rows = rowsFor('gone')
    const stages: Stages = new Map()
    const served = await start(t, mode, { routes: app => routes(app, rows, stages) })
    await each(t, rows, async (row, path) => {
      const stage = stages.get(row) as Stage
      await hangUp(served.port, path, stage)
      await until(async () => await stateOf(served, path) !== 'held', `the end of "${row.what}"`)
      await retry(t, served, path, row, 'gone', stage)
    })
  })
}

for (const mode of STORES) {
  t.test(`G1, G9: … and where Fastify's timeout has answered in the handler's place (${mode})`, async t => {
    const rows = rowsFor('timed out')
    const stages: Stages = new Map()
    // Without bodies: Fastify's timeout does not fire once Node.js has closed a body that was read.
    const served = await start(t, mode, { routes: app => routes(app, rows, stages, 400) })
    await each(t, rows, async (row, path) => {
      const stage = stages.get(row) as Stage
      const first = await served.post(path, undefined, { path })
      t.same([codeOf(first), stage.runs], ['503 FST_ERR_HANDLER_TIMEOUT', 1], row.what)
      t.equal(
        codeOf(await served.post(path, undefined, { path })), '409 idempotency_in_progress', `${row.what}: still runs`
      )
      stage.finish.open()
      await until(async () => await stateOf(served, path) !== 'held', `the end of "${row.what}"`)
      await retry(t, served, path, row, 'timed out', stage)
    })
  })
}
