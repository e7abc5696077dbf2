/** What may be left when `app.close()` is called, and what becomes of it. */
import { once } from 'node:events'
import { Agent } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import t, { type Test } from 'tap'
import idempotency, {
  MemoryStore, type StoreClaim, type FastifyIdempotencyOptions, type IdempotencyStore
} from '../lib/index.ts'
import { idOf } from '../lib/protocol/fingerprint.ts'
import { gate, MODES, send, stopRedis, storeOptions, until, type Gate, type Mode } from './fixtures/app.ts'
import { entered, LEFT, logged, type Line, type Row, type Stop } from './fixtures/closing-table.ts'
import { cutting, head } from './fixtures/cut.ts'
import { fails, faulty, hangs, type Faults } from './fixtures/faulty.ts'

t.teardown(stopRedis)

const JSON_BODY = 'Content-Type: application/json\r\nContent-Length: 2\r\n'
/** Never reached where all is well. */
const LONG = 30_000
const SHORT = 150

interface Played { app: FastifyInstance, socket: Socket, stop: Stop, lines: Line[], key: string }

/** Starts an app with the row's route, whose request has come to its handler. */
async function play (t: Test, { handler }: Pick<Row, 'handler'>, register: (
  app: FastifyInstance, routes: () => void
) => unknown, fastify: FastifyServerOptions = {}): Promise<Played> {
  const stop = { entered: gate(), go: gate() }
  const { lines, fastify: logging } = logged()
  const app = Fastify({ ...logging, ...fastify })
  await register(app, () => {
    app.post('/', (request, reply) => handler(stop, request, reply))
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(async () => await app.close())
  const socket = await cutting((app.server.address() as AddressInfo).port, head('/', 'k', JSON_BODY) + '{}')
  await stop.entered.promise
  return { app, socket, stop, lines, key: 'k' }
}

function withPlugin (mode: Mode, all: FastifyIdempotencyOptions): (
  app: FastifyInstance, routes: () => void
) => Promise<void> {
  return async (app, routes) => {
    if (mode.endsWith('first')) {
      app.register(idempotency, all)
      routes()
    } else {
      await app.register(idempotency, all)
      routes()
    }
  }
}

async function leave (app: FastifyInstance, socket: Socket): Promise<void> {
  socket.destroy()
  await until(async () => await new Promise(
    resolve => app.server.getConnections((_error, count) => resolve(count === 0))
  ), 'the server has seen it')
}

const told = (lines: Line[]): Line[] => lines.filter(({ msg }) => msg.startsWith('app.close():'))

for (const { name, handler, options = {}, left: usual, state: usually, early } of LEFT) {
  t.test(`app.close() with ${name}, whose client has left: bare Fastify does not wait for it`, async t => {
    const { app, socket } = await play(t, { handler }, (_app, routes) => routes())
    await leave(app, socket)
    await app.close()
  })

  for (const mode of MODES) {
    t.test(`G14: app.close() with ${name}, whose client has left (${mode})`, async t => {
      const { left, state } = mode.endsWith('first') && early !== undefined ? early : { left: usual, state: usually }
      const all = { ...await storeOptions(mode), ...options, closeTimeout: left === 0 ? LONG : SHORT }
      const { app, socket, stop, lines } = await play(t, { handler }, withPlugin(mode, all))
      await leave(app, socket)
      const id = idOf(undefined, 'k')
      const closed = app.close()
      stop.go.open()
      await closed
      t.equal(told(lines).length, left)
      if (left === 1) {
        const [line] = told(lines)
        t.same([line?.level, line?.ids], [40, [id]])
        t.match(line?.msg, new RegExp(`^app\\.close\\(\\): 1 idempotency key .*${id}$`))
        t.equal(lines.length, 1, 'in one line')
      }
      t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, state)
    })
  }
}

for (const mode of MODES) {
  t.test(`G14: app.close() waits for a handler whose client waits, whatever closeTimeout says (${mode})`, async t => {
    const { app, stop, lines, socket } = await play(t, {
      handler: async stop => {
        await entered(stop)
        return 'ok'
      }
    }, withPlugin(mode, { ...await storeOptions(mode), closeTimeout: 1 }))
    const closed = app.close()
    const answer = once(socket, 'data')
    await new Promise(resolve => setTimeout(resolve, 20))
    stop.go.open()
    t.match(String((await answer)[0]), /^HTTP\/1\.1 200 /)
    socket.destroy()
    await closed
    t.same(lines, [])
    t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, 'completed')
  })

  t.test(`G9, G14: app.close() waits for a handler that a timeout has answered for (${mode})`, async t => {
    for (const ends of [true, false]) {
      const go = gate()
      const { lines, fastify } = logged()
      const app = Fastify(fastify)
      await withPlugin(mode, { ...await storeOptions(mode), closeTimeout: ends ? LONG : SHORT })(app, () => {
        app.post('/', { handlerTimeout: 500 }, async () => {
          await go.promise
          return 'late'
        })
      })
      await app.listen({ port: 0, host: '127.0.0.1' })
      t.equal((await send((app.server.address() as AddressInfo).port, { key: 'k' })).status, 503)
      const closed = app.close()
      if (ends) go.open()
      await closed
      t.equal(told(lines).length, ends ? 0 : 1)
      t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, ends ? 'completed' : 'held')
    }
  })
}

/** A store whose claims are carried out, and answered only when the test says so. */
class HeldBack extends MemoryStore {
  hold: Gate | undefined
  claims = 0
  unanswered = 0
  watches = 0
  readonly #polled: boolean

  constructor (polled: boolean) {
    super()
    this.#polled = polled
    if (polled) Object.assign(this, { watch: undefined })
  }

  /** Somebody waits for a key, and has asked for it before. */
  get isWaitedFor (): boolean {
    return this.#polled ? this.claims > 2 : this.watches > 0
  }

  override claim (...args: Parameters<MemoryStore['claim']>): StoreClaim {
    this.claims++
    const answer = super.claim(...args)
    const { hold } = this
    if (hold === undefined) return answer
    this.unanswered++
    return hold.promise.then(() => answer) as unknown as StoreClaim
  }

  override watch (...args: Parameters<MemoryStore['watch']>): () => void {
    this.watches++
    return super.watch(...args)
  }
}

t.test('G6, G14: app.close() waits for the claim of a request that was answered before it', async t => {
  const store = new HeldBack(false)
  const { lines, fastify } = logged()
  let runs = 0
  const app = Fastify(fastify)
  await app.register(idempotency, { store, closeTimeout: LONG, storeTimeout: LONG })
  app.post('/', { handlerTimeout: 20 }, async () => { runs++ })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const answers = store.hold = gate()
  t.equal((await send((app.server.address() as AddressInfo).port, { key: 'k' })).status, 503)
  const closed = app.close()
  setTimeout(answers.open, 20)
  await closed
  t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, 'freed')
  t.equal(runs, 0)
  t.same(told(lines), [])
})

for (const polled of [false, true]) {
  t.test(`G14: duplicates that wait for a holder do not hold up closing (${polled ? 'polled' : 'woken'})`, async t => {
    const finish = gate()
    const inHandler = gate()
    const closing = gate()
    const store = new HeldBack(polled)
    const { lines, fastify } = logged()
    const app = Fastify(fastify)
    await app.register(idempotency, { store, closeTimeout: LONG, storeTimeout: LONG, inFlight: { wait: LONG } })
    app.post('/', async () => {
      inHandler.open()
      await finish.promise
      return 'ok'
    })
    app.addHook('preClose', done => {
      closing.open()
      done()
    })
    await app.listen({ port: 0, host: '127.0.0.1' })
    const { port } = app.server.address() as AddressInfo
    const agent = new Agent()
    const ask = async () => await send(port, { key: 'k', body: '{}', agent })
    const first = ask()
    await inHandler.promise
    const waits = ask()
    await until(() => store.isWaitedFor, 'one that waits')
    const answers = gate()
    store.hold = answers
    const claims = ask()
    await until(() => store.unanswered === (polled ? 2 : 1), 'claims that are not answered yet')
    const closed = app.close()
    await closing.promise
    await new Promise(resolve => setImmediate(resolve))
    answers.open()
    for (const answer of await Promise.all([waits, claims])) t.equal(answer.json()['code'], 'idempotency_in_progress')
    finish.open()
    t.equal((await first).text, 'ok')
    await closed
    t.same(lines, [])
  })
}

t.test('G10, G14: app.close() waits for what the store has not taken yet, and tells what it never took', async t => {
  for (const back of [true, false]) {
    const faults: Faults = {}
    const { lines, fastify } = logged()
    const inner = faulty(faults)
    let closes = 0
    const store: IdempotencyStore = { ...inner, close: () => { closes++ } }
    const app = Fastify(fastify)
    await app.register(idempotency, { store, closeTimeout: back ? LONG : SHORT })
    app.post('/', async () => 'ok')
    app.post('/fails', async (_request, reply) => await reply.code(500).send('failed'))
    await app.listen({ port: 0, host: '127.0.0.1' })
    const { port } = app.server.address() as AddressInfo
    Object.assign(faults, { complete: fails, release: fails })
    t.equal((await send(port, { key: 'good', body: '{}' })).text, 'ok')
    t.equal((await send(port, { key: 'bad', path: '/fails', body: '{}' })).status, 500)
    // A claim that may have been granted, though its answer was lost.
    faults.claim = fails
    t.equal((await send(port, { key: 'lost', body: '{}' })).status, 503)
    const closed = app.close()
    if (back) Object.assign(faults, { complete: undefined, release: undefined })
    await closed
    t.equal(told(lines).length, back ? 0 : 1)
    if (!back) t.match(told(lines)[0], { ids: { length: 3 }, msg: /^app\.close\(\): 3 idempotency keys / })
    t.equal(closes, 1)
    t.equal((await app.idempotency.inspect({ key: 'good' }))?.state, back ? 'completed' : 'held')
    t.equal((await app.idempotency.inspect({ key: 'bad' }))?.state, back ? 'freed' : 'held')
  }
})

t.test('G10, G14: app.close() waits for a claim that the store takes back late', async t => {
  const { lines, fastify } = logged()
  const app = Fastify(fastify)
  let [closing, tries] = [false, 0]
  const store = faulty({ claim: fails, release: () => { if (!closing || ++tries < 3) fails() } })
  await app.register(idempotency, { store, closeTimeout: LONG })
  app.addHook('preClose', async () => { closing = true })
  app.post('/', async () => 'ok')
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  t.equal((await send(port, { key: 'lost', body: '{}' })).status, 503)
  await app.close()
  t.equal(tries, 3)
  t.same(told(lines), [])
})

const CLOSES: Record<string, () => unknown> = {
  'never ends': hangs,
  throws: fails,
  rejects: async () => { throw new Error('cannot be closed') },
  // eslint-disable-next-line prefer-promise-reject-errors
  'rejects with nothing': async () => await Promise.reject(undefined)
}
for (const [what, close] of Object.entries(CLOSES)) {
  t.test(`G10, G14: app.close() with a store whose close() ${what}`, async t => {
    const { lines, fastify } = logged()
    const app = Fastify(fastify)
    const store = Object.assign(new MemoryStore(), { close: close as () => Promise<void> })
    await app.register(idempotency, { store, storeTimeout: 50 })
    await app.ready()
    await app.close()
    t.same(lines.map(({ level, msg }) => [level, msg]), [[50, 'idempotency: the store could not be closed']])
  })
}

t.test('G14: with forceCloseConnections, app.close() waits for handlers before it cuts their connections', async t => {
  const { app, stop, lines, socket } = await play(t, {
    handler: async stop => {
      await entered(stop)
      return 'ok'
    }
  }, withPlugin('memory', { store: new MemoryStore(), closeTimeout: LONG }), { forceCloseConnections: true })
  const ended = once(socket.resume(), 'close')
  const closed = app.close()
  stop.go.open()
  await closed
  await ended
  t.same(lines, [])
  t.equal((await app.idempotency.inspect({ key: 'k' }))?.state, 'completed')
})
