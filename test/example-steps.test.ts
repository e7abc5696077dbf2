import t from 'tap'
import { run } from '../examples/steps.ts'

t.test('G16: the example with steps charges once, though answers and mails are lost', async t => {
  const lines: string[] = []
  await run(line => { lines.push(line) })
  t.same(lines, [
    'attempt 1: asks the provider', 'the client gets 500',
    'attempt 2: asks the provider', 'the client gets 500',
    'attempt 3: asks the provider', 'attempt 3: sends the mail', 'the client gets 500',
    'attempt 4: sends the mail', 'the client gets 201 {"charge":"charge 1 of 42","attempt":4}',
    'the provider was asked 3 times, and has charged 1 time'
  ])
})
