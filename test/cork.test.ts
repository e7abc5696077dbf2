import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { RedisStore, type StoreOutcome } from '../lib/index.ts'
import { redisServer, stopRedis } from './fixtures/app.ts'
import { startTls } from './fixtures/tls.ts'

/** The commands of one turn of the event loop are sent in one write: what that must not change. */

t.teardown(stopRedis)

const token = randomUUID()
const claim = { token, lease: 10_000, ttl: 60_000, takeover: true }
const outcome: StoreOutcome = { fingerprint: 'f', status: 200, replayable: true, headers: [], body: 'x', text: true }
const turn = async (): Promise<void> => await new Promise(resolve => setImmediate(resolve))

const KINDS = {
  plain: async () => new Redis((await redisServer()).port, { lazyConnect: true }),
  TLS: async (t: Test) => new Redis(
    await startTls(t, (await redisServer()).port), { lazyConnect: true, tls: { rejectUnauthorized: false } }
  )
}

interface Users { client: Redis, socket: Socket, store: RedisStore, writes: Buffer[], prefix: string }

/** A client, its socket, and what is written to it from now on. */
async function users (t: Test, kind: keyof typeof KINDS): Promise<Users> {
  const client = await KINDS[kind](t)
  t.teardown(() => client.disconnect())
  await client.connect()
  const socket = client.stream as Socket
  const store = new RedisStore(client)
  await store.claim('warm', claim)
  await store.release('warm', token, 1_000, true)
  const writes: Buffer[] = []
  // What the stream hands to the system, in one piece or several; `write` itself only queues while corked.
  const { _write, _writev } = socket
  socket._write = function (chunk, encoding, done) {
    writes.push(Buffer.from(chunk as string, encoding))
    return _write.call(this, chunk, encoding, done)
  }
  socket._writev = function (chunks, done) {
    writes.push(Buffer.concat(chunks.map(({ chunk, encoding }) => Buffer.from(chunk as string, encoding))))
    return _writev?.call(this, chunks, done)
  }
  return { client, socket, store, writes, prefix: randomUUID() }
}

for (const kind of Object.keys(KINDS) as Array<keyof typeof KINDS>) {
  t.test(`G15: the commands of one turn are one write (${kind})`, async t => {
    const { socket, store, writes, prefix } = await users(t, kind)
    const claims = Array.from({ length: 50 }, (_, i) => store.claim(`${prefix}${i}`, claim))
    t.equal(socket.writableCorked, 1)
    t.equal(writes.length, 0)
    await turn()
    t.equal(socket.writableCorked, 0)
    t.equal(writes.length, 1)
    t.equal(String(writes[0]).split('EVALSHA').length, 51)
    t.ok((await Promise.all(claims)).every(({ outcome }) => outcome === 'acquired'))
    t.equal(await store.complete(`${prefix}0`, token, outcome, 60_000), true, 'the next turn has a write of its own')
    t.equal(writes.length, 2)
  })

  t.test(`G15: other users of the client keep their order, their transactions and their corks (${kind})`, async t => {
    const { client, socket, store, prefix } = await users(t, kind)
    const key = `${prefix}k`
    const answers = [
      client.set(`${prefix}a`, 1), store.claim(key, claim), client.exists(key),
      client.multi().incr(`${prefix}a`).get(`${prefix}a`).exec(), store.release(key, token, 60_000, true),
      client.incr(`${prefix}a`)
    ]
    socket.cork()
    await turn()
    t.equal(socket.writableCorked, 1, 'what another has corked stays corked')
    socket.uncork()
    const [, taken, exists, transaction, released, last] = await Promise.all(answers)
    t.match(taken, { outcome: 'acquired' })
    t.equal(exists, 1)
    t.same(transaction, [[null, 2], [null, '2']])
    t.equal(released, true)
    t.equal(last, 3)
  })

  t.test(`G10: a connection that ends while it is corked loses nothing but itself (${kind})`, async t => {
    for (const end of ['destroy', 'end', 'reconnect', 'quit'] as const) {
      const { client, socket, store, prefix } = await users(t, kind)
      client.on('error', () => {})
      const first = store.claim(`${prefix}first`, claim)
      if (end === 'reconnect') client.disconnect(true)
      else if (end === 'quit') client.quit().catch(() => {})
      else socket[end]()
      const gone = once(socket, 'close')
      if (end === 'quit') {
        t.match(await first, { outcome: 'acquired' }, 'sent before QUIT')
        await gone
        continue
      }
      await gone
      t.match(await first, { outcome: 'acquired' }, `${end}: sent on the old connection or again on the new one`)
      t.match(await store.claim(`${prefix}second`, claim), { outcome: 'acquired' })
      t.equal((client.stream as Socket).writableCorked, 0)
    }
  })
}

t.test('G10: a new connection within one turn is corked on its own', async t => {
  const streams = [0, 1].map(() => ({
    corked: 0,
    cork () { this.corked++ },
    uncork () { this.corked-- }
  }))
  let current = 0
  const client = { callBuffer: async () => Buffer.from('a\0\0\0\x01'), get stream () { return streams[current] } }
  const store = new RedisStore(client)
  const claims = [store.claim('a', claim)]
  current = 1
  claims.push(store.claim('b', claim), store.claim('c', claim))
  t.same(streams.map(({ corked }) => corked), [1, 1])
  await turn()
  t.same(streams.map(({ corked }) => corked), [0, 0])
  await Promise.all(claims)
})
