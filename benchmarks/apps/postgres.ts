/** The plugin with its keys in PostgreSQL: the environment variable BENCH_POSTGRES is the database's URL. */
import type { Server } from 'node:http'
import pg from 'pg'
import idempotency from '../../lib/index.ts'
import { PostgresStore } from '../../lib/sql.ts'
import { addRoutes, createApp, listen } from './routes.ts'

async function start (prepare: boolean): Promise<Server> {
  const pool = new pg.Pool({ connectionString: String(process.env['BENCH_POSTGRES']) })
  const table = `keys_${process.pid}`
  await pool.query(PostgresStore.schemaFor(table))
  const app = createApp()
  await app.register(idempotency, { store: new PostgresStore(pool, { table, prepare }) })
  addRoutes(app)
  return await listen(app)
}

export const oursPostgres = async (): Promise<Server> => await start(false)
export const oursPostgresPrepared = async (): Promise<Server> => await start(true)
