/** Tables to read and results.json to compare with. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { renderChart } from './chart.ts'
import { machineText, type Machine } from './machine.ts'
import type { Section, Table } from './part.ts'
import { pairResults, summarize, summaryTable, targetTable } from './summary.ts'

export interface Results { machine: Machine, sections: Record<string, Section> }

// From benchmarks/.build/benchmarks, where this runs.
const folder = new URL('../../results/', import.meta.url)

const cell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ')
const line = (cells: string[]): string => `| ${cells.map(cell).join(' | ')} |\n`

export const markdownTable = ({ columns, rows }: Table): string =>
  line(columns) + `|${'---|'.repeat(columns.length)}\n` + rows.map(line).join('')

export const markdownSection = ({ title, notes = [], table }: Section): string =>
  `\n### ${title}\n\n${markdownTable(table)}${notes.map(note => `\n${note}\n`).join('')}`

export const markdownSummary = ({ machine, sections }: Results): string =>
  `${markdownTable(summaryTable(sections))}\n${machineText(machine)}\n`

export function writeResults (results: Results): void {
  mkdirSync(folder, { recursive: true })
  writeFileSync(new URL('results.json', folder), JSON.stringify(results, null, 2) + '\n')
  writeFileSync(new URL('chart.svg', folder), renderChart(summarize(pairResults(results.sections)), results.machine))
  const targets = markdownTable(targetTable(pairResults(results.sections)))
  writeFileSync(
    new URL('tables.md', folder),
    `# Results\n\n${markdownSummary(results)}\n### Targets that we set ourselves\n\n${targets}` +
      Object.values(results.sections).map(markdownSection).join('')
  )
}

/** The results of the last whole run. */
export function readResults (): Results | undefined {
  const file = new URL('results.json', folder)
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) as Results : undefined
}
