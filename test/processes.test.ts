import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import t from 'tap'
import { redisServer, send, stopRedis, until } from './fixtures/app.ts'

t.teardown(stopRedis)

t.test('G1, G3, G5: two processes on one Redis: one execution, the replay from the other, and a takeover after a crash', async t => {
  const { url } = await redisServer()
  const prefix = `${randomUUID()}:`
  const serve = async () => {
    const child = spawn(process.execPath, ['--import', import.meta.resolve('@tapjs/typescript/import'), new URL('fixtures/server.ts', import.meta.url).pathname, url, prefix], { stdio: ['ignore', 'pipe', 'inherit'] })
    t.teardown(() => { child.kill('SIGKILL') })
    const [line] = await once(child.stdout, 'data') as [Buffer]
    return { child, port: Number(String(line)) }
  }
  const [one, two] = await Promise.all([serve(), serve()])
  const post = async (port: number, key: string, body: string, path = '/') => await send(port, { key, body, path })
  const first = await post(one.port, 'k', '{"amount":1}')
  t.equal(first.status, 201)
  const replay = await post(two.port, 'k', '{"amount":1}')
  t.same([replay.status, replay.text, replay.replayed], [201, first.text, true])
  t.equal((await post(two.port, 'k', '{"amount":2}')).json().code, 'idempotency_key_mismatch')
  const all = await Promise.all(Array.from({ length: 40 }, async (_, i) => await post(i % 2 === 0 ? one.port : two.port, 'race', '{}')))
  const won = all.filter(({ status }) => status === 201)
  t.ok(won.length >= 1)
  t.equal(new Set(won.map(({ text }) => text)).size, 1)
  t.ok(all.every(({ status, json }) => status === 201 || json().code === 'idempotency_in_progress'))

  const dying = post(one.port, 'crash', '{}', '/hang').catch((error: Error) => error)
  await until(async () => (await send(two.port, { method: 'GET', path: '/state/crash' })).text === 'held', 'the first execution')
  // More than a lease: the live holder keeps its key.
  await new Promise(resolve => setTimeout(resolve, 500))
  t.equal((await post(two.port, 'crash', '{}', '/hang')).json().code, 'idempotency_in_progress')
  one.child.kill('SIGKILL')
  t.type(await dying, Error)
  let taken = await post(two.port, 'crash', '{}', '/hang')
  await until(async () => (taken = await post(two.port, 'crash', '{}', '/hang')).status === 200, 'the takeover')
  t.same(taken.json(), { attempt: 2, pid: two.child.pid })
})
