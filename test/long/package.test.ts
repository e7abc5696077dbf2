import { readdir, readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import {
  compile, createProject, REPLAYED, replay, RESOLUTIONS, sameByRequire, TYPESCRIPTS
} from '../fixtures/package/consumers.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))
const project = await createProject(root)
t.teardown(project.remove)
const packed = `${project.folder}node_modules/fastify-idempotency/`

t.test('the package has what its users need, and nothing else', async t => {
  const sources = (await readdir(`${root}lib`, { recursive: true })).filter(name => name.endsWith('.ts')).map(
    name => `dist/${name.slice(0, -3)}`
  )
  t.same(project.files, [
    'CHANGELOG.md', 'LICENSE', 'README.md', 'package.json', ...sources.flatMap(name => [`${name}.js`, `${name}.d.ts`])
  ].sort())
})

t.test('the package names no machine and no source map, and declares what it imports', async t => {
  const {
    dependencies, peerDependencies
  } = JSON.parse(await readFile(`${packed}package.json`, 'utf8')) as Record<string, Record<string, string>>
  const declared = Object.keys({ ...dependencies, ...peerDependencies })
  for (const name of project.files) {
    const text = await readFile(packed + name, 'utf8')
    for (const word of [root, `${homedir()}/`, 'file://', 'sourceMappingURL']) {
      t.notOk(text.includes(word), `${name}: ${word}`)
    }
    if (!name.startsWith('dist/')) continue
    const imported = [...text.matchAll(/^(?:import|export) [^\n]*? from '([^.'][^']*)'/gm)].map(([, from = '']) => from)
    t.same(imported.filter(from => !from.startsWith('node:') && !declared.includes(from)), [], name)
  }
})

for (const file of ['esm.mjs', 'cjs.cjs']) {
  t.test(`G1: the packed plugin replays for a consumer in ${file}`, async t => {
    t.same(await replay(project, file), REPLAYED)
  })
}

t.test('every subpath gives the same by import and by require', async t => {
  t.equal(await sameByRequire(project), project.subpaths.map(path => `${path} true\n`).join(''))
})

t.test('the declarations hold for every TypeScript and every way to find modules', async t => {
  for (const resolution of Object.keys(RESOLUTIONS)) {
    const found = await Promise.all(
      TYPESCRIPTS.map(async typescript => `${typescript}: ${await compile(project, root, typescript, resolution)}`)
    )
    t.same(found, TYPESCRIPTS.map(typescript => `${typescript}: `), resolution)
  }
})
