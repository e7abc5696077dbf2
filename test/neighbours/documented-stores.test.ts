import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import t from 'tap'
import ts from 'typescript'
import { RedisStore, type RedisStoreClient, type IdempotencyStore } from '../../lib/index.ts'
import { storeAppTests, storeTests, type StoreTestOptions } from '../../lib/store-tests.ts'
import { startRedis } from '../fixtures/redis.ts'

/** The code of docs/stores.md is run as it stands there. */

const root = fileURLToPath(new URL('../..', import.meta.url))
/** Where nothing else looks for code, and packages resolve. */
const folder = `${root}test/neighbours/.build/documented-${process.pid}/`
await mkdir(folder, { recursive: true })
t.teardown(async () => { await rm(folder, { recursive: true, force: true }) })

const section = await readFile(`${root}docs/stores.md`, 'utf8')
const blocks = Array.from(section.matchAll(/^```ts\n(.*?)^```$/gms), ([, code]) => String(code))

/** The one block that has `mark`, as a file. */
async function write (name: string, mark: string): Promise<{ file: string, code: string }> {
  const [code, ...more] = blocks.filter(block => block.includes(mark))
  if (code === undefined || more.length > 0) throw new Error(`docs/stores.md must have one block with: ${mark}`)
  await writeFile(`${folder}${name}.ts`, code.replaceAll("'fastify-idempotency'", "'../../../../lib/index.ts'"))
  return { file: `${folder}${name}.ts`, code }
}

/** What the compiler says about a file under the project's own settings. */
function complaints (file: string): string[] {
  const { options } = ts.parseJsonConfigFileContent(
    ts.readConfigFile(`${root}tsconfig.json`, ts.sys.readFile).config, ts.sys, root
  )
  const program = ts.createProgram([file], options)
  return ts.getPreEmitDiagnostics(program).map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n'))
}

function runSuite (t: Tap, createStore: StoreTestOptions['createStore']): void {
  const options: StoreTestOptions = { createStore, test: async (name, run) => await t.test(name, run) }
  storeTests(options)
  storeAppTests(options)
}
type Tap = Pick<typeof t, 'test'>

t.test('the documented store of a user\'s own is short, compiles, and passes the suite', async t => {
  const { file, code } = await write('my-store', 'class MyStore')
  t.ok(code.trimEnd().split('\n').length < 100)
  t.same(complaints(file), [])
  const { MyStore } = await import(pathToFileURL(file).href) as { MyStore: new () => IdempotencyStore }
  runSuite(t, () => new MyStore())
})

t.test('the documented adapter for node-redis compiles, and RedisStore passes the suite with it', async t => {
  const { file } = await write('node-redis', 'createClient')
  t.same(complaints(file), [])
  const server = await startRedis()
  process.env['REDIS_URL'] = server.url
  const { client, redis } = await import(pathToFileURL(file).href) as {
    client: { destroy: () => void, sendCommand: (command: string[]) => Promise<unknown> }, redis: RedisStoreClient
  }
  t.teardown(async () => {
    client.destroy()
    await server.stop()
  })
  t.throws(() => new RedisStore(
    client as unknown as RedisStoreClient
  ), /has no method "callBuffer"\. It looks like a client of node-redis/)
  runSuite(t, async () => {
    await client.sendCommand(['FLUSHALL'])
    return new RedisStore(redis)
  })
})
