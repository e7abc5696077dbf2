import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'
import { loader } from './fixtures/loader.ts'

t.test('G10: an operation whose end fails takes no time-out from the others', async t => {
  const file = fileURLToPath(new URL('fixtures/deadlines.ts', import.meta.url))
  const { stdout } = await promisify(execFile)(process.execPath, [...loader, file])
  t.same(stdout.trim().split('\n'), ['uncaught: whoever hears of it fails', 'second', 'third'])
})
