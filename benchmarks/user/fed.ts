/** A server that is fed from memory: `fed.js <app> <keys>` prints the CPU time of one request in µs, without a kernel and a client in it. */
import { Duplex } from 'node:stream'
import { executions } from '../apps/executions.ts'
import { apps, type AppName } from '../apps/index.ts'
import type { Keys } from '../cases.ts'
import { freshNumber, KEY_TO_NUMBER, NUMBER, SAME_KEY } from '../keys.ts'
import { sent } from '../payloads.ts'
import { spread } from '../spread.ts'

const CONNECTIONS = 32
const WARM_UP = 60_000
const ROUNDS = 9
const REQUESTS = 20_000

const [name, keys] = process.argv.slice(2) as [AppName, Keys]
const start = await apps[name]()
const server = await start(0)

const { type, body } = sent['/payments']
const key = keys === 'none' ? '' : `idempotency-key: ${keys === 'same' ? SAME_KEY : KEY_TO_NUMBER}\r\n`
const template = Buffer.from(`POST /payments HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\nContent-Type: ${type}\r\nContent-Length: ${body.length}\r\n${key}\r\n${String(body)}`)
const numberAt = template.indexOf(KEY_TO_NUMBER) + KEY_TO_NUMBER.length - NUMBER.length

function nextRequest (): Buffer {
  const request = Buffer.from(template)
  if (keys === 'fresh') request.write(freshNumber(), numberAt, 'latin1')
  return request
}

let refused = 0

/** The server's end of a connection; ready for the next request once it was answered. */
class Connection extends Duplex {
  ready = true

  constructor () {
    super({ decodeStrings: false })
  }

  override _read (): void {}

  override _write (chunk: Buffer | string, _encoding: string, done: () => void): void {
    const head = typeof chunk === 'string' ? chunk.slice(0, 12) : chunk.toString('latin1', 0, 12)
    if (head.startsWith('HTTP/1.1 ')) {
      this.ready = true
      if (head !== 'HTTP/1.1 201') refused++
    }
    done()
  }

  override _writev (chunks: Array<{ chunk: Buffer | string }>, done: () => void): void {
    for (const { chunk } of chunks) this._write(chunk, '', () => {})
    done()
  }
}

const connections = Array.from({ length: CONNECTIONS }, () => {
  const connection = new Connection()
  server.emit('connection', connection)
  return connection
})

/** Sends `count` requests, one at a time on each connection, those of all connections in one turn of the event loop. */
async function answer (count: number): Promise<void> {
  let left = count
  do {
    for (const connection of connections) {
      if (!connection.ready || left === 0) continue
      connection.ready = false
      left--
      connection.push(nextRequest())
    }
    await new Promise(resolve => setImmediate(resolve))
  } while (left > 0 || connections.some(({ ready }) => !ready))
}

await answer(1)
await answer(WARM_UP)
const samples: number[] = []
for (let round = 0; round < ROUNDS; round++) {
  const before = process.cpuUsage()
  await answer(REQUESTS)
  const { user, system } = process.cpuUsage(before)
  samples.push((user + system) / REQUESTS)
}
const expected = keys === 'same' && name !== 'bare' ? 1 : 1 + WARM_UP + ROUNDS * REQUESTS
if (refused > 0 || executions() !== expected) {
  throw new Error(`${name}: ${refused} requests were not answered with 201; the handler ran ${executions()} times instead of ${expected}`)
}
console.log(spread(samples).median)
process.exit()
