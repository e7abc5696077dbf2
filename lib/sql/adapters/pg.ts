import type { Database, Row } from '../database.ts'

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
  isolationLevel?: 'read committed' | 'repeatable read' | 'serializable' | undefined
}

/** The server may end a session that is idle for too long: without a listener, that would end the process. */
const ignore = (): void => {}

/** By the pool's callback: what the server has said in the same breath is told before a promise goes on. */
async function lend<Client extends PgClient> (pool: PgPool<Client>): Promise<Client> {
  return await new Promise((resolve, reject) => {
    pool.connect((error, client) => {
      if (error != null) return reject(error)
      const lent = client as Client
      lent.on('error', ignore)
      resolve(lent)
    })
  })
}

/** Transactions of pg's pool; `work` gets its client, inside a transaction. */
export function viaPg<Client extends PgClient> (pool: PgPool<Client>): Database<Client, PgTransactionOptions> {
  return {
    async transaction (work, { isolationLevel } = {}) {
      const client = await lend(pool)
      let usable = false
      try {
        await client.query(isolationLevel === undefined ? 'begin' : `begin isolation level ${isolationLevel}`)
        try {
          const result = await work(client)
          const { command } = await client.query('commit')
          if (command !== 'COMMIT') throw new Error(`The transaction was not committed: ${command}`)
          usable = true
          return result
        } catch (error) {
          await client.query('rollback').then(() => { usable = true }, ignore)
          throw error
        }
      } finally {
        client.off('error', ignore)
        client.release(!usable)
      }
    },
    async query (client, text, values) {
      return (await client.query(text, values)).rows as Row[]
    }
  }
}
