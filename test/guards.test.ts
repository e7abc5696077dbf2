import { randomUUID } from 'node:crypto'
import type { AddressInfo, Socket } from 'node:net'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { gate, MODES, send, start, stopRedis, until, type Gate } from './fixtures/app.ts'
import { cutting, head } from './fixtures/cut.ts'
import { faulty } from './fixtures/faulty.ts'
import { GUARDS, STAGES, unprotected } from './fixtures/guard-table.ts'
import type { Guard, GuardStage, Level, Slow } from './fixtures/guard-table.ts'

/**
 * A hook refuses a request: no handler runs, however it is refused, whoever waits, and whatever the reply waits for.
 */

t.teardown(stopRedis)

type Hook = (request: FastifyRequest, reply: FastifyReply, ...rest: unknown[]) => unknown

/** One row of the table on its route, and what has happened there. */
interface Scene {
  path: string
  guard: Guard
  stage: GuardStage
  level: Level
  runs: number
  /** The refusal has come to where it waits. */
  waiting: Gate
  closed: Gate
}

const LEVELS: Level[] = ['instance', 'route']
const PLACES = LEVELS.flatMap(level => STAGES.map(stage => ({ level, stage })))
const scenesOf = (): Map<string, Scene> => new Map(PLACES.flatMap(({ level, stage }) => GUARDS.map((guard, index) => {
  const path = `/${level}/${stage}/${index}`
  return [path, { path, guard, stage, level, runs: 0, waiting: gate(), closed: gate() }] as [string, Scene]
})))

/** The rows on one app: how replies wait there, and when they may go on. */
class Stage {
  readonly scenes = scenesOf()
  readonly pass = gate()
  readonly slow: Slow

  constructor (slow: Slow) {
    this.slow = slow
  }

  /** Hooks of the instance, there before the plugin. */
  before = (app: FastifyInstance): void => {
    if (this.slow === 'before') app.addHook('onSend', this.#wait)
    for (const stage of STAGES) {
      for (const hook of this.#hooksAt('instance', stage)) app.addHook(stage as 'onRequest', hook as never)
    }
  }

  routes = (app: FastifyInstance): void => {
    app.post('/probe', async () => 'there')
    for (const { path, stage, level, guard } of this.scenes.values()) {
      const own = {
        ...(level === 'route' ? { [stage]: this.#hooksAt('route', stage) } : {}),
        ...(this.slow === 'behind' ? { onSend: this.#wait } : {}),
        ...(guard.lateErrorHandler ? { errorHandler: this.#answerLate } : {})
      }
      app.post(path, own as object, async () => {
        this.#of(path).runs++
        return 'ran'
      })
    }
  }

  /** Of the rows whose replies wait. */
  waiting (): Scene[] {
    const all = Array.from(this.scenes.values())
    return all.filter(({ guard }) => !guard.raw && (this.slow !== 'none' || guard.lateErrorHandler))
  }

  #of (path: string): Scene {
    return this.scenes.get(path) as Scene
  }

  #hooksAt (level: Level, stage: GuardStage): Hook[] {
    const refusing = (request: FastifyRequest, reply: FastifyReply): Guard['refuse'] | undefined => {
      const scene = this.scenes.get(String(request.routeOptions.url))
      if (scene?.level !== level || scene.stage !== stage) return undefined
      reply.raw.once('close', scene.closed.open)
      // The store comes next.
      if (this.slow === 'store') scene.waiting.open()
      return scene.guard.refuse
    }
    const async: Hook = async (request, reply) => {
      const refuse = refusing(request, reply)
      return refuse !== undefined && 'async' in refuse ? await refuse.async(reply) : undefined
    }
    const callback = (request: FastifyRequest, reply: FastifyReply, done: (error?: Error) => void): void => {
      const refuse = refusing(request, reply)
      if (refuse !== undefined && 'callback' in refuse) refuse.callback(reply, done)
      else done()
    }
    const parsing: Hook = (request, reply, _payload, done) => callback(request, reply, done as () => void)
    return [async, stage === 'preParsing' ? parsing : callback as Hook]
  }

  #wait = async ({ routeOptions }: FastifyRequest, _reply: FastifyReply, payload: unknown): Promise<unknown> => {
    this.scenes.get(String(routeOptions.url))?.waiting.open()
    if (routeOptions.url !== '/probe') await this.pass.promise
    return payload
  }

  #answerLate = async (error: Error, { routeOptions }: FastifyRequest): Promise<never> => {
    this.#of(String(routeOptions.url)).waiting.open()
    await this.pass.promise
    throw error
  }
}

/** Gives a handler that would run the time to do so: what is under way comes to its end before later requests. */
async function settle (port: number, { slow }: Stage): Promise<void> {
  const key = slow === 'store' ? undefined : randomUUID()
  for (let i = 0; i < 3; i++) await send(port, { path: '/probe', key, body: '{}' })
}

/** All rows at once, with clients that wait. */
async function there (t: Test, port: number, stage: Stage, isProtected: (scene: Scene) => boolean): Promise<void> {
  const answers = Array.from(stage.scenes.values(), async scene => {
    const { status, text } = await send(port, { path: scene.path, key: scene.path, body: '{}' })
    // Where the handler runs as well, either of the two replies may come first.
    return isProtected(scene) ? [scene.guard.what, `${status} ${text}`] : []
  })
  await Promise.all(stage.waiting().map(async ({ waiting }) => await waiting.promise))
  await settle(port, stage)
  stage.pass.open()
  const expected = Array.from(stage.scenes.values(), scene => {
    return isProtected(scene) ? [scene.guard.what, scene.guard.answer] : []
  })
  t.same(await Promise.all(answers), expected, 'each client is refused')
}

/** Those whose replies wait, with clients that leave meanwhile. */
async function gone (port: number, stage: Stage): Promise<void> {
  const sockets: Socket[] = await Promise.all(stage.waiting().map(async ({ path }) =>
    await cutting(port, `${head(path, path, 'Content-Type: application/json\r\nContent-Length: 2\r\n')}{}`)))
  await Promise.all(stage.waiting().map(async ({ waiting }) => await waiting.promise))
  for (const socket of sockets) socket.destroy()
  await Promise.all(stage.waiting().map(async ({ closed }) => await closed.promise))
  await settle(port, stage)
  stage.pass.open()
}

for (const mode of MODES) {
  for (const slow of ['none', 'before', 'behind', 'store'] as const) {
    // Redis answers late as it is; here it is a store that does so when the test says so.
    if (slow === 'store' && mode.startsWith('redis')) continue
    for (const client of ['there', 'gone'] as const) {
      t.test(`G12: what a hook refuses does not run; replies wait: ${slow}; client: ${client} (${mode})`, async t => {
        const stage = new Stage(slow)
        const wait = async (): Promise<void> => await stage.pass.promise
        const options = slow === 'store' ? { store: faulty({ complete: wait, release: wait }) } : {}
        const { app, port } = await start(t, mode, { ...stage, options })
        const first = mode.endsWith('first')
        const isProtected = ({ guard, stage, level }: Scene): boolean =>
          unprotected(guard, stage, level, first) === undefined
        if (client === 'there') await there(t, port, stage, isProtected)
        else await gone(port, stage)
        for (const scene of client === 'there' ? stage.scenes.values() : stage.waiting()) {
          const { path: key, guard, stage: at, level } = scene
          const name = `${guard.what}, in ${at} of the ${level}`
          await until(async () => (await app.idempotency.inspect({ key }))?.state !== 'held', `the end of "${name}"`)
          if (isProtected(scene)) t.equal(scene.runs, 0, name)
        }
        await settle(port, stage)
      })
    }
  }
}

/** Where a client that has left lets a hook come back that has sent and returned its reply, and Fastify go on. */
const LATE = new Set<GuardStage>(['preValidation', 'preHandler'])

for (const client of ['there', 'gone'] as const) {
  t.test(`bare Fastify, beside which the plugin is seen; client: ${client}`, async t => {
    const stage = new Stage('before')
    const app = Fastify()
    stage.before(app)
    stage.routes(app)
    await app.listen({ port: 0, host: '127.0.0.1' })
    t.teardown(async () => await app.close())
    const { port } = app.server.address() as AddressInfo
    if (client === 'there') await there(t, port, stage, ({ guard }) => guard.bareRuns !== 'always')
    else await gone(port, stage)
    for (const scene of stage.waiting()) {
      const { guard: { bareRuns, what }, stage: at, level } = scene
      const runs = bareRuns === 'always' || (client === 'gone' && bareRuns !== 'never' && LATE.has(at)) ? 1 : 0
      await until(() => scene.runs >= runs, `the handler of "${what}" in ${at}`)
      t.equal(scene.runs, runs, `${what}, in ${at} of the ${level}`)
    }
  })
}
