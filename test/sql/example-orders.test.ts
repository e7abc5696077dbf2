import t from 'tap'
import { run as runExample } from '../../examples/orders.ts'
import { newDatabase, postgresServer, stopPostgres } from './fixtures/app.ts'

t.teardown(stopPostgres)

// As if the example stood beside the packages.
const load = async (name: string): Promise<unknown> => await import(name)

const LINES = [
  'attempt 1: writes the order', 'the client gets 500', 'the client gets 500',
  'the client gets 201 {"id":1,"attempt":3}', 'orders written: 1'
]

t.test('G18: the example writes one order, on PGlite', async t => {
  const lines: string[] = []
  await runExample(line => { lines.push(line) }, undefined, load)
  t.same(lines, LINES)
})

t.test('G18: the example writes one order, on a server, and another when it is run again', async t => {
  const url = await newDatabase(await postgresServer())
  for (const id of [1, 2]) {
    const lines: string[] = []
    await runExample(line => { lines.push(line) }, url, load)
    t.same(lines, LINES.map(line => line.replace('"id":1', `"id":${id}`)))
  }
})
