import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { redisServer, stopRedis } from '../fixtures/app.ts'

t.teardown(stopRedis)

const root = fileURLToPath(new URL('../..', import.meta.url))
/** The test runner's own variables would get into what is started. */
const { PATH = '', HOME = '' } = process.env
const env = { PATH, HOME }
// As `prestart` does, with a compiler that the test runner's loaders do not get in the way of.
execFileSync(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.examples.json'], { cwd: root, env })

interface Ended { code: number | null, out: string, err: string }

/** The example API with these variables; `onReady` is called with what it prints when it listens. */
async function serve (variables: Record<string, string>, onReady?: (pid: number) => void): Promise<Ended> {
  const child = spawn(process.execPath, ['.build/examples/server.js'], {
    cwd: root, env: { ...env, ...variables }, stdio: ['ignore', 'pipe', 'pipe']
  })
  const err = text(child.stderr)
  const exited = once(child, 'exit') as Promise<[number | null]>
  let out = ''
  child.stdout.on('data', chunk => {
    const first = out === ''
    out += String(chunk)
    if (first) onReady?.(child.pid as number)
  })
  const [code] = await exited
  return { code, out, err: await err }
}

t.test('npm start says in one line what to do where the port is taken', async t => {
  const taken = createServer().listen(0, '127.0.0.1')
  await once(taken, 'listening')
  const { port } = taken.address() as AddressInfo
  const { code, out, err } = await serve({ PORT: String(port) })
  t.same([code, out, err], [
    1, '', `Port ${port} is taken: end what listens there, or choose another one: PORT=3001 npm start\n`
  ])
  taken.close()
})

t.test('npm start says in one line what to do where PORT is no port', async t => {
  for (const PORT of ['http', '70000', '-1', '']) {
    const { code, out, err } = await serve({ PORT })
    t.same([code, out, err], [
      1, '', `PORT is '${PORT}', which is no port: give a number up to 65535, such as PORT=3001 npm start\n`
    ])
  }
})

t.test('npm start says in one line what to do where Redis cannot be reached', async t => {
  const closed = createServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  const { port } = closed.address() as AddressInfo
  closed.close()
  await once(closed, 'close')
  for (const REDIS_URL of [`redis://127.0.0.1:${port}`, '/no/such/socket']) {
    const { code, out, err } = await serve({ PORT: '0', REDIS_URL })
    t.same([code, out], [1, ''])
    t.match(err, /^The Redis of REDIS_URL cannot be reached \(connect E[A-Z]+ .*\): start it, or leave REDIS_URL out /)
    t.match(err, / REDIS_URL out for the in-process store\n$/)
  }
})

t.test('npm start says in one line what DATABASE_URL needs', async t => {
  const DATABASE_URL = 'postgres://127.0.0.1:1/none'
  const missing = await serve({ PORT: '0', DATABASE_URL })
  t.same([missing.code, missing.out], [1, ''])
  // The package is the application's own; here it is installed or not.
  t.match(
    missing.err,
    /^(DATABASE_URL needs the package pg: npm install --no-save pg|The PostgreSQL of DATABASE_URL cannot be used .*)\n$/
  )
  const both = await serve({ PORT: '0', DATABASE_URL, REDIS_URL: 'redis://127.0.0.1:1' })
  t.same([both.code, both.err], [1, 'REDIS_URL and DATABASE_URL are both set: keys live in one of them\n'])
})

t.test('npm start ends on SIGTERM, with Redis and without', async t => {
  const { url } = await redisServer()
  for (const [variables, store] of [[{}, 'the in-process store'], [{ REDIS_URL: url }, 'Redis']] as const) {
    const { code, out, err } = await serve({ PORT: '0', ...variables }, pid => { process.kill(pid, 'SIGTERM') })
    t.same([code, err], [0, ''])
    t.match(out, `with ${store}.`)
  }
})

t.test('npm start itself ends on SIGTERM with its child processes, those of the playground too', async t => {
  const { PATH = '', HOME = '' } = process.env
  // Compiled above: without `prestart`.
  const npm = spawn('npm', ['start', '--ignore-scripts'], {
    cwd: root, env: { PATH, HOME, PORT: '0' }, stdio: ['ignore', 'pipe', 'pipe']
  })
  let out = ''
  let url: string | undefined
  for await (const chunk of npm.stdout) {
    out += String(chunk)
    url ??= /listens on (http\S+),/.exec(out)?.[1]
    if (url !== undefined && !npm.killed) {
      const events = await fetch(`${url}/playground/events`)
      for await (const event of events.body as unknown as AsyncIterable<Uint8Array>) {
        if (Buffer.from(event).includes('event: ready')) break
      }
      npm.kill('SIGTERM')
    }
  }
  // Its output has ended: no process is left that holds the other end.
  await t.rejects(async () => await fetch(String(url)), 'nobody listens')
})
