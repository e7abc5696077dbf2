/** Measures the ratios again and compares them with those of the last whole run. */
import { guarded, runPairs } from './pairs.ts'
import type { Table } from './part.ts'
import { readResults } from './report.ts'
import { pairResults } from './summary.ts'

export const TOLERANCE = 0.15

/** A table of the ratios, and a line for each that fell too far. */
export async function check (): Promise<{ table: Table, fallen: string[] }> {
  const committed = readResults()
  if (committed === undefined) throw new Error('There are no results to compare with: run the whole suite first (npm run bench).')
  const known = pairResults(committed.sections)
  const fallen: string[] = []
  const rows = (await runPairs(guarded)).flatMap((result, i) => {
    const before = known.find(({ id }) => id === result.id)
    const { work = '' } = guarded[i] ?? {}
    if (before === undefined || 'reason' in result) return [[work, 'not in the results', '', '']]
    const change = result.ratio.median / before.ratio.median - 1
    if (change < -TOLERANCE) fallen.push(`${work}: fell by ${Math.round(-change * 100)} %, from ${before.ratio.median.toFixed(2)} to ${result.ratio.median.toFixed(2)}`)
    return [[work, before.ratio.median.toFixed(2), result.ratio.median.toFixed(2), `${change < 0 ? '' : '+'}${Math.round(change * 100)} %`]]
  })
  return { table: { columns: ['work / anchor', 'committed ratio', 'now', 'change'], rows }, fallen }
}
