/** One line per piece of work: ours beside the anchor and the best peer. */
import { cases, isPeer, OURS, work, type Case } from './cases.ts'
import type { Comparison } from './measure.ts'
import { pairParts, ratioText, type PairResults } from './pairs.ts'
import type { Section, Table } from './part.ts'

interface Rated { pair: Case, result: Comparison }
export interface Line { work: string, ours: Rated | undefined, peer: Rated | undefined }

/** The results of all pairs among the sections of a run. */
export function pairResults (sections: Record<string, Section>): Comparison[] {
  return pairParts.flatMap(({ name }) => (sections[name]?.data ?? []) as PairResults).filter((result): result is Comparison => 'ratio' in result)
}

export function summarize (results: Comparison[]): Line[] {
  return Object.values(work).map(each => {
    const rated = cases.filter(pair => pair.work === each).flatMap((pair): Rated[] => {
      const result = results.find(({ id }) => id === pair.id)
      return result === undefined ? [] : [{ pair, result }]
    })
    const peers = rated.filter(({ pair }) => isPeer(pair)).sort((a, b) => b.result.ratio.median - a.result.ratio.median)
    return { work: each, ours: rated.find(({ pair }) => pair.subject === OURS), peer: peers[0] }
  })
}

function met ({ pair: { target }, result: { ratio } }: Rated, control: Comparison | undefined): string {
  if (target === undefined) return ''
  if (target !== 'control') return ratio.median >= target ? 'yes' : 'no'
  if (control === undefined) return ''
  return ratio.median >= control.ratio.min && ratio.median <= control.ratio.max ? 'yes' : 'no'
}

export function summaryTable (results: Comparison[]): Table {
  const control = results.find(({ id }) => id === 'control')
  const target = (rated: Rated | undefined): string => {
    const value = rated?.pair.target
    return value === undefined ? '' : value === 'control' ? 'within the control\'s spread' : `≥ ${value.toFixed(2)}`
  }
  return {
    columns: ['work / anchor = 1.0', OURS, 'best Node peer', 'to reach', 'reached'],
    rows: [
      ...(control === undefined ? [] : [[work.control, ratioText(control.ratio), '', '', '']]),
      ...summarize(results).filter(({ ours, peer }) => ours !== undefined || peer !== undefined).map(({ work: name, ours, peer }) => [
        name,
        ours === undefined ? '' : ratioText(ours.result.ratio),
        peer === undefined ? '' : `${ratioText(peer.result.ratio)} ${peer.pair.subject}`,
        target(ours),
        ours === undefined ? '' : met(ours, control)
      ])
    ]
  }
}
