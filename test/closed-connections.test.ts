import { setImmediate as turn } from 'node:timers/promises'
import t from 'tap'
import { viaPostgres, type Database } from '../lib/sql.ts'
import { gate, type Gate } from './fixtures/app.ts'

/** The adapter for postgres over a stand-in for it, whose connection closes when a test says so. */

interface Tx { unsafe: (text: string) => Promise<Array<Record<string, unknown>> & { command?: string }> }

interface World {
  database: Database<Tx, string>
  /** What was sent. */
  sent: string[]
  close: Gate
  /** What the library was told of the end of the work. */
  ends: string[]
}

function world (answerToCommit: string, ownCommit?: Error): World {
  const sent: string[] = []
  const ends: string[] = []
  const close = gate()
  const tx: Tx = {
    async unsafe (text) {
      sent.push(text)
      return Object.assign([{ n: '1' }], { command: answerToCommit })
    }
  }
  const database = viaPostgres<Tx>({
    async begin (_options, work) {
      const closed = close.promise.then(() => { throw new Error('CONNECTION_CLOSED') })
      const worked = work(tx).then(
        () => { ends.push('resolved') },
        (error: Error) => {
          ends.push(error.message)
          throw error
        }
      )
      await Promise.race([closed, worked])
      if (ownCommit !== undefined) throw ownCommit
    }
  })
  return { database, sent, close, ends }
}

const OVER = 'fastify-idempotency/sql: the transaction is over: its connection has closed'

t.test('G18: once the connection has closed nothing is sent on it, and the work\'s own end is not told', async t => {
  for (const sends of [true, false]) {
    const { database, sent, close, ends } = world('COMMIT')
    const go = gate()
    let said: string | undefined
    const transaction = database.transaction(async tx => {
      await go.promise
      // It sends one more, or returns, after which COMMIT would be sent.
      if (sends) said = await database.query(tx, 'select 1', []).then(() => 'sent', (error: Error) => error.message)
    })
    close.open()
    await t.rejects(transaction, { message: 'CONNECTION_CLOSED' })
    go.open()
    // The end of the work, and the moment after it.
    for (let turns = 0; turns < 5; turns++) await turn()
    t.equal(said, sends ? OVER : undefined)
    t.same(sent, [])
    t.same(ends, [], 'a ROLLBACK on a connection that has closed would end the process')
  }
})

t.test('G18: what the work throws on an open connection is told, to the library too', async t => {
  const { database, sent, ends } = world('COMMIT')
  await t.rejects(database.transaction(async () => { throw new Error('mine') }), { message: 'mine' })
  t.same(ends, ['mine'])
  t.same(sent, [])
})

t.test('G18: the answer to its own COMMIT decides, whatever becomes of the library\'s', async t => {
  const work = async (): Promise<string> => 'done'
  const cut = new Error('the library\'s own COMMIT has failed')
  for (const own of [undefined, cut]) {
    const committed = world('COMMIT', own)
    t.equal(await committed.database.transaction(work), 'done')
    t.same([committed.sent, committed.ends], [['commit and chain'], ['resolved']])
    await t.rejects(world('ROLLBACK', own).database.transaction(work), {
      message: 'The transaction was not committed: ROLLBACK'
    })
  }
})
