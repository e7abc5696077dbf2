import t from 'tap'
import { HandlerRun, PHASES, type Phase } from '../lib/lifecycle/handler-run.ts'

const ALL = Object.keys(PHASES) as Phase[]

function runIn (phase: Phase): HandlerRun {
  const run = new HandlerRun()
  if (phase !== 'callback') run.to(phase)
  return run
}

for (const from of ALL) {
  t.test(`a handler's run that is ${from} goes where the table says, and ignores what else comes`, async t => {
    for (const to of ALL) {
      const run = runIn(from)
      run.to(to)
      t.equal(run.phase, PHASES[from].includes(to) ? to : from, to)
    }
  })
}

t.test('what has ended stays ended', async t => {
  const ended = ALL.filter(phase => runIn(phase).hasEnded)
  t.same(ended, ['empty', 'ended'])
  t.same(ended, ALL.filter(phase => PHASES[phase].length === 0))
  for (const phase of ended) {
    const run = runIn(phase)
    run.noteReturnedReply()
    run.end(undefined)
    t.equal(run.phase, phase)
  }
})

t.test('G7: a handler that ends is empty, ended, or has given its reply to somebody else', async t => {
  const ends: Array<[value: unknown, returnedReply: boolean, replied: boolean, phase: Phase]> = [
    [undefined, false, false, 'empty'],
    [undefined, false, true, 'empty'],
    [undefined, true, true, 'empty'],
    ['value', false, false, 'ended'],
    ['value', true, true, 'ended'],
    [undefined, true, false, 'delegated'],
    ['value', true, false, 'delegated']
  ]
  for (const from of ['callback', 'promise'] as const) {
    for (const [value, returnedReply, replied, phase] of ends) {
      const run = runIn(from)
      if (returnedReply) run.noteReturnedReply()
      if (replied) run.noteReply()
      run.end(value)
      t.equal(run.phase, phase)
      t.equal(run.delegatedAt > 0, phase === 'delegated')
    }
  }
})
