/** From a log line to the state of the key, without anybody's credentials. */
import Fastify from 'fastify'
import t, { type Test } from 'tap'
import idempotency, { IDEMPOTENCY_EVENTS, MemoryStore, type FastifyIdempotencyOptions } from '../lib/index.ts'
import { gate, start, stopRedis, STORES, until, type Mode } from './fixtures/app.ts'
import { fails, faulty, listen, type Faults } from './fixtures/faulty.ts'

t.teardown(stopRedis)

interface Line { level: number, msg: string, idempotencyId?: string, view?: unknown, ids?: string[] }

function logged (): { lines: Line[], of: (text: string) => Line[], logger: object } {
  const lines: Line[] = []
  const logger = { level: 'debug', stream: { write (line: string) { lines.push(JSON.parse(line) as Line) } } }
  return { lines, of: text => lines.filter(({ msg }) => msg.startsWith('idempotency: ') && msg.includes(text)), logger }
}

for (const mode of STORES) {
  t.test(`an id from a log line inspects and frees the key, on any instance (${mode})`, async t => {
    const { logger, of } = logged()
    const ids: Array<string | null> = []
    const { app, post } = await start(t, mode, {
      fastify: { logger },
      routes: app => {
        app.post('/', async (request, reply) => {
          ids.push(request.idempotency.id)
          return await reply.code(201).send('made')
        })
      }
    })
    const other = Fastify()
    await other.register(idempotency, { store: app.idempotency.store })
    t.teardown(async () => await other.close())
    const secret = { headers: { authorization: 'Bearer secret' } }
    await post('k', '{}', secret)
    t.equal((await post('k', '{}', secret)).replayed, true)

    const id = String(of('replayed')[0]?.idempotencyId)
    t.match(id, /^[0-9A-Za-z]{16,}$/)
    t.same(ids, [id])
    t.match(await app.idempotency.inspect({ id }), { state: 'completed', attempt: 1, status: 201, replayable: true })
    t.same(await app.idempotency.inspect({ id }), await app.idempotency.inspect({ scope: 'Bearer secret', key: 'k' }))
    t.equal(await app.idempotency.forget({ id }), true)
    t.equal(await app.idempotency.inspect({ id }), undefined)
    t.equal(await app.idempotency.forget({ id }), false)
    t.equal((await post('k', '{}', secret)).replayed, false)
    t.same(ids, [id, id], 'the id of a key is always the same')
  })
}

t.test('an id tells scope and key apart, and says nothing of them', async t => {
  const { app, post } = await start(
    t, 'memory', { routes: app => app.post('/', async request => ({ id: request.idempotency.id })) }
  )
  const idOf = async (key: string, authorization?: string): Promise<unknown> =>
    (await post(key, '{}', authorization === undefined ? {} : { headers: { authorization } })).json().id
  const ids = [
    await idOf('k'), await idOf('k', 'Bearer a'), await idOf('k', 'Bearer b'), await idOf('other', 'Bearer a')
  ]
  t.equal(new Set(ids).size, 4)
  for (const wrong of [{}, { id: 'i', key: 'k' }, { scope: 's' }, { id: 1 }, undefined, null, 'k', 5]) {
    await t.rejects(app.idempotency.inspect(wrong as never), { name: 'TypeError', message: /\{ key \}.*\{ id \}/ })
    await t.rejects(app.idempotency.forget(wrong as never), { name: 'TypeError', message: /\{ key \}.*\{ id \}/ })
  }
})

t.test('every event of a request with a key has its id', async t => {
  const events = IDEMPOTENCY_EVENTS.map(name => listen(t, name))
  let status = 201
  const { post } = await start(t, 'memory', {
    options: { required: true, maxResponseBytes: 10 },
    routes: app => app.post(
      '/', async (request, reply) => await reply.code(status).send({ id: request.idempotency.id })
    )
  })
  status = 500
  const { id } = (await post('k', '{}')).json()
  status = 201
  await post('k', '{}')
  await post('k', '{}')
  await post('k', '{"other":1}')
  await post(undefined, '{}')
  const seen = events.flat().map(({ id, key }) => [key, id])
  t.same(seen.filter(([key]) => key === 'k'), seen.filter(([key]) => key === 'k').map(() => ['k', id]))
  t.same(seen.filter(([key]) => key === ''), [['', '']], 'a request without a key has none')
  t.same(events.map(({ length }) => length), IDEMPOTENCY_EVENTS.map(
    name => ({ released: 1, unreplayable: 2, mismatched: 1, invalid: 1 } as Record<string, number>)[name] ?? 0
  ))
})

/** What is logged of one key while the store fails as `faults` says. */
async function troubled (
  t: Test, faults: Faults, options: FastifyIdempotencyOptions = {}
): Promise<ReturnType<typeof logged> & { post: (body?: string) => Promise<unknown>, id: () => string }> {
  const log = logged()
  let id = ''
  const { post } = await start(t, 'memory', {
    fastify: { logger: log.logger },
    options: { store: faulty(faults), ...options },
    routes: app => app.post('/', async (request, reply) => {
      id = String(request.idempotency.id)
      return await reply.code(201).send('made')
    })
  })
  return { ...log, id: () => id, post: async (body = '{}') => await post('k', body) }
}

t.test('every log line of a request with a key has its id: refusals, failures of the store, the backlog', async t => {
  const faults: Faults = { complete: fails }
  const { post, id, of } = await troubled(t, faults, { maxResponseBytes: 1, onStoreError: 'bypass' })
  await post()
  t.equal(of('could not be kept').length, 1)
  delete faults.complete
  await until(() => of('cannot be kept').length === 1, 'the outcome')
  await post()
  await post('{"other":1}')
  faults.claim = fails
  await post()
  t.equal(of('run unprotected').length, 1)
  t.same(of('').map(({ idempotencyId }) => idempotencyId), of('').map(() => id()))
  t.equal(of('refused').length, 2)
})

t.test('every log line of a lease has its id: failed renewal, lost lease, takeover, claim given back', async t => {
  const started = gate()
  const finish = gate()
  const faults: Faults = {}
  const log = logged()
  const ids = new Set<string | null>()
  const { post, app } = await start(t, 'memory', {
    fastify: { logger: log.logger },
    options: { store: faulty(faults), lease: 150, storeTimeout: 100 },
    routes: app => app.post('/', async request => {
      ids.add(request.idempotency.id)
      started.open()
      await finish.promise
      return 'made'
    })
  })
  faults.renew = fails
  const first = post('k', '{}')
  await started.promise
  await until(() => log.of('lease was lost').length === 1, 'the loss')
  delete faults.renew
  finish.open()
  await post('k', '{}')
  await first
  faults.claim = fails
  faults.release = fails
  await post('k', '{}')
  await until(() => log.of('could not be given back').length > 0, 'the claim')
  t.ok(log.of('could not be renewed').length > 0)
  t.equal(ids.size, 1)
  t.same(log.of('').filter(({ idempotencyId }) => idempotencyId !== [...ids][0]), [])
  faults.release = undefined
  await app.close()
})

t.test('what app.close() leaves behind is told by its id', async t => {
  const { logger, lines } = logged()
  const started = gate()
  let id
  const { app, post } = await start(t, 'memory', {
    fastify: { logger, forceCloseConnections: true },
    options: { closeTimeout: 50 },
    routes: app => app.post('/', async request => {
      id = request.idempotency.id
      started.open()
      await new Promise(() => {})
    })
  })
  post('k', '{}').catch(() => {})
  await started.promise
  await app.close()
  t.match(lines.filter(({ msg }) => msg.startsWith('app.close():')), [
    { level: 40, ids: [id], msg: new RegExp(`^app\\.close\\(\\): 1 .*${String(id)}`) }
  ])
})

for (const mode of ['memory', 'memory, routes declared first'] as Mode[]) {
  t.test(`a logger and JSON.stringify see id, attempt and replayed, and nothing else (${mode})`, async t => {
    const { logger, lines } = logged()
    let names: unknown
    const { post } = await start(t, mode, {
      fastify: { logger },
      before: app => app.addHook('onSend', (request, _reply, _payload, done) => {
        request.log.info({ view: request.idempotency }, 'view')
        done()
      }),
      routes: app => app.post('/', async request => {
        names = [Object.keys(request.idempotency), Reflect.ownKeys(request.idempotency).includes('key')]
        return JSON.stringify(request.idempotency)
      })
    })
    const { text } = await post('secret', '{}')
    const { id } = JSON.parse(text) as { id: string }
    t.equal(text, JSON.stringify({ id, attempt: 1, replayed: false }))
    t.match(names, [['id', 'attempt', 'replayed'], true])
    await post('secret', '{}')
    await post(undefined, '{}')
    t.same(lines.filter(({ msg }) => msg === 'view').map(({ view }) => view), [
      { id, attempt: 1, replayed: false }, { id, attempt: 1, replayed: true }, { id: null, attempt: 1, replayed: false }
    ])
    t.notMatch(JSON.stringify(lines), 'secret')
  })

  t.test(`G1: a handler that overwrites request.idempotency harms nobody (${mode})`, async t => {
    let runs = 0
    const { post, app } = await start(t, mode, {
      options: { store: new MemoryStore() },
      routes: app => app.post('/', async (request, reply) => {
        runs++
        const { id } = request.idempotency
        for (const value of [null, undefined, 'mine', {}]) (request as { idempotency: unknown }).idempotency = value
        t.equal(request.idempotency.id, id)
        t.throws(() => { (request.idempotency as { id: unknown }).id = 'mine' }, TypeError)
        t.throws(() => { (request.idempotency as { keep: unknown }).keep = null }, TypeError)
        return await reply.code(201).send({ id })
      })
    })
    const first = await post('k', '{}')
    t.equal(first.status, 201)
    const second = await post('k', '{}')
    t.same([second.replayed, second.text, runs], [true, first.text, 1])
    t.match(await app.idempotency.inspect({ id: String(first.json().id) }), { state: 'completed' })
  })
}
