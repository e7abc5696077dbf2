import { once } from 'node:events'
import { connect } from 'node:net'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { gate, MODES, start, stopRedis } from './fixtures/app.ts'

/** A route's bodyLimit holds for retries too: no more is read of them than Fastify's own parsers would read. */

t.teardown(stopRedis)

const LIMIT = 1_000
const TOTAL = 5_000_000
const PIECE = Buffer.alloc(16_384, ' ')

interface Flood { text: string, sent: number }

/** Sends a large body, piece by piece, until there is an answer: what it is, and how much was sent by then. */
async function flood (port: number, key: string, framing: 'length' | 'chunked'): Promise<Flood> {
  const socket = connect(port, '127.0.0.1')
  await once(socket, 'connect')
  const answer = { text: '', sent: 0 }
  socket.on('error', () => {})
  socket.on('data', data => { answer.text += String(data) })
  const length = framing === 'length' ? `Content-Length: ${TOTAL}` : 'Transfer-Encoding: chunked'
  socket.write(
    `POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: ${key}\r\n${length}\r\n\r\n`
  )
  for (; answer.sent < TOTAL && answer.text === '' && !socket.destroyed; answer.sent += PIECE.length) {
    if (framing === 'length') socket.write(PIECE)
    else socket.write(Buffer.concat([Buffer.from(`${PIECE.length.toString(16)}\r\n`), PIECE, Buffer.from('\r\n')]))
    await sleep(5)
  }
  socket.destroy()
  return answer
}

/** A server that closes what it has not read may reset the connection before its answer is seen: asked again then. */
async function answered (port: number, key: string, framing: 'length' | 'chunked'): Promise<Flood> {
  for (let i = 0; i < 10; i++) {
    const answer = await flood(port, key, framing)
    if (answer.text !== '' || answer.sent >= TOTAL) return answer
  }
  throw new Error('never answered')
}

for (const mode of MODES) {
  t.test(`G8: a body beyond the bodyLimit that a parser has read all the same is compared (${mode})`, async t => {
    const { post } = await start(t, mode, {
      fastify: { bodyLimit: 10 },
      options: { hook: mode.endsWith('first') ? 'preValidation' : 'preHandler' },
      before: app => app.addContentTypeParser('text/x', async (_request: unknown, payload: Readable) => (
        Buffer.concat(await payload.toArray())
      )),
      routes: app => app.post('/', async request => String(request.body))
    })
    const headers = { 'content-type': 'text/x' }
    for (const [key, first, other] of [['short', 'a', 'b'.repeat(20)], ['long', 'a'.repeat(20), 'b']] as const) {
      t.match(await post(key, first, { headers }), { text: first, replayed: false })
      t.match((await post(key, other, { headers })).json(), { code: 'idempotency_key_mismatch' }, key)
      t.match(await post(key, first, { headers }), { text: first, replayed: true })
    }
  })

  for (const [how, options] of [['by default', {}], ['with a function', { fingerprint: () => 'same' }]] as const) {
    t.test(`G14: bodyLimit holds for a key that is kept, held, or unknown; fingerprint ${how} (${mode})`, async t => {
      let runs = 0
      const finish = gate()
      const entered = gate()
      const { port, post } = await start(t, mode, {
        fastify: { bodyLimit: LIMIT },
        options: { ...options, lease: 1_000 },
        routes: app => app.post('/', async request => {
          runs++
          if ((request.body as { wait?: boolean }).wait === true) {
            entered.open()
            await finish.promise
          }
          return 'ok'
        })
      })
      t.match(await post('kept', '{}'), { status: 200 })
      const held = post('held', '{"wait":true}')
      await entered.promise
      for (const key of ['kept', 'held', 'unknown']) {
        for (const framing of ['length', 'chunked'] as const) {
          const { text, sent } = await answered(port, key, framing)
          t.match(text, key === 'held' ? /^HTTP\/1.1 (413|409) / : /^HTTP\/1.1 413 /, `${key}, ${framing}`)
          t.ok(sent < TOTAL / 2, `${key}, ${framing}: ${sent} bytes`)
        }
      }
      finish.open()
      t.match(await held, { status: 200 })
      t.match(await post('kept', '{}'), { status: 200, replayed: true })
      t.match(await post('unknown', '{}'), { status: 200, replayed: false }, 'a 413 is no outcome')
      t.equal(runs, 3)
    })
  }
}
