/** The ratios as a bar chart, readable on a light and on a dark page. */
import { OURS } from './cases.ts'
import type { Machine } from './machine.ts'
import { signed, type Line } from './summary.ts'

const LABELS = 330
const PLOT = 400
const BAR = 18
const GAP = 18
const TOP = 66
const WIDTH = LABELS + PLOT + 130

const style = `
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
.quiet { fill: #59636e; font-size: 12px }
.strong { font-weight: 600 }
.ours { fill: #0969da }
.peer { fill: #9198a1 }
.anchor { stroke: #1f2328; stroke-width: 1.5; stroke-dasharray: 4 3 }
.grid { stroke: #d1d9e0 }
.spread { stroke: #1f2328; stroke-width: 1.2 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .quiet { fill: #9198a1 }
  .ours { fill: #4493f8 }
  .peer { fill: #656c76 }
  .anchor, .spread { stroke: #f0f6fc }
  .grid { stroke: #3d444d }
}`

const escape = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
const label = (x: number, y: number, text: string, attributes = ''): string =>
  `<text x="${x}" y="${y}" ${attributes}>${escape(text)}</text>`

export function renderChart (lines: Line[], { cpu, cores, node, redis, date, rounds, seconds }: Machine): string {
  const groups = lines.map(({ work, ours, peer }) => ({
    work,
    bars: [ours, peer].flatMap((rated, i) => rated === undefined
      ? []
      : [{
          kind: i === 0 ? 'ours' : 'peer',
          who: rated.pair.subject,
          ratio: rated.result.ratio,
          added: rated.result.case.cpu - rated.result.anchor.cpu
        }])
  })).filter(({ bars }) => bars.length > 0)
  const most = Math.max(1.2, ...groups.flatMap(({ bars }) => bars.map(({ ratio }) => ratio.max)))
  const x = (ratio: number): number => Math.round((LABELS + ratio / most * PLOT) * 10) / 10

  let y = TOP
  const body: string[] = []
  for (const { work, bars } of groups) {
    const [what = '', anchor = ''] = work.split(' / ')
    const height = Math.max(bars.length, 2) * BAR
    body.push(
      label(LABELS - 12, y + 13, what, 'text-anchor="end"'),
      label(LABELS - 12, y + 30, `of ${anchor}`, 'class="quiet" text-anchor="end"')
    )
    const above = y + (height - bars.length * BAR) / 2
    for (const [i, { kind, who, ratio, added }] of bars.entries()) {
      const top = above + i * BAR
      const width = Math.round((x(ratio.median) - LABELS) * 10) / 10
      const title = `${who}: ${ratio.median.toFixed(2)} (${ratio.min.toFixed(2)} to ${ratio.max.toFixed(2)})`
      body.push(
        `<rect class="${kind}" x="${LABELS}" y="${top}" width="${width}" height="${BAR - 3}">` +
          `<title>${escape(title)}</title></rect>`,
        `<line class="spread" x1="${x(ratio.min)}" x2="${x(ratio.max)}" y1="${top + 7.5}" y2="${top + 7.5}"/>`,
        label(
          WIDTH - 12,
          top + 12,
          `${ratio.median.toFixed(2)}  ${signed(added)} µs`,
          `text-anchor="end" ${kind === 'ours' ? 'class="strong"' : 'class="quiet"'}`
        )
      )
    }
    y += height + GAP
  }
  const bottom = y - GAP + 6
  const grid = Array.from({ length: Math.floor(most / 0.5) + 1 }, (_, i) => i * 0.5).map(value =>
    `<line class="${value === 1 ? 'anchor' : 'grid'}" ` +
    `x1="${x(value)}" x2="${x(value)}" y1="${TOP - 8}" y2="${bottom}"/>` +
    label(x(value), bottom + 16, value === 1 ? '1.0 = anchor' : value.toFixed(1), 'class="quiet" text-anchor="middle"'))
  const peers = [
    ...new Set(groups.flatMap(({ bars }) => bars.filter(({ kind }) => kind === 'peer').map(({ who }) => who)))
  ]
  const ratios = (bars: typeof groups[number]['bars']): string =>
    bars.map(({ who, ratio }) => `${who} ${ratio.median.toFixed(2)}`).join(', ')
  const description = groups.map(({ work, bars }) => `${work}: ${ratios(bars)}`).join('; ')
  const height = bottom + 66
  const method = `Bars: medians of ${rounds} interleaved rounds of ${seconds} s. ` +
    "Thin lines: the lowest to the highest round. µs: CPU time of a request beside its anchor's."
  const size = `viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}"`
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} role="img" aria-labelledby="title desc">
<title id="title">Requests per second at full load, as a ratio to the anchor of each piece of work</title>
<desc id="desc">${escape(description)}</desc>
<style>${style}
</style>
${label(12, 24, 'Requests per second at full load, as a ratio to the anchor', 'class="strong"')}
<rect class="ours" x="12" y="37" width="12" height="12"/>${label(30, 48, OURS)}
<rect class="peer" x="170" y="37" width="12" height="12"/>${label(188, 48, `best Node peer (${peers.join(', ')})`)}
${[...grid, ...body].join('\n')}
${label(12, bottom + 40, `${cpu}, ${cores} cores; Node.js ${node}; ${redis}; ${date}`, 'class="quiet"')}
${label(12, bottom + 57, method, 'class="quiet"')}
</svg>
`
}
