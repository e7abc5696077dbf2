import type { AddressInfo } from 'node:net'
import { Writable } from 'node:stream'
import Fastify, { type FastifyInstance } from 'fastify'
import t from 'tap'
import { MODES, send, start, stopRedis } from './fixtures/app.ts'
import { stateOf } from './fixtures/cut.ts'
import { EARLY_BODIES, type EarlyBody } from './fixtures/early-body-table.ts'
import { fails, faulty } from './fixtures/faulty.ts'

/** A body that somebody has read before the plugin's hooks: it is protected all the same, or refused aloud. */

t.teardown(stopRedis)

const FIRST = '{"amount":1}'
const OTHER = '{"amount":2}'

/** The route of a row; answers how often its handler has run. */
function serve (app: FastifyInstance, { config }: EarlyBody): () => number {
  let runs = 0
  app.post('/', config === undefined ? {} : { config: { idempotency: config } }, async () => `run ${++runs}`)
  return () => runs
}

t.test('bare Fastify, beside which the plugin is seen: it runs each time', async t => {
  for (const row of EARLY_BODIES) {
    const app = Fastify()
    row.setup(app)
    const runs = serve(app, row)
    await app.listen({ port: 0, host: '127.0.0.1' })
    t.teardown(async () => await app.close())
    const { port } = app.server.address() as AddressInfo
    for (const body of [FIRST, FIRST, OTHER]) await send(port, { key: 'k', body })
    t.equal(runs(), 3, row.what)
  }
})

for (const mode of MODES) {
  t.test(`G1, G8: a body that was read early is compared, or refused aloud (${mode})`, async t => {
    for (const row of EARLY_BODIES) {
      const lines: Array<Record<string, unknown>> = []
      const stream = new Writable({
        write (line, _encoding, done) {
          lines.push(JSON.parse(String(line)) as Record<string, unknown>)
          done()
        }
      })
      let runs = (): number => 0
      const served = await start(t, mode, {
        fastify: { logger: { level: 'error', stream } },
        before: row.setup,
        routes: app => { runs = serve(app, row) }
      })
      const first = await served.post('k', FIRST)
      const retry = await served.post('k', FIRST)
      const other = await served.post('k', OTHER)
      if (row.refused) {
        t.same([first.status, retry.status, other.status, runs()], [500, 500, 500, 0], row.what)
        t.not(await stateOf(served, 'k'), 'held', `${row.what}: the key is free`)
        t.match(first.json(), { message: /body.*"fingerprint"/ }, `${row.what}: the answer says what helps`)
        const error = lines.find(({ msg }) => /body.*"fingerprint"/.test(String(msg)))
        t.match(error, { level: 50, idempotencyId: /^\w+$/ }, `${row.what}: so does the log`)
      } else {
        t.same([first.status, first.text, first.replayed], [200, 'run 1', false], row.what)
        t.same([retry.status, retry.text, retry.replayed], [200, 'run 1', true], `${row.what}: the retry`)
        t.match([other.status, other.json()], [409, { code: 'idempotency_key_mismatch' }], `${row.what}: another body`)
        t.same([runs(), lines], [1, []], `${row.what}: once, and no word`)
      }
    }
  })
}

for (const mode of MODES.filter(mode => mode.startsWith('memory'))) {
  t.test(`a body that was read early does not stop a request that passes by its store (${mode})`, async t => {
    const lost = EARLY_BODIES.find(({ refused }) => refused) as EarlyBody
    let runs = (): number => 0
    const { post } = await start(t, mode, {
      options: { store: faulty({ claim: fails }), onStoreError: 'bypass' },
      before: lost.setup,
      routes: app => { runs = serve(app, lost) }
    })
    t.same([(await post('k', FIRST)).text, (await post('k', FIRST)).text, runs()], ['run 1', 'run 2', 2])
  })
}
