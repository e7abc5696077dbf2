import { setImmediate as turn } from 'node:timers/promises'
import { once } from 'node:events'
import * as http from 'node:http'
import type { AddressInfo } from 'node:net'
import Fastify, { type FastifyInstance, type FastifyReply } from 'fastify'
import t from 'tap'
import type { IdempotencyStore } from '../lib/index.ts'
import { MODES, receive, send, start, stopRedis } from './fixtures/app.ts'
import { PAYLOADS, type Sent } from './fixtures/payloads.ts'
import { wrapped } from './fixtures/wrapped-store.ts'

/** What a handler has sent is what its client and all retries get, whatever is written into its memory afterwards. */

t.teardown(stopRedis)

/** Spoils all that was sent so far. */
class Spoiler {
  readonly #all: Sent[] = []

  add (sent: Sent): unknown {
    this.#all.push(sent)
    return sent.payload
  }

  spoil (): void {
    for (const { spoil } of this.#all.splice(0)) spoil()
  }
}

/** When the memory is written to, besides by the streams themselves. */
type Moment = 'at once' | 'while the store is asked'
const isStream = (what: string): boolean => /stream/.test(what)

function routes (
  app: FastifyInstance, spoiler: Spoiler, moment: Moment, prepare: (reply: FastifyReply) => unknown = () => {}
): void {
  PAYLOADS.forEach(({ what, make }, index) => {
    app.post(`/${index}`, (_request, reply) => {
      prepare(reply)
      reply.send(spoiler.add(make()))
      // A stream writes into its own memory; its next chunk may not have been made yet.
      if (moment === 'at once' && !isStream(what)) spoiler.spoil()
    })
  })
}

/** A store that asks `before` at each end of a key, with what it was given at the call. */
const ending = (before: () => Promise<void>) => (inner: IdempotencyStore): Partial<IdempotencyStore> => ({
  async complete (key, token, outcome, ttl) {
    const given = { ...outcome }
    await before()
    return await inner.complete(key, token, given, ttl)
  },
  async release (...args) {
    await before()
    return await inner.release(...args)
  }
})

t.test('bare Fastify, beside which the plugin is seen', async t => {
  const app = Fastify()
  routes(app, new Spoiler(), 'at once')
  await app.listen({ port: 0, host: '127.0.0.1' })
  t.teardown(async () => await app.close())
  const { port } = app.server.address() as AddressInfo
  for (const [index, { what, body }] of PAYLOADS.entries()) {
    // What the kernel does not take at once is written later, by what the memory has then.
    if (what !== 'a large Buffer') t.equal((await send(port, { path: `/${index}` })).text, body, what)
  }
})

for (const mode of MODES) {
  for (const moment of ['at once', 'while the store is asked'] as const) {
    t.test(`G13: what was sent is what clients and retries get, its memory written to ${moment} (${mode})`, async t => {
      const spoiler = new Spoiler()
      const options = await wrapped(mode, ending(async () => {
        await turn()
        spoiler.spoil()
      }))
      const { post } = await start(t, mode, { options, routes: app => routes(app, spoiler, moment) })
      for (const [index, { what, body }] of PAYLOADS.entries()) {
        const path = `/${index}`
        t.match(await post(path, '{}', { path }), { status: 200, text: body, replayed: false }, what)
        t.match(await post(path, '{}', { path }), { status: 200, text: body, replayed: true }, `${what}: the retry`)
      }
    })
  }

  t.test(`G13: a failure is sent as it was when its handler sent it (${mode})`, async t => {
    const spoiler = new Spoiler()
    const options = await wrapped(mode, ending(async () => await turn()))
    const { post } = await start(
      t, mode, { options, routes: app => routes(app, spoiler, 'at once', reply => reply.code(503)) }
    )
    for (const [index, { what, body }] of PAYLOADS.entries()) {
      const path = `/${index}`
      // A Response has a status of its own.
      if (!what.includes('Response')) {
        t.match(await post(path, '{}', { path }), { status: 503, text: body, replayed: false }, what)
      }
    }
  })

  t.test(`G13: a reply that waits for the upload is sent as it was (${mode})`, async t => {
    const spoiler = new Spoiler()
    const options = await wrapped(mode, () => ({}))
    const { app, port, post } = await start(t, mode, {
      options,
      before: app => { app.addContentTypeParser('text/x', (_request, _payload, done) => done(null)) },
      routes: app => routes(app, spoiler, 'at once')
    })
    const headers = { 'content-type': 'text/x' }
    for (const [index, { what, body }] of PAYLOADS.entries()) {
      const path = `/${index}`
      const request = http.request(
        { port, method: 'POST', path, headers: { ...headers, 'idempotency-key': path, 'content-length': 2 } }
      )
      request.write('a')
      const handled = once(app.server, 'request')
      await handled
      await turn()
      request.end('b')
      const [response] = await once(request, 'response') as [http.IncomingMessage]
      t.match(await receive(response), { status: 200, text: body, replayed: false }, what)
      t.match(await post(path, 'ab', { path, headers: { ...headers, 'idempotency-key': path } }), {
        text: body, replayed: true
      }, `${what}: the retry`)
    }
  })

  t.test(`G10, G13: what the store did not take at first is kept as it was sent (${mode})`, async t => {
    const spoiler = new Spoiler()
    let fails = true
    const options = await wrapped(mode, inner => ({
      // At once, as a store in this process may fail.
      complete (...args) {
        if (!fails) return inner.complete(...args)
        throw new Error('on purpose')
      }
    }))
    const { app, post } = await start(t, mode, { options, routes: app => routes(app, spoiler, 'at once') })
    const paths = PAYLOADS.map((_row, index) => `/${index}`)
    for (const [index, { what, body }] of PAYLOADS.entries()) {
      if (what === 'a large Buffer') continue
      const path = paths[index] as string
      t.match(await post(path, '{}', { path }), { status: 200, text: body, replayed: false }, what)
    }
    fails = false
    for (const [index, { what, body }] of PAYLOADS.entries()) {
      if (what === 'a large Buffer') continue
      const path = paths[index] as string
      while ((await app.idempotency.inspect({ key: path }))?.state !== 'completed') await turn()
      t.match(await post(path, '{}', { path }), { text: body, replayed: true }, `${what}: the retry`)
    }
  })
}
