import { checkLibrary, levelOf, type IsolationLevel } from '../check.ts'
import { sqlStateOf, type Database, type Row } from '../database.ts'

/** As much of a client of pg (https://node-postgres.com) as is used. */
export interface PgClient {
  query (text: string, values: string[]): Promise<{ rows: unknown[] }>
  query (text: string): Promise<{ command: string }>
  on (event: 'error', listener: (error: Error) => void): unknown
  off (event: 'error', listener: (error: Error) => void): unknown
  release (destroy?: boolean): void
}

/** A pool of pg, @fastify/postgres (`app.pg.pool`) or a compatible one, and the client that it gives. */
export interface PgPool<Client> {
  connect: {
    (): Promise<Client>
    (callback: (error: unknown, client: unknown, done: unknown) => void): void
  }
}

export interface PgTransactionOptions {
  /** Default: the database's own. */
  isolationLevel?: IsolationLevel | undefined
}

const ignore = (): void => {}

/** The server may end a session that is idle for too long: without a listener, that would end the process. */
class Ending {
  error: Error | undefined
  readonly note = (error: Error): void => { this.error ??= error }
}

/** By the pool's callback: what the server has said in the same breath is told before a promise goes on. */
async function lend<Client extends PgClient> (pool: PgPool<Client>, ending: Ending): Promise<Client> {
  return await new Promise((resolve, reject) => {
    pool.connect((error, client) => {
      if (error != null) return reject(error)
      const lent = client as Client
      lent.on('error', ending.note)
      resolve(lent)
    })
  })
}

/** What a client of pg says of a session that was ended names no cause. */
function causeOf (error: unknown, { error: ended }: Ending): unknown {
  if (ended === undefined || sqlStateOf(error) !== undefined || sqlStateOf(ended) !== '25P03') return error
  return new Error('fastify-idempotency/sql: the server has ended the session, which was idle in its transaction for ' +
    'too long (see the option "idleTimeout"); nothing was committed', { cause: ended })
}

/**
 * Transactions of pg's pool; `work` gets its client, inside a transaction.
 * @throws {TypeError} where `pool` is none.
 */
export function viaPg<Client extends PgClient> (pool: PgPool<Client>): Database<Client, PgTransactionOptions> {
  checkLibrary(pool, 'connect', 'viaPg', 'a pool of pg')
  return {
    async transaction (work, options) {
      const level = levelOf(options, 'viaPg')
      const ending = new Ending()
      const client = await lend(pool, ending)
      let usable = false
      try {
        await client.query(level === undefined ? 'begin' : `begin isolation level ${level}`)
        try {
          const result = await work(client)
          const { command } = await client.query('commit')
          if (command !== 'COMMIT') throw new Error(`The transaction was not committed: ${command}`)
          usable = true
          return result
        } catch (error) {
          await client.query('rollback').then(() => { usable = true }, ignore)
          throw causeOf(error, ending)
        }
      } finally {
        client.off('error', ending.note)
        client.release(!usable)
      }
    },
    async query (client, text, values) {
      return (await client.query(text, values)).rows as Row[]
    }
  }
}
