/** One line per piece of work: ours beside the anchor and the best peer. */
import { cases, isPeer, OURS, work, type Case } from './cases.ts'
import type { Comparison } from './measure.ts'
import { pairParts, ratioText, type PairResults } from './pairs.ts'
import type { Section, Table } from './part.ts'

interface Rated { pair: Case, result: Comparison }
export interface Line { work: string, ours: Rated | undefined, peer: Rated | undefined }

/** The results of all pairs among the sections of a run. */
export function pairResults (sections: Record<string, Section>): Comparison[] {
  return pairParts.flatMap(({ name }) => (sections[name]?.data ?? []) as PairResults)
    .filter((result): result is Comparison => 'ratio' in result)
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

interface Latency { rate: number, rows: Array<{ work: string, subject: string, p50: number, p99: number }> }

/** What a user asks: what the plugin adds to a request, and how it compares. */
export function summaryTable (sections: Record<string, Section>): Table {
  const { rate, rows } = (sections['rate']?.data ?? { rate: 0, rows: [] }) as Latency
  const at = (what: string, subject: string): Latency['rows'][number] | undefined =>
    rows.find(row => row.subject === subject && what.startsWith(row.work))
  const latency = (name: string, which: 'p50' | 'p99'): string => {
    const [what = '', anchor = ''] = name.split(' / ')
    const own = at(what, OURS)?.[which]
    const bare = rows.find(row => row.work === anchor)?.[which]
    return own === undefined || bare === undefined ? '' : `${bare.toFixed(2)} → ${own.toFixed(2)}`
  }
  const chosen = summarize(pairResults(sections)).filter(({ ours }) => ours !== undefined &&
    !COMPARED_WITH_ITSELF.includes(ours.pair.part))
  return {
    columns: [
      'work / anchor',
      'CPU of a request, µs',
      `p50 at ${rate.toLocaleString('en')}/s, ms`,
      'p99, ms',
      'requests/s, anchor = 1.0',
      'best Node peer'
    ],
    rows: chosen.map(({ work: name, ours, peer }) => {
      const { anchor, case: own, ratio } = (ours as Rated).result
      return [
        name,
        `${anchor.cpu.toFixed(0)} → ${own.cpu.toFixed(0)} (**${signed(own.cpu - anchor.cpu)}**)`,
        latency(name, 'p50'),
        latency(name, 'p99'),
        ratioText(ratio),
        peer === undefined ? '' : `${ratioText(peer.result.ratio)} ${peer.pair.subject}`
      ]
    })
  }
}

const COMPARED_WITH_ITSELF: Array<Case['part']> = ['events']

export function signed (value: number): string {
  const whole = Math.round(value)
  return whole === 0 ? '±0' : `${whole < 0 ? '−' : '+'}${Math.abs(whole)}`
}

/** The targets that we set ourselves. */
export function targetTable (results: Comparison[]): Table {
  const control = results.find(({ id }) => id === 'control')
  return {
    columns: ['work / anchor = 1.0', 'to reach', 'measured', 'reached'],
    rows: summarize(results).flatMap(({ work: name, ours }) => {
      const target = ours?.pair.target
      if (ours === undefined || target === undefined) return []
      const wanted = target === 'control' ? 'within the control\'s spread' : `≥ ${target.toFixed(2)}`
      return [[name, wanted, ratioText(ours.result.ratio), met(ours, control)]]
    })
  }
}
