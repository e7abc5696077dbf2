import type { Readable } from 'node:stream'
import type { FastifyInstance } from 'fastify'
import t from 'tap'
import { gate, MODES, start, stopRedis, STORES, until } from './fixtures/app.ts'
import { cutting, head, stateOf } from './fixtures/cut.ts'

/** Steps that reject while nobody awaits them. A rejection that is never handled fails a test here. */

t.teardown(stopRedis)

const passStream = (app: FastifyInstance): unknown => app.addContentTypeParser(
  'application/octet-stream', (_request, payload, done) => { done(null, payload) }
)

for (const mode of MODES) {
  t.test(`G6: a client that cuts its upload beside a step ends no process, and frees the key (${mode})`, async t => {
    const read = gate()
    const heard: string[] = []
    const served = await start(t, mode, {
      before: passStream,
      routes: app => {
        app.post('/never', async request => {
          const step = request.idempotency.step('one', () => heard.push('ran'))
          for await (const chunk of request.body as Readable) if ((chunk as Buffer).length > 0) read.open()
          return await step
        })
        app.post('/later', async request => {
          const step = request.idempotency.step('one', () => heard.push('ran'))
          const cut = await (request.body as Readable).toArray().then(() => false, () => true)
          // Everybody who had to hear of it has, had they listened.
          await new Promise(resolve => setImmediate(resolve))
          await step.catch((error: Error) => heard.push(`${cut} ${error.message}`))
          return 'late'
        })
        app.post('/after', async request => {
          const cut = await (request.body as Readable).toArray().then(() => false, () => true)
          const { step } = request.idempotency
          await step('one', () => heard.push('ran')).catch((error: Error) => heard.push(`${cut} ${error.message}`))
          return 'late'
        })
      }
    })
    const more = 'Content-Type: application/octet-stream\r\nContent-Length: 10\r\n'
    for (const path of ['/never', '/later', '/after']) {
      const socket = await cutting(served.port, `${head(path, path, more)}01234`)
      if (path === '/never') await read.promise
      else await until(async () => await stateOf(served, path) === 'held', 'the claim')
      socket.destroy()
      await until(async () => await stateOf(served, path) === 'freed', `the end of ${path}`)
    }
    t.same(heard, Array(2).fill('true The request body was cut off'))
  })
}

for (const mode of STORES) {
  t.test(`a step that nobody awaits ends no process where its outcome is stored first (${mode})`, async t => {
    const inWork = gate()
    const heard: string[] = []
    const steps: Array<Promise<unknown>> = []
    const { post } = await start(t, mode, {
      routes: app => {
        app.post('/', async request => {
          const { step } = request.idempotency
          steps.push(step('in work', async () => await inWork.promise))
          await step('other', () => 1)
          return 'done'
        })
        app.post('/after', {
          onResponse: (request, _reply, done) => {
            steps.push(request.idempotency.step('after', () => heard.push('ran')))
            done()
          }
        }, async () => 'done')
      }
    })
    t.equal((await post('k', '{}')).text, 'done')
    t.equal((await post('after', '{}', { path: '/after' })).text, 'done')
    await until(() => steps.length === 2, 'both')
    inWork.open()
    for (const name of ['in work', 'after']) {
      const said = await (steps.shift() as Promise<unknown>).then(() => 'resolved', (error: Error) => error.message)
      t.match(said, name === 'after' ? /The step "after" came when/ : /lease of this Idempotency-Key was lost/, name)
    }
    t.same(heard, [])
  })

  t.test(`what the work of a step throws is nobody's but the application's (${mode})`, async t => {
    const { post } = await start(t, mode, {
      routes: app => app.post('/', async request => {
        const failing = request.idempotency.step('one', () => { throw new Error('mine') })
        const unhandled = new Promise(resolve => {
          const others = process.listeners('unhandledRejection')
          process.removeAllListeners('unhandledRejection')
          process.once('unhandledRejection', (error: Error) => {
            for (const listener of others) process.on('unhandledRejection', listener)
            resolve(error.message)
          })
        })
        const message = await unhandled
        await failing.catch(() => {})
        return { message }
      })
    })
    t.same((await post('k', '{}')).json(), { message: 'mine' })
  })
}
