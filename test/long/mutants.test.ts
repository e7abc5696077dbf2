import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { loader } from '../fixtures/loader.ts'
import { MUTANTS, type Mutant } from '../fixtures/mutants.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const folder = `${root}.mutants/`
t.teardown(async () => { await rm(folder, { recursive: true, force: true }) })

const lib = await sources('lib', '.ts')
const tests = await sources('test', '.test.ts')

/** Texts by their file's path. */
async function sources (where: string, ending: string): Promise<Map<string, string>> {
  const found = new Map<string, string>()
  for (const name of await readdir(root + where, { recursive: true })) {
    if (!name.endsWith(ending) || name.includes('node_modules')) continue
    found.set(`${where}/${name}`, await readFile(`${root}${where}/${name}`, 'utf8'))
  }
  return found
}

/** The one file in which there is what is looked for: mutants follow code and tests from file to file. */
function fileWith (files: Map<string, string>, isIn: (text: string) => boolean, what: string): string {
  const names = [...files].filter(([, text]) => isIn(text)).map(([name]) => name)
  const [name] = names
  if (name === undefined || names.length > 1) {
    throw new Error(
    `${what}: one file must have it, not ${names.join() || 'none'}`
    )
  }
  return name
}

function fileOfCode (code: string): string {
  const name = fileWith(lib, text => text.includes(code), `The code ${code}`)
  if (lib.get(name)?.split(code).length !== 2) throw new Error(`${name} must have this once: ${code}`)
  return name
}

/** Names of tests, each as far as it is written in the source: up to what is put in. */
function namesIn (text: string): string[] {
  const calls = text.matchAll(/\bt\.test\((?:'((?:[^'\\]|\\.)*)'|"([^"]*)"|`([^`$]*))/g)
  return [...calls].map(
    ([, single = '', double = '', template = '']) => (single || double || template).replaceAll('\\', '')
  )
}

function fileOfTest (name: string): string {
  const has = (fits: (written: string) => boolean) => (text: string): boolean => namesIn(text).some(fits)
  const whole = has(written => written.startsWith(name))
  // What is put into a name may come early in it.
  const begun = has(written => written !== '' && name.startsWith(written))
  return fileWith(tests, [...tests.values()].some(whole) ? whole : begun, `A test named "${name} …"`)
}

/** The output of one test, run on a copy of the project in which the plugin has the fault. */
async function run ({ from, to, caught }: Mutant, number: number): Promise<string> {
  const copy = `${folder}${number}/`
  const file = fileOfCode(from)
  await mkdir(copy, { recursive: true })
  for (const part of ['lib', 'test', 'docs', 'package.json', 'tsconfig.json']) {
    const filter = (path: string): boolean => !path.slice(root.length).includes('node_modules')
    await cp(root + part, copy + part, { recursive: true, filter })
  }
  // The libraries that the tests of transactions run against.
  await symlink(`${root}test/sql/node_modules`, `${copy}test/sql/node_modules`)
  await writeFile(copy + file, (lib.get(file) as string).replace(from, () => to))
  const { PATH = '', HOME = '' } = process.env
  const grep = `/^${caught.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}/`
  const env = { PATH, HOME, TS_NODE_TRANSPILE_ONLY: '1', TAP_GREP: grep, TAP_TIMEOUT: '10' }
  // With an environment of its own: the copies must not count as covered code.
  const variables = Object.entries(env).map(([name, value]) => `${name}=${value}`)
  const command = ['-i', ...variables, process.execPath, ...loader, fileOfTest(caught)]
  const options = { cwd: copy, timeout: 90_000, killSignal: 'SIGKILL' } as const
  const child = spawn('env', command, { ...options, stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', chunk => { output += String(chunk) })
  await once(child, 'close')
  return output
}

t.jobs = 2
for (const [i, mutant] of MUTANTS.entries()) {
  t.test(`mutant: ${mutant.breaks}: caught by ${mutant.caught} …`, { buffered: true }, async t => {
    const output = await run(mutant, i)
    t.match(output, /^ *not ok /m)
    t.notMatch(output, /Cannot find module|does not provide an export/)
  })
}
