/**
 * A server that is fed from memory when it is told to: `fed-server.js <app> <port of Redis> <keys> <path>`. To a
 * number of requests it answers with the CPU time of one in µs.
 */
import { apps, type AppName } from '../apps/index.ts'
import type { Keys } from '../cases.ts'
import type { Path } from '../payloads.ts'
import { feed } from './feeder.ts'

const [name, redisPort, keys, path] = process.argv.slice(2) as [AppName, string, Keys, Path]
const start = await apps[name]()
const { answer, refused } = feed(await start(Number(redisPort)), keys, path)
// The response that all requests with one key get.
await answer(1)

process.on('message', async count => {
  const before = process.cpuUsage()
  await answer(Number(count))
  const { user, system } = process.cpuUsage(before)
  if (refused() > 0) throw new Error(`${refused()} requests were not answered with 201`)
  process.send?.((user + system) / Number(count))
})
// Nothing is left behind when the parent is stopped.
process.on('disconnect', () => process.exit())
process.send?.('started')
