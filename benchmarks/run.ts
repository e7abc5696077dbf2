/** `npm run bench`: everything, or the named part. */
import { against } from './against/index.ts'
import { check, TOLERANCE } from './check.ts'
import { describeMachine, machineText } from './machine.ts'
import { pairParts } from './pairs.ts'
import type { Part, Section } from './part.ts'
import { keepAside } from './pin.ts'
import { postgresPart } from './postgres.ts'
import { ratePart } from './rate.ts'
import { redisSide } from './redis-side.ts'
import { stopRedis } from './redis.ts'
import { markdownSection, markdownSummary, markdownTable, writeResults } from './report.ts'
import { scaleParts } from './scale/index.ts'
import { stepsPart } from './steps.ts'
import { allocationPart } from './user/allocation.ts'
import { userPart } from './user/index.ts'

const redisSidePart: Part = { name: 'redis-side', run: async () => await redisSide() }
const parts: Part[] = [...pairParts, userPart, allocationPart, redisSidePart, ratePart, ...scaleParts]
/** Run by their names only: the first needs a PostgreSQL. */
const more: Part[] = [postgresPart, stepsPart]

async function runAll (): Promise<void> {
  const sections: Record<string, Section> = {}
  for (const part of parts) sections[part.name] = await part.run()
  const results = { machine: await describeMachine(), sections }
  console.log(`\n${markdownSummary(results)}${Object.values(sections).map(markdownSection).join('')}`)
  writeResults(results)
  console.log('\nWritten to benchmarks/results.')
}

async function runPart ({ run }: Pick<Part, 'run'>): Promise<void> {
  const section = await run()
  console.log(`${markdownSection(section)}\n${machineText(await describeMachine())}`)
}

async function runCheck (): Promise<void> {
  const { table, fallen } = await check()
  console.log(`\n${markdownTable(table)}`)
  for (const line of fallen) console.error(line)
  if (fallen.length > 0) process.exitCode = 1
  else console.log(`Nothing is worse by more than ${TOLERANCE * 100} %.`)
}

const [name, ref, ...works] = process.argv.slice(2)

function partOf (): Pick<Part, 'run'> | undefined {
  if (name === 'against') return { run: async () => await against('loaded', ref ?? 'HEAD', works) }
  if (name === 'against-fed') return { run: async () => await against('fed', ref ?? 'HEAD', works) }
  if (name === 'redis-side') return { run: async () => await redisSide(ref) }
  return [...parts, ...more].find(each => each.name === name)
}

const part = partOf()
if (name !== undefined && name !== 'check' && part === undefined) {
  console.error(
    `There is no part "${name}". Parts: ${[...parts, ...more].map(each => each.name).join(', ')}; ` +
      '"check" compares with the committed results, "against <git ref>" and "against-fed <git ref>" with another ' +
      'build; without a name, everything runs.'
  )
  process.exit(1)
}
keepAside(process.pid)
try {
  await (part !== undefined ? runPart(part) : name === 'check' ? runCheck() : runAll())
} finally {
  await stopRedis()
}
