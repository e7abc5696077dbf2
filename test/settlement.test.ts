import { readFileSync } from 'node:fs'
import t from 'tap'
import { whenOver, whenReplying, type OverFacts, type ReplyFacts } from '../lib/protocol/settlement.ts'

/** The tables are read from the comments, so that what is documented is what is tested. */
const source = readFileSync(new URL('../lib/protocol/settlement.ts', import.meta.url), 'utf8')

type Fact = string | boolean
type Facts = Record<string, Fact>
interface Row { cells: Array<[name: string, fits: Fact[]]>, decision: string, line: string }

const ADMISSIONS = ['pending', 'admitted', 'refused']
const BOOLEANS = [false, true]
const REPLY: Record<keyof ReplyFacts, Fact[]> = {
  answeredFor: BOOLEANS, cacheable: BOOLEANS, admission: ADMISSIONS, bodyWhole: BOOLEANS, started: BOOLEANS
}
const OVER: Record<keyof OverFacts, Fact[]> = {
  handler: ['none', 'callback', 'promise', 'delegated', 'silent', 'empty', 'ended'],
  answeredFor: BOOLEANS,
  replied: BOOLEANS,
  sent: BOOLEANS,
  finished: BOOLEANS,
  admission: ADMISSIONS,
  bodyWhole: BOOLEANS
}

/** The rows of the table in the comment before the function. */
function tableOf (name: string): Row[] {
  const comment = source.slice(0, source.indexOf(`export function ${name} `))
  const lines = comment.slice(comment.lastIndexOf('/**')).split('\n').filter(line => line.startsWith(' * |'))
  const [names = [], , ...rows] = lines.map(line => line.split('|').slice(1, -1).map(cell => cell.trim()))
  return rows.map(cells => ({
    line: cells.join(' | '),
    decision: cells.at(-1) ?? '',
    cells: names.slice(0, -1).map(
      (name, index) => [name, (cells[index] as string).split(', ').filter(Boolean).map(read)]
    )
  }))
}

function read (cell: string): Fact {
  return cell === 'yes' || cell === 'no' ? cell === 'yes' : cell
}

function combinations (values: Record<string, Fact[]>): Facts[] {
  return Object.entries(values).reduce<Facts[]>(
    (all, [name, facts]) => all.flatMap(one => facts.map(fact => ({ ...one, [name]: fact }))), [{}])
}

function decides ({ cells }: Row, facts: Facts): boolean {
  return cells.every(([name, fits]) => fits.length === 0 || fits.includes(facts[name] as Fact))
}

const DECISIONS: Array<[name: string, values: Record<string, Fact[]>, decide: (facts: Facts) => string]> = [
  ['whenReplying', REPLY, facts => whenReplying(facts as unknown as ReplyFacts)],
  ['whenOver', OVER, facts => whenOver(facts as unknown as OverFacts)]
]

for (const [name, values, decide] of DECISIONS) {
  t.test(`G6: ${name} decides as its table says, for every combination of the facts`, async t => {
    const rows = tableOf(name)
    t.same(rows[0]?.cells.map(([name]) => name), Object.keys(values), 'the columns are the facts')
    for (const { cells } of rows) {
      for (const [name, fits] of cells) t.ok(fits.every(fact => values[name]?.includes(fact)), `cells of ${name}`)
    }
    const used = new Set<Row>()
    for (const facts of combinations(values)) {
      const row = rows.find(row => decides(row, facts))
      if (row === undefined) {
        t.fail(`no row fits ${JSON.stringify(facts)}`)
        continue
      }
      used.add(row)
      if (decide(facts) !== row.decision) t.fail(`${JSON.stringify(facts)} is ${decide(facts)}, not ${row.decision}`)
    }
    t.same(rows.filter(row => !used.has(row)).map(({ line }) => line), [], 'every row decides something')
  })
}
