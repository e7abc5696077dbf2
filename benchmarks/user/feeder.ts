/** Feeds a server from memory: neither a kernel nor a client has a part in what a request costs. */
import type { Server } from 'node:http'
import { Duplex } from 'node:stream'
import type { Keys } from '../cases.ts'
import { freshNumber, KEY_TO_NUMBER, NUMBER, SAME_KEY } from '../keys.ts'
import { sent, type Path } from '../payloads.ts'

const CONNECTIONS = 32

/** The server's end of a connection; ready for the next request once it was answered. */
class Connection extends Duplex {
  ready = true
  /** Answers with another status than 201. */
  refused = 0

  constructor () {
    super({ decodeStrings: false })
  }

  override _read (): void {}

  override _write (chunk: Buffer | string, _encoding: string, done: () => void): void {
    const head = typeof chunk === 'string' ? chunk.slice(0, 12) : chunk.toString('latin1', 0, 12)
    if (head.startsWith('HTTP/1.1 ')) {
      this.ready = true
      if (head !== 'HTTP/1.1 201') this.refused++
    }
    done()
  }

  override _writev (chunks: Array<{ chunk: Buffer | string }>, done: () => void): void {
    for (const { chunk } of chunks) this._write(chunk, '', () => {})
    done()
  }
}

export interface Feeder {
  /** Sends so many requests: one at a time on each connection, those of all connections in one turn. */
  answer: (count: number) => Promise<void>
  /** How many were not answered with 201. */
  refused: () => number
}

export function feed (server: Server, keys: Keys, path: Path): Feeder {
  const { type, body } = sent[path]
  const key = keys === 'none' ? '' : `idempotency-key: ${keys === 'same' ? SAME_KEY : KEY_TO_NUMBER}\r\n`
  const template = Buffer.from(`POST ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n` +
    `Content-Type: ${type}\r\nContent-Length: ${body.length}\r\n${key}\r\n${String(body)}`)
  const numberAt = template.indexOf(KEY_TO_NUMBER) + KEY_TO_NUMBER.length - NUMBER.length
  const nextRequest = (): Buffer => {
    const request = Buffer.from(template)
    if (keys === 'fresh') request.write(freshNumber(), numberAt, 'latin1')
    return request
  }
  const connections = Array.from({ length: CONNECTIONS }, () => {
    const connection = new Connection()
    server.emit('connection', connection)
    return connection
  })
  return {
    async answer (count) {
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
    },
    refused: () => connections.reduce((sum, { refused }) => sum + refused, 0)
  }
}
