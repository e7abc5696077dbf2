import { suiteOf, type StoreTestOptions } from './store-tests/kit.ts'
import { outageTests } from './store-tests/outage.ts'
import { outcomeTests } from './store-tests/outcomes.ts'
import { raceTests } from './store-tests/races.ts'
import { recordingTests } from './store-tests/recording.ts'
import { stepTests } from './store-tests/steps.ts'
import { timeTests } from './store-tests/times.ts'
import { watchTests } from './store-tests/watching.ts'

/** Runs a store through the whole store contract; each test names what it proves. */
export function storeTests (options: StoreTestOptions): void {
  const suite = suiteOf(options)
  stepTests(suite)
  outcomeTests(suite)
  timeTests(suite)
  raceTests(suite)
  recordingTests(suite)
  watchTests(suite)
  outageTests(suite)
}

export { storeAppTests } from './store-tests/app.ts'
export type { Outage, StoreTestOptions } from './store-tests/kit.ts'
