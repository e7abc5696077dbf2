import { spawnSync } from 'node:child_process'
import t from 'tap'
import { MUTANTS, type Caught } from '../fixtures/mutants.ts'
import { Copies } from '../fixtures/mutated.ts'
import { readTap, type TapOutput } from '../fixtures/tap-output.ts'

/** Seconds that a test is given: plenty for one that ends, and little for a mutant that only a timeout catches. */
const TIMEOUT = 60
const SHORT_TIMEOUT = 10

const copies = await Copies.in('.mutants')
t.teardown(async () => { await copies.remove() })

/** Each test that is to catch something, on the plugin as it is; once. */
const controls = new Map<string, Promise<TapOutput>>()

async function control (caught: Caught): Promise<TapOutput> {
  const name = String(caught)
  let run = controls.get(name)
  if (run === undefined) controls.set(name, run = copies.run(caught, TIMEOUT))
  return await run
}

/** Whether a test, indented as deep as it stands, is the one that is to catch something. */
function isNamed (caught: Caught): (line: string) => boolean {
  const start = typeof caught === 'string' ? caught : `    ${caught[1]}`
  return line => line.startsWith(start)
}

const ENDS: Array<[kind: 'assertions' | 'timeouts' | 'faults', how: string]> = [
  ['assertions', 't.equal(1, 2)'],
  ['assertions', 'assert.equal(1, 2)'],
  ['assertions', "await t.test('inner', async t => { t.ok(false) })"],
  ['timeouts', 'setInterval(() => {}, 1000); await new Promise(() => {})'],
  ['faults', "throw new TypeError('no assertion')"],
  ['faults', "setImmediate(() => { throw new Error('uncaught') }); await new Promise(r => setTimeout(r, 50))"],
  ['faults', 't.plan(2); t.ok(true)'],
  ['faults', "process.kill(process.pid, 'SIGKILL'); await new Promise(() => {})"],
  ['faults', "await import('./none.mjs')"]
]

t.test('a failed assertion is told from a timeout, and from a test that could not do its work', async t => {
  for (const [kind, how] of ENDS) {
    const source = `import t from 'tap'; import assert from 'node:assert'; t.test('name', async t => { ${how} })`
    const env = { PATH: process.env['PATH'], TAP_TIMEOUT: '2' }
    const { stdout, status, signal } = spawnSync(process.execPath, ['--input-type=module', '-e', source], { env })
    const found = readTap(String(stdout), signal ?? `exit ${String(status)}`)
    t.not(found[kind].length, 0, `${kind}: ${how}`)
    if (kind !== 'assertions') t.same(found.assertions, [], how)
    t.same(found.passed, [], how)
  }
})

t.jobs = 2
for (const mutant of MUTANTS) {
  const { breaks, caught, hangs } = mutant
  const name = typeof caught === 'string' ? caught : caught.join(' … > ')
  t.test(`mutant: ${breaks}: caught by ${name} …`, { buffered: true }, async t => {
    const { passed, ...failed } = await control(caught)
    t.ok(passed.some(isNamed(caught)), 'the test runs')
    t.same(failed, { assertions: [], timeouts: [], faults: [] }, 'and passes without the fault')

    const { assertions, timeouts, faults } = await copies.runMutated(
      mutant, hangs === undefined ? TIMEOUT : SHORT_TIMEOUT
    )
    t.comment(assertions.concat(timeouts).join(' | '))
    if (hangs === undefined) return t.not(assertions.length, 0, 'an assertion catches it', { timeouts, faults })
    t.same(assertions, [], 'no assertion catches it')
    t.not(timeouts.length, 0, `a timeout does: ${hangs}`, { faults })
  })
}
