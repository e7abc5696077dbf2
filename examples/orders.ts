/**
 * Orders that are written once, though the process fails after each commit: `node --import tsx examples/orders.ts`, or
 * any other way to run TypeScript. In the PostgreSQL of DATABASE_URL, with the package pg; without it in PGlite, a
 * PostgreSQL in this process, with the package @electric-sql/pglite.
 */
import Fastify from 'fastify'
// In your code: 'fastify-idempotency', and 'fastify-idempotency/sql'.
import idempotency from '../lib/index.ts'
import { transactions, viaPg, type Database, type PgClient, type PgPool } from '../lib/sql.ts'

/** What runs a statement, in a transaction or by itself. */
interface Queries {
  query (text: string, values?: string[]): Promise<{ rows: unknown[] }>
}

interface Opened {
  database: Database<Queries>
  /** One statement after another, without values. */
  run: (text: string) => Promise<Array<Record<string, unknown>>>
  close: () => Promise<void>
}

/** Packages are loaded by name, so that this file compiles without them. */
export type Load = (name: string) => Promise<unknown>

async function load (name: string): Promise<unknown> {
  try {
    return await import(name)
  } catch (cause) {
    throw new Error(`This example needs a package: npm install --no-save ${name}`, { cause })
  }
}

type Pool = PgPool<PgClient & Queries> & Queries & { end: () => Promise<void> }

async function openPg (load: Load, connectionString: string): Promise<Opened> {
  const { default: pg } = await load('pg') as { default: { Pool: new (options: object) => Pool } }
  const pool = new pg.Pool({ connectionString })
  return {
    database: viaPg(pool) as Database<Queries>,
    run: async text => (await pool.query(text)).rows as Array<Record<string, unknown>>,
    close: async () => { await pool.end() }
  }
}

interface PGlite extends Queries {
  exec (text: string): Promise<Array<{ rows: unknown[] }>>
  transaction<T> (work: (tx: Queries) => Promise<T>): Promise<T>
  close (): Promise<void>
}

/** A library without an adapter is an object with two methods. */
async function openPGlite (load: Load): Promise<Opened> {
  const { PGlite } = await load('@electric-sql/pglite') as { PGlite: new () => PGlite }
  const db = new PGlite()
  return {
    database: {
      transaction: async work => await db.transaction(work),
      query: async (tx, text, values) => (await tx.query(text, values)).rows as Array<Record<string, unknown>>
    },
    run: async text => (await db.exec(text)).at(-1)?.rows as Array<Record<string, unknown>>,
    close: async () => { await db.close() }
  }
}

/** The order is written, and then something fails, the first two times. */
export async function createApp (database: Database<Queries>, say: (line: string) => void) {
  const transaction = transactions(database)
  const app = Fastify()
  await app.register(idempotency)
  app.post<{ Body: { item: string } }>('/orders', async (request, reply) => {
    const { attempt } = request.idempotency
    const order = await transaction(request, 'order', async tx => {
      say(`attempt ${attempt}: writes the order`)
      const { rows: [row] } = await tx.query('insert into orders (item) values ($1) returning id', [request.body.item])
      return { id: Number((row as { id: unknown }).id) }
    })
    if (attempt < 3) throw new Error('The process fails after the commit')
    return await reply.code(201).send({ ...order, attempt })
  })
  return { app, schema: transaction.schema }
}

export async function run (
  say: (line: string) => void, url = process.env['DATABASE_URL'], loadBy: Load = load
): Promise<void> {
  const { database, run, close } = url === undefined ? await openPGlite(loadBy) : await openPg(loadBy, url)
  try {
    const { app, schema } = await createApp(database, say)
    // In an application: a migration.
    await run(`${schema}; create table if not exists orders (id bigserial primary key, item text not null)`)
    const before = Number((await run('select count(*) from orders'))[0]?.['count'])
    for (let status = 500; status === 500;) {
      const headers = { 'idempotency-key': `order-${before + 1}` }
      const answer = await app.inject({ method: 'POST', url: '/orders', headers, payload: { item: 'tea' } })
      status = answer.statusCode
      say(`the client gets ${status} ${status === 201 ? answer.body : ''}`.trimEnd())
    }
    const after = Number((await run('select count(*) from orders'))[0]?.['count'])
    say(`orders written: ${after - before}`)
    await app.close()
  } finally {
    await close()
  }
}

if (import.meta.filename === process.argv[1]) {
  await run(line => { console.log(line) }).catch((error: Error) => {
    console.error(error.message)
    process.exitCode = 1
  })
}
