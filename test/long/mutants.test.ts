import t from 'tap'
import { MUTANTS, type Caught } from '../fixtures/mutants.ts'
import { Copies } from '../fixtures/mutated.ts'
import type { TapOutput } from '../fixtures/tap-output.ts'

/** Seconds that a test is given: plenty for one that ends, and little for a mutant that only a timeout catches. */
const TIMEOUT = 60
const SHORT_TIMEOUT = 5

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

t.jobs = 2
for (const mutant of MUTANTS) {
  const { breaks, caught, hangs } = mutant
  const name = typeof caught === 'string' ? caught : caught.join(' … > ')
  t.test(`mutant: ${breaks}: caught by ${name} …`, { buffered: true }, async t => {
    const { passed, ...failed } = await control(caught)
    t.ok(passed > 0, 'the test asserts something')
    t.same(failed, { assertions: [], timeouts: [], faults: [] }, 'and passes without the fault')

    const { assertions, timeouts, faults } = await copies.runMutated(mutant, hangs === undefined ? TIMEOUT : SHORT_TIMEOUT)
    if (hangs === undefined) t.not(assertions.length, 0, 'an assertion catches it', { timeouts, faults })
    else t.match({ assertions, timeouts }, { assertions: [], timeouts: ['timeout!'] }, `only a timeout catches it: ${hangs}`)
    t.comment(assertions.concat(timeouts).join(' | '))
  })
}
