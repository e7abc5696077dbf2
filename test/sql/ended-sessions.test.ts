import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import pg from 'pg'
import t from 'tap'
import { MemoryStore } from '../../lib/index.ts'
import { PostgresStore, transactions, viaPg } from '../../lib/sql.ts'
import { startApp } from './fixtures/app.ts'

/** AuthenticationOk, ReadyForQuery, and the word that the session is over: all that the server ever says. */
const SAID = Buffer.concat([
  'R\0\0\0\u0008\0\0\0\0', 'Z\0\0\0\u0005I', error('SFATAL', 'VFATAL', 'C57P01', 'Mterminating connection')
].map(text => Buffer.from(text)))

function error (...fields: string[]): string {
  const text = fields.map(field => `${field}\0`).join('') + '\0'
  return `E\0\0\0${String.fromCharCode(text.length + 4)}${text}`
}

t.test('G18: a session that the server ends as it begins is an error, and ends no process', async t => {
  const server = createServer(socket => {
    socket.on('error', () => {}).once('data', () => socket.end(SAID))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => { server.close() })
  const { port } = server.address() as AddressInfo
  const pool = new pg.Pool({ host: '127.0.0.1', port, user: 'postgres' }).on('error', () => {})
  t.teardown(async () => { await pool.end() })
  const transaction = transactions(viaPg(pool))
  let runs = 0
  const { post } = await startApp(t, { store: new MemoryStore() }, app => {
    app.post('/', async request => await transaction(request, 'x', () => ++runs))
  })
  t.equal((await post('k')).status, 500)
  t.equal((await post(undefined)).status, 500)
  t.equal(runs, 0)
  await t.rejects(new PostgresStore(pool).read('k'))
})
