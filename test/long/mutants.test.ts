import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { loader } from '../fixtures/loader.ts'
import { MUTANTS, type Mutant } from '../fixtures/mutants.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const folder = `${root}.mutants/`
t.teardown(async () => { await rm(folder, { recursive: true, force: true }) })

/** The output of one test, run on a copy of the project in which the plugin has the fault. */
async function run ({ file, from, to, caught: [test, name] }: Mutant, number: number): Promise<string> {
  const copy = `${folder}${number}/`
  await mkdir(copy, { recursive: true })
  for (const part of ['lib', 'test', 'package.json', 'tsconfig.json']) await cp(root + part, copy + part, { recursive: true })
  const source = await readFile(`${copy}lib/${file}`, 'utf8')
  if (source.split(from).length !== 2) throw new Error(`lib/${file} must have this once: ${from}`)
  await writeFile(`${copy}lib/${file}`, source.replace(from, () => to))
  const { PATH = '', HOME = '' } = process.env
  const env = { PATH, HOME, TS_NODE_TRANSPILE_ONLY: '1', TAP_GREP: `/^${name.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}/`, TAP_TIMEOUT: '10' }
  // With an environment of its own: the copies must not count as covered code.
  const child = spawn('env', ['-i', ...Object.entries(env).map(([name, value]) => `${name}=${value}`),
    process.execPath, ...loader, `test/${test}.test.ts`
  ], { cwd: copy, stdio: ['ignore', 'pipe', 'pipe'], timeout: 90_000, killSignal: 'SIGKILL' })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', chunk => { output += String(chunk) })
  await once(child, 'close')
  return output
}

t.jobs = 2
for (const [i, mutant] of MUTANTS.entries()) {
  const [test, name] = mutant.caught
  t.test(`mutant: ${mutant.what} (${mutant.file}) is caught by ${test}: ${name} …`, { buffered: true }, async t => {
    const output = await run(mutant, i)
    t.match(output, /^ *not ok /m)
    t.notMatch(output, /Cannot find module|does not provide an export/)
  })
}
