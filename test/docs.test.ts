import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import ts from 'typescript'
import { documentedOptions } from './fixtures/options-page.ts'

/** The docs have a heading for each option, error code and export, and options their types; no link leads nowhere. */

const root = fileURLToPath(new URL('..', import.meta.url))
const pages = ['README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', 'benchmarks/README.md',
  ...readdirSync(`${root}docs`).filter(name => name.endsWith('.md')).map(name => `docs/${name}`)]
const textOf = (page: string): string => readFileSync(root + page, 'utf8')

/** Headings outside of code, as they are written. */
function headings (page: string): string[] {
  const prose = textOf(page).replace(/^```.*?^```$/gms, '')
  return [...prose.matchAll(/^#+ (.+)$/gm)].map(([, heading]) => String(heading))
}

/** The anchors that a page has: its headings' as GitHub makes them, and its own. */
function anchors (page: string): Set<string> {
  const slugs = headings(page).map(
    heading => heading.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-')
  )
  const own = [...textOf(page).matchAll(/<a id="([^"]+)"/g)].map(([, id]) => String(id))
  return new Set([...slugs, ...own])
}

function linksOf (page: string): string[] {
  const prose = textOf(page).replace(/^```.*?^```$/gms, '')
  const links = [...prose.matchAll(/\]\(([^)\s]+)\)|(?:src|srcset)="([^"]+)"/g)].map(
    ([, link, source]) => String(link ?? source)
  )
  return links.filter(link => !/^[a-z]+:/.test(link))
}

t.test('no link leads nowhere', async t => {
  for (const page of pages) {
    for (const link of linksOf(page)) {
      const [path = '', anchor] = link.split('#')
      const target = path === '' ? page : relative(root, join(root, dirname(page), path))
      t.doesNotThrow(() => readdirSync(join(root, dirname(target))), `${page}: ${link}`)
      if (anchor === undefined) {
        t.doesNotThrow(() => ts.sys.directoryExists(join(root, target)) || textOf(target), `${page}: ${link}`)
      } else t.ok(anchors(target).has(anchor), `${page}: ${link}`)
    }
  }
})

t.test('every page is linked from the README', async t => {
  const linked = new Set(linksOf('README.md').map(link => link.split('#')[0]))
  for (const page of pages.filter(name => name.startsWith('docs/'))) t.ok(linked.has(page), page)
})

t.test('the README is one page', async t => {
  const words = textOf('README.md').split(/\s+/).filter(Boolean).length
  t.ok(words >= 900 && words <= 1_400, `${words} words`)
})

interface Measured {
  id: string
  ratio: { median: number, min: number }
  anchor: { cpu: number }
  case: { cpu: number }
}

t.test('what the README says of speed is what has been measured', async t => {
  const { sections } = JSON.parse(textOf('benchmarks/results/results.json')) as {
    sections: Record<string, { data: Measured[] }>
  }
  const data = ['none', 'replay', 'first'].flatMap(name => sections[name]?.data ?? [])
  const of = (id: string): Measured => data.find(measured => measured.id === id) as Measured
  const [, replay, handler, first] = /\((\d+) µs beside (\d+) µs\)\. .* adds (\d+) µs/s.exec(textOf('README.md')) ?? []
  t.equal(replay, of('replay').case.cpu.toFixed())
  t.equal(handler, of('replay').anchor.cpu.toFixed())
  t.equal(first, (of('first').case.cpu - of('first').anchor.cpu).toFixed())
  // Noise: what the bare route differs from itself by.
  for (const id of ['opted-out', 'no-key', 'replay-redis', 'first-redis']) {
    t.ok(of(id).ratio.median >= of('control').ratio.min, id)
  }
})

const { options } = ts.parseJsonConfigFileContent(
  ts.readConfigFile(`${root}tsconfig.json`, ts.sys.readFile).config, ts.sys, root
)
/** A file that is there for the compiler alone; a line of it compiles where the page has the type of an option. */
const typesPage = `${root}test/fixtures/types/options-page.ts`
const documented = documentedOptions()
const claims = `
  import type { FastifyRequest } from 'fastify'
  import type {
    FastifyIdempotencyOptions as Options, IdempotencyError, IdempotencyErrorCode, IdempotencyStore, RedisStoreClient
  } from '../../../lib/index.ts'
  import { is, type Equal } from './expect.ts'
  type Duration = number | string
  ${documented.map(({ name, type }) => `is<Equal<Exclude<Options['${name}'], undefined>, ${type}>>()`).join('\n')}
`
const host = ts.createCompilerHost(options)
const fromDisk = { ...host }
host.fileExists = name => name === typesPage || fromDisk.fileExists(name)
host.readFile = name => name === typesPage ? claims : fromDisk.readFile(name)
host.getSourceFile = (name, version, ...rest) => name === typesPage
  ? ts.createSourceFile(name, claims, version)
  : fromDisk.getSourceFile(name, version, ...rest)

/** The names that an interface, a type of texts or a module has, as the compiler sees them. */
const program = ts.createProgram([
  `${root}lib/index.ts`, `${root}lib/openapi.ts`, `${root}lib/sql.ts`, `${root}lib/store-tests.ts`, typesPage
], options, host)
const checker = program.getTypeChecker()

function exportsOf (file: string): ts.Symbol[] {
  const module = checker.getSymbolAtLocation(program.getSourceFile(root + file) as ts.SourceFile) as ts.Symbol
  return checker.getExportsOfModule(module)
}

function typeOf (name: string): ts.Type {
  const symbol = exportsOf('lib/index.ts').find(symbol => symbol.name === name) as ts.Symbol
  return checker.getDeclaredTypeOfSymbol(symbol)
}

t.test('every option has its heading, with its type', async t => {
  const names = typeOf('FastifyIdempotencyOptions').getProperties().map(({ name }) => name)
  t.ok(names.length > 20)
  t.same(documented.map(({ name }) => name).sort(), names.sort())
  const file = program.getSourceFile(typesPage) as ts.SourceFile
  const complaints = [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)]
  t.same(complaints.map(({ start = 0, messageText }) => [
    claims.slice(claims.lastIndexOf('\n', start) + 1, claims.indexOf('\n', start)).trim(),
    ts.flattenDiagnosticMessageText(messageText, '\n')
  ]), [])
})

t.test('every error code has its heading, and an anchor that keeps its underscores', async t => {
  const codes = (typeOf('IdempotencyErrorCode') as ts.UnionType).types.map(
    type => String((type as ts.StringLiteralType).value)
  )
  t.ok(codes.length >= 7)
  for (const code of codes) {
    t.ok(headings('docs/errors.md').includes(code), code)
    t.ok(textOf('docs/errors.md').includes(`<a id="${code}"></a>`), code)
  }
})

t.test('every export is on the page of the API', async t => {
  const text = headings('docs/api.md').join('\n') + textOf('docs/api.md')
  for (const file of ['lib/index.ts', 'lib/openapi.ts', 'lib/sql.ts', 'lib/store-tests.ts']) {
    for (const { name } of exportsOf(file).filter(({ name }) => name !== 'default')) {
      t.ok(text.includes(name), `${file}: ${name}`)
    }
  }
})
