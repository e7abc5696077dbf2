/** Measures ratios, allocation and Redis' own time again, and compares them with those of the last whole run. */
import type { Comparison } from './measure.ts'
import { guarded, runPairs } from './pairs.ts'
import type { Table } from './part.ts'
import { readResults } from './report.ts'
import { redisCosts, type StepCost } from './redis-side.ts'
import { pairResults } from './summary.ts'
import { allocationPart } from './user/allocation.ts'

export const TOLERANCE = 0.15

/** What is guarded: `change` is the share by which it has become worse, or better where it is below zero. */
interface Guarded { what: string, before: number, now: number, change: number }

/** A table of what is guarded, and a line for each that fell too far. */
export async function check (): Promise<{ table: Table, fallen: string[] }> {
  const committed = readResults()
  if (committed === undefined) {
    throw new Error('There are no results to compare with: run the whole suite first (npm run bench).')
  }
  const { sections } = committed
  const data = <T>(name: string): T[] => (sections[name]?.data ?? []) as T[]
  const found = [
    ...costs(
      'bytes allocated',
      data<{ work: string, median: number }>('allocation'),
      (await allocationPart.run()).data,
      ({ work, median }) => [work, median]
    ),
    ...costs(
      'Redis\' own time', data<StepCost>('redis-side'), (await redisCosts()).costs, ({ step, ratio }) => [step, ratio]
    ),
    ...await ratios(pairResults(sections))
  ]
  return {
    table: {
      columns: ['what', 'committed', 'now', 'change'],
      rows: found.map(({ what, before, now }) => {
        if (Number.isNaN(before)) return [what, 'not in the results', text(now), '']
        return [what, text(before), text(now), `${now < before ? '' : '+'}${Math.round((now / before - 1) * 100)} %`]
      })
    },
    fallen: found.filter(({ change }) => change > TOLERANCE).map(({ what, before, now, change }) =>
      `${what}: worse by ${Math.round(change * 100)} %, from ${text(before)} to ${text(now)}`)
  }
}

function text (value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(2)
}

/** Costs that may not rise; `read` gives the name and the cost. */
function costs<T> (kind: string, known: T[], measured: T[], read: (one: T) => [name: string, cost: number]): Guarded[] {
  const before = new Map(known.map(read))
  return measured.map(read).map(([name, now]) => {
    const was = before.get(name) ?? NaN
    return { what: `${kind}: ${name}`, before: was, now, change: now / was - 1 }
  })
}

async function ratios (known: Comparison[]): Promise<Guarded[]> {
  return (await runPairs(guarded)).flatMap((result, i) => {
    if ('reason' in result) return []
    const before = known.find(({ id }) => id === result.id)?.ratio.median ?? NaN
    const now = result.ratio.median
    return [{ what: guarded[i]?.work ?? '', before, now, change: 1 - now / before }]
  })
}
