/**
 * The example API, and the playground at `/`. `PORT` (default 3000); `REDIS_URL` or `DATABASE_URL` (default: the
 * in-process store).
 */
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import redis from '@fastify/redis'
import Fastify from 'fastify'
import { Redis } from 'ioredis'
import idempotency, { type FastifyIdempotencyOptions } from '../lib/index.ts'
import { PostgresStore, type PostgresStorePool } from '../lib/sql.ts'
import { playground } from './playground/index.ts'

/** Ends with one line that says what to do. */
function giveUp (line: string): never {
  console.error(line)
  process.exit(1)
}

const { PORT = '3000', REDIS_URL, DATABASE_URL, LOG_LEVEL = 'warn' } = process.env
if (!/^\d{1,5}$/.test(PORT) || Number(PORT) > 65_535) {
  giveUp(`PORT is '${PORT}', which is no port: give a number up to 65535, such as PORT=3001 npm start`)
}

/** A client that is there: once it was, it connects again whenever it has to. */
async function connect (url: string): Promise<Redis> {
  let connected = false
  const client = new Redis(url, {
    lazyConnect: true,
    connectTimeout: 3_000,
    retryStrategy: () => connected ? 500 : null
  })
  let reason = 'no answer'
  client.on('error', (error: Error) => { reason = error.message || String((error as NodeJS.ErrnoException).code) })
  try {
    await client.connect()
    await client.ping()
    connected = true
  } catch {
    client.disconnect()
    giveUp(
      `The Redis of REDIS_URL cannot be reached (${reason}): start it, or leave REDIS_URL out for the in-process store`
    )
  }
  return client
}

interface Pool extends PostgresStorePool { end: () => Promise<void> }
type PoolClass = new (options: Record<string, unknown>) => Pool

/** `pg` is the application's to choose: it is no dependency of the example's either. */
async function poolClass (): Promise<PoolClass> {
  const name: string = 'pg'
  try {
    return (await import(name) as { default: { Pool: PoolClass } }).default.Pool
  } catch {
    return giveUp('DATABASE_URL needs the package pg: npm install --no-save pg')
  }
}

/** A pool of the store's own, and its table. */
async function openDatabase (connectionString: string): Promise<Pool> {
  const Pool = await poolClass()
  try {
    const pool = new Pool({ connectionString, max: 4, connectionTimeoutMillis: 3_000, query_timeout: 3_000 })
    await pool.query({ text: PostgresStore.schema, values: [] })
    return pool
  } catch (error) {
    const { message, code } = error as NodeJS.ErrnoException
    return giveUp(`The PostgreSQL of DATABASE_URL cannot be used (${message === '' ? code : message}): start it, ` +
      'or leave DATABASE_URL out for the in-process store')
  }
}

if (REDIS_URL !== undefined && DATABASE_URL !== undefined) {
  giveUp('REDIS_URL and DATABASE_URL are both set: keys live in one of them')
}
const app = Fastify({ logger: { level: LOG_LEVEL } })
if (REDIS_URL !== undefined) await app.register(redis, { client: await connect(REDIS_URL), closeClient: true })
const options: FastifyIdempotencyOptions = {}
if (DATABASE_URL !== undefined) {
  const pool = await openDatabase(DATABASE_URL)
  options.store = new PostgresStore(pool)
  app.addHook('onClose', async () => { await pool.end() })
}
await app.register(idempotency, options)
await app.register(playground)

app.post<{ Body: { amount: number } }>('/payments', {
  schema: { body: { type: 'object', required: ['amount'], properties: { amount: { type: 'integer', minimum: 1 } } } }
}, async (request, reply) => reply.code(201).send({
  id: randomUUID(), amount: request.body.amount, status: 'succeeded'
}))

// Takes two seconds: time to see the 409 that a duplicate gets meanwhile.
app.post('/slow', async (_request, reply) => {
  await sleep(2_000)
  return await reply.code(201).send({ id: randomUUID() })
})
app.post('/missing', async (_request, reply) => await reply.code(404).send({
  error: 'no such customer', id: randomUUID()
}))
app.post('/broken', async () => { throw new Error(`failure ${randomUUID()}`) })
app.post('/search', { config: { idempotency: false } }, async () => ({ id: randomUUID() }))

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    app.close().then(() => process.exit(0), () => process.exit(1))
  })
}

const address = await app.listen({ port: Number(PORT), host: '127.0.0.1' }).catch((error: NodeJS.ErrnoException) => {
  if (error.code === 'EADDRINUSE') {
    giveUp(`Port ${PORT} is taken: end what listens there, or choose another one: PORT=3001 npm start`)
  }
  giveUp(`The example API cannot listen on port ${PORT}: ${error.message}`)
})
const storeName = REDIS_URL !== undefined
  ? 'with Redis'
  : DATABASE_URL !== undefined ? 'with PostgreSQL' : 'with the in-process store'
console.log(`The example API listens on ${address}, ${storeName}.
Send this twice; the second answer is the first one's, with "idempotent-replayed: true":

  curl -i ${address}/payments -H 'Content-Type: application/json' -H 'Idempotency-Key: order-1' -d '{"amount":4200}'

Or see what it does, and what it does not: open ${address}/ in a browser.
`)
