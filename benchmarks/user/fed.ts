/**
 * A server that is fed from memory: `fed.js <app> <keys>` prints the CPU time of one request in µs, without a kernel
 * and a client in it; `fed.js <app> <keys> allocation` the bytes that one allocates.
 */
import { PerformanceObserver } from 'node:perf_hooks'
import { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
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
/** So few that what the store keeps outside of the heap starts no collection. */
const FEW = 5_000

const [name, keys, what] = process.argv.slice(2) as [AppName, Keys, 'allocation' | undefined]
const start = await apps[name]()
const server = await start(0)

const { type, body } = sent['/payments']
const key = keys === 'none' ? '' : `idempotency-key: ${keys === 'same' ? SAME_KEY : KEY_TO_NUMBER}\r\n`
const template = Buffer.from('POST /payments HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n' +
  `Content-Type: ${type}\r\nContent-Length: ${body.length}\r\n${key}\r\n${String(body)}`)
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

/** CPU time of one request in µs. */
async function costOfRequest (): Promise<number> {
  const before = process.cpuUsage()
  await answer(REQUESTS)
  const { user, system } = process.cpuUsage(before)
  return (user + system) / REQUESTS
}

/** Bytes that one request allocates; NaN when a collection came between: the heap says nothing then. */
async function bytesOfRequest (): Promise<number> {
  let collections = 0
  const observer = new PerformanceObserver(list => { collections += list.getEntries().length })
  globalThis.gc?.()
  await sleep(10)
  observer.observe({ entryTypes: ['gc'] })
  const before = process.memoryUsage().heapUsed
  await answer(requests)
  const bytes = process.memoryUsage().heapUsed - before
  await sleep(10)
  observer.disconnect()
  return collections > 0 ? NaN : bytes / requests
}

const requests = what === 'allocation' ? FEW : REQUESTS
const samples: number[] = []
for (let round = 0; round < ROUNDS; round++) {
  samples.push(await (what === 'allocation' ? bytesOfRequest : costOfRequest)())
}
const measured = samples.filter(sample => !Number.isNaN(sample))
if (measured.length < ROUNDS / 2) {
  throw new Error(`${name}: collections came between in ${ROUNDS - measured.length} of ${ROUNDS} rounds`)
}
const expected = keys === 'same' && name !== 'bare' ? 1 : 1 + WARM_UP + ROUNDS * requests
if (refused > 0 || executions() !== expected) {
  throw new Error(`${name}: ${refused} requests were not answered with 201; the handler ran ${executions()} times ` +
    `instead of ${expected}`)
}
console.log(spread(measured).median)
process.exit()
