import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { loader } from '../fixtures/loader.ts'
import { MUTANTS, type Mutant } from '../fixtures/mutants.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const folder = `${root}.mutants/`
t.teardown(async () => { await rm(folder, { recursive: true, force: true }) })

/** The file of lib that has `text`, once; a mutant follows what it aims at from file to file. */
async function find (text: string): Promise<{ file: string, source: string }> {
  const names = (await readdir(`${root}lib`, { recursive: true })).filter(name => name.endsWith('.ts'))
  const files = await Promise.all(names.map(async name => ({ file: `lib/${name}`, source: await readFile(`${root}lib/${name}`, 'utf8') })))
  const found = files.flatMap(each => each.source.split(text).slice(1).map(() => each))
  const [only] = found
  if (only === undefined || found.length > 1) throw new Error(`lib must have this once, not ${found.length} times: ${text}`)
  return only
}

/** The output of one test, run on a copy of the project in which the plugin has the fault. */
async function run ({ from, to, caught: [test, name] }: Mutant, number: number): Promise<string> {
  const copy = `${folder}${number}/`
  await mkdir(copy, { recursive: true })
  for (const part of ['lib', 'test', 'docs', 'package.json', 'tsconfig.json']) await cp(root + part, copy + part, { recursive: true })
  const { file, source } = await find(from)
  await writeFile(copy + file, source.replace(from, () => to))
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
  t.test(`mutant: ${mutant.breaks}: caught by ${test}: ${name} …`, { buffered: true }, async t => {
    const output = await run(mutant, i)
    t.match(output, /^ *not ok /m)
    t.notMatch(output, /Cannot find module|does not provide an export/)
  })
}
