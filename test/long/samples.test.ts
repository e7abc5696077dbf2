import { execFile } from 'node:child_process'
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'

/** The TypeScript on the pages compiles, as a user's own would: each block is a module of its own. */

const root = fileURLToPath(new URL('../..', import.meta.url))
/** Where packages resolve, and nothing else looks for code. */
const folder = `${root}test/long/.build/samples-${process.pid}/`
await mkdir(folder, { recursive: true })
t.teardown(async () => { await rm(folder, { recursive: true, force: true }) })

/** What is around a sample: what an earlier one of its page has made, and the reader's own code. */
const PRELUDE = `
  import type * as Fastify from 'fastify'
  import type * as Ioredis from 'ioredis'
  import type Stripe from 'stripe'
  import type {} from '@fastify/postgres'
  import type * as lib from 'fastify-idempotency'
  import type * as sql from 'fastify-idempotency/sql'

  declare global {
    type FastifyRequest = Fastify.FastifyRequest
    type Handler = (request: FastifyRequest, reply: Fastify.FastifyReply) => Promise<unknown>
    const app: Fastify.FastifyInstance
    const idempotency: typeof lib.default
    const MemoryStore: typeof lib.MemoryStore
    const MyStore: new () => lib.IdempotencyStore
    const Redis: typeof Ioredis.Redis
    const step: FastifyRequest['idempotency']['step']
    const transaction: ReturnType<typeof sql.transactions>
    const stripe: Stripe

    const search: Handler
    const payout: Handler
    const remove: Handler
    const receive: Handler
    const order: Handler
    const authentication: Fastify.FastifyPluginAsync
    const routes: Fastify.FastifyPluginAsync
    const pay: (operation: unknown) => Promise<{ id: string }>
    const charge: () => Promise<{ id: string }>
    const pick: (body: unknown) => unknown
    const chargeOf: (body: unknown) => Stripe.ChargeCreateParams
    const intentOf: (body: unknown) => Stripe.PaymentIntentCreateParams
    const receipt: (charge: string) => string
    const receiptFor: (charge: string) => string
    const mailer: { send: (mail: string, options?: { messageId: string }) => Promise<void> }
    const supplier: {
      order: (order: { reference: string }) => Promise<{ id: string }>
      findByReference: (reference: string) => Promise<{ id: string } | undefined>
    }
  }
  declare module 'fastify' {
    interface FastifyRequest { user: { id: number, accountId: string } }
  }
`

interface Block { page: string, line: number, info: string, code: string }

async function blocksOf (page: string): Promise<Block[]> {
  const text = await readFile(root + page, 'utf8')
  return Array.from(text.matchAll(/^```ts([^\n]*)\n(.*?)^```$/gms), ({ index, 1: info = '', 2: code = '' }) => (
    { page, line: text.slice(0, index).split('\n').length, info: info.trim(), code }
  ))
}

const names = (await readdir(`${root}docs`)).filter(name => name.endsWith('.md'))
const pages = ['README.md', ...names.map(name => `docs/${name}`)]
const blocks = (await Promise.all(pages.map(blocksOf))).flat()
const fileOf = ({ page, line }: Block): string => `${page.replace(/\W/g, '-')}-${line}.ts`

t.test('every sample of the README and the docs compiles', async t => {
  const whole = blocks.filter(({ info }) => info === '')
  t.ok(whole.length > 20)
  await writeFile(`${folder}prelude.ts`, PRELUDE)
  for (const block of whole) {
    // The compiler's lines are the page's.
    await writeFile(folder + fileOf(block), `${'\n'.repeat(block.line)}${block.code}export {}\n`)
  }
  const from = (path: string): string[] => [`../../../../${path}`]
  await writeFile(`${folder}tsconfig.json`, JSON.stringify({
    extends: from('tsconfig.json')[0],
    compilerOptions: {
      rootDir: '../../../..',
      noUnusedLocals: false,
      noUnusedParameters: false,
      paths: {
        'fastify-idempotency': from('lib/index.ts'),
        'fastify-idempotency/*': from('lib/*.ts'),
        // What is installed for some tests only.
        redis: from('test/neighbours/node_modules/redis/dist/index.d.ts'),
        pg: from('test/sql/node_modules/@types/pg/index.d.mts'),
        '@fastify/postgres': from('test/sql/node_modules/@fastify/postgres/index.d.ts')
      }
    },
    include: [],
    files: ['prelude.ts', ...whole.map(fileOf)]
  }))
  const tsc = [`${root}node_modules/typescript-7/bin/tsc`, '-p', folder, '--pretty', 'false']
  // Without tap's options for node, which this tsc does not bear.
  const plain = ['-u', 'NODE_OPTIONS', process.execPath]
  const output = await promisify(execFile)('env', [...plain, ...tsc], { cwd: folder }).then(
    ({ stdout }) => stdout, ({ stdout, stderr }: { stdout: string, stderr: string }) => stdout + stderr
  )
  const complaints = whole.reduce((text, block) => text.replaceAll(`${fileOf(block)}(`, `${block.page}(`), output)
  t.equal(complaints, '')
})

t.test('only lines that are compared with a file which compiles are shown without what is around them', async t => {
  t.same(blocks.filter(({ info }) => info !== '').map(({ page, info }) => `${page}: ${info}`), [
    // By clients.test.ts.
    ...Array(5).fill('docs/clients.md: excerpt')
  ])
})
