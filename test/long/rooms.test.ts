import { readdirSync } from 'node:fs'
import { ESLint } from 'eslint'
import t from 'tap'

const root = new URL('../..', import.meta.url)
const eslint = new ESLint({ cwd: root.pathname })

async function messagesOf (file: string, code: string): Promise<string[]> {
  const [result] = await eslint.lintText(code, { filePath: `lib/${file}` })
  return (result?.messages ?? []).filter(({ ruleId }) => ruleId?.startsWith('import-x/')).map(({ message }) => message)
}

t.test('lint knows every folder of lib, and every file beside them', async t => {
  const { rules } = await eslint.calculateConfigForFile('lib/index.ts') as {
    rules: Record<string, [level: number, { zones: Array<{ target: string[] }> }]>
  }
  const targets = rules['import-x/no-restricted-paths']?.[1].zones.flatMap(({ target }) => target)
  const names = readdirSync(new URL('lib', root)).filter(name => name !== 'index.ts')
  t.same(names.filter(name => targets?.includes(`./lib/${name}`) !== true), [])
})

const WRONG: Array<[file: string, code: string, why: RegExp]> = [
  ['util/hash.ts', "import '../stores/contract.ts'", /lib\/util may import nothing of lib/],
  ['stores/record.ts', "import '../protocol/verdict.ts'", /lib\/stores may import util/],
  ['protocol/verdict.ts', "import '../stores/record.ts'", /lib\/protocol may import stores\/contract\.ts, util/],
  [
    'protocol/verdict.ts', "import type { Lease } from '../lease/lease.ts'\nexport type It = Lease",
    /lib\/protocol may import/
  ],
  ['lease/lease.ts', "import '../lifecycle/exchange.ts'", /lib\/lease may import/],
  ['request/body.ts', "import '../util/hash.ts'", /lib\/request may import nothing of lib/],
  ['lifecycle/claim.ts', "import '../index.ts'", /lib\/lifecycle may import/],
  ['openapi.ts', "import './lifecycle/view.ts'", /lib\/openapi may import config, protocol/]
]

for (const [file, code, why] of WRONG) {
  t.test(`lint refuses ${code.split('\n')[0] ?? ''} in lib/${file}`, async t => {
    t.match((await messagesOf(file, `${code}\n`)).join('\n'), why)
  })
}

t.test('lint refuses a cycle of imports, and lets a cycle of types be', async t => {
  t.match(
    await messagesOf('lease/commit.ts', "import { settle } from './settle.ts'\nexport { settle }\n"), [/[Cc]ycle/]
  )
  t.same(await messagesOf('lease/commit.ts', "import type { settle } from './settle.ts'\nexport type { settle }\n"), [])
})
