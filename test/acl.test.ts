import { readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import t from 'tap'
import { start, stopRedis, until } from './fixtures/app.ts'
import { connect, startRedis } from './fixtures/redis.ts'

t.teardown(stopRedis)

/** The commands that the docs name for a Redis user with few rights. */
function documented (): string[] {
  const text = readFileSync(new URL('../docs/guarantees.md', import.meta.url), 'utf8')
  const [line = ''] = /^- An ACL user for Redis needs .*/m.exec(text) ?? []
  const [, commands = ''] = /needs (.*) on the keys/.exec(line) ?? []
  return Array.from(commands.matchAll(/`(\w+)`/g), ([, command]) => command as string)
}

t.test('G10: a Redis user with the commands that the docs name, on the keys of the prefix, is enough', async t => {
  const server = await startRedis()
  const admin = connect(server.port)
  const commands = documented()
  t.ok(commands.includes('evalsha'))
  await admin.acl(
    'SETUSER', 'app', 'on', '>secret', '~mine:*', 'resetchannels', '-@all', ...commands.map(command => `+${command}`)
  )
  const redis = new Redis({ port: server.port, username: 'app', password: 'secret', enableReadyCheck: false })
  t.teardown(async () => {
    redis.disconnect()
    admin.disconnect()
    await server.stop()
  })
  let runs = 0
  const { app, post } = await start(t, 'redis', {
    options: { redis, keyPrefix: 'mine:', lease: 150 },
    routes: app => app.post('/:status', async (request, reply) => {
      const { status } = request.params as { status: string }
      runs++
      if (status === '202') await sleep(400)
      return await reply.code(Number(status)).send('done')
    })
  })
  t.match(await post('k', '{}', { path: '/201' }), { status: 201, replayed: false })
  t.match(await post('k', '{}', { path: '/201' }), { status: 201, replayed: true })
  t.match(await post('f', '{}', { path: '/503' }), { status: 503, text: 'done' })
  t.match(await post('f', '{}', { path: '/503' }), { status: 503, text: 'done' })
  const slow = post('slow', '{}', { path: '/202' })
  await until(async () => (await app.idempotency.inspect({ key: 'slow' }))?.state === 'held', 'the claim')
  t.match(await slow, { status: 202 }, 'with renewals')
  t.match(await post('slow', '{}', { path: '/202' }), { status: 202, replayed: true })
  t.match(await app.idempotency.inspect({ key: 'k' }), { state: 'completed', status: 201 })
  t.equal(await app.idempotency.forget({ key: 'k' }), true)
  t.equal(runs, 4)
  const denied = await admin.acl('LOG') as unknown[]
  t.same(denied, [], 'nothing was refused')
})
