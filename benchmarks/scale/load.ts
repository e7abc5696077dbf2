/** The clients, in a process of their own: `run` sends a series of requests and checks every answer. */
import { crc32 } from 'node:zlib'
import { serve } from './child.ts'
import { Connection, type Response } from './client.ts'
import { clientKey, PATH, REQUEST } from './kept.ts'
import { cpu } from './loop.ts'
import { quantile } from './figures.ts'

export interface Series {
  ports: number[]
  connections: number
  /** Requests under way on one connection. Default 1. */
  depth?: number
  /** The first key, and how many there are; they are sent in turn. */
  from: number
  keys: number
  /** From one key to the next. Default 1. */
  stride?: number
  /** Sent in random order rather than in turn. */
  shuffled?: boolean
  /** Requests in all; or as many as are answered in `seconds`. */
  total?: number
  seconds?: number
  /** Requests a second that are due, answered or not; all at once by default. */
  rate?: number
  path?: string
}

export interface Answers {
  requests: number
  seconds: number
  /** By status, `replayed` or error code. */
  kinds: Record<string, number>
  /** From when a request was due to its answer; ms. */
  p50: number
  p99: number
  max: number
  /** Microseconds that the clients used. */
  cpu: number
}

async function run ({
  ports, connections, depth = 1, from, keys, stride = 1, shuffled = false,
  total = Infinity, seconds = Infinity, rate = Infinity, path = PATH
}: Series): Promise<Answers> {
  const kinds: Record<string, number> = {}
  const latencies: number[] = []
  const bodies = new Map<number, number>()
  const order = shuffled ? shuffle(total, keys) : undefined
  const { promise, resolve, reject } = withResolvers()
  const open = await Promise.all(
    Array.from({ length: connections }, async (_, i) => await Connection.open(ports[i % ports.length] ?? 0, reject))
  )
  const used = cpu()
  const started = performance.now()
  let sent = 0
  let answered = 0

  const take = (connection: Connection): void => {
    while (connection.depth < depth) {
      const elapsed = performance.now() - started
      if (sent >= total || elapsed >= seconds * 1_000) {
        if (answered === sent) resolve()
        return
      }
      const due = rate === Infinity ? elapsed : sent / rate * 1_000
      if (due > elapsed) {
        idle.add(connection)
        return
      }
      const index = from + (order?.[sent] ?? sent * stride % keys)
      sent++
      connection.send(requestFor(path, clientKey(index)), response => {
        latencies.push(performance.now() - started - due)
        answered++
        try {
          const kind = check(index, response, bodies)
          kinds[kind] = (kinds[kind] ?? 0) + 1
        } catch (error) {
          reject(error)
        }
        take(connection)
      })
    }
  }
  const idle = new Set<Connection>()
  const clock = setInterval(() => {
    for (const connection of idle) {
      idle.delete(connection)
      take(connection)
      // Nothing is due yet: it has gone back.
      if (idle.has(connection)) break
    }
  }, 1)
  try {
    for (const connection of open) take(connection)
    await promise
    const took = (performance.now() - started) / 1_000
    return {
      requests: answered,
      seconds: took,
      kinds,
      p50: quantile(latencies, 0.5),
      p99: quantile(latencies, 0.99),
      max: quantile(latencies, 1),
      cpu: cpu() - used
    }
  } finally {
    clearInterval(clock)
    for (const connection of open) connection.close()
  }
}

function requestFor (path: string, key: string): string {
  return `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n` +
    `content-length: ${REQUEST.length}\r\nidempotency-key: ${key}\r\n\r\n${REQUEST}`
}

/** What kind of answer it is. A key's own payment, and the same bytes as before, or else it throws. */
function check (index: number, { status, replayed, body }: Response, bodies: Map<number, number>): string {
  if (status !== 201) return `${status} ${(JSON.parse(String(body)) as { code?: string }).code ?? ''}`
  if (!body.includes(`"pay_${clientKey(index)}"`)) {
    throw new Error(`Key ${index} got another one's answer: ${String(body)}`)
  }
  const sum = crc32(body)
  const before = bodies.get(index)
  if (before === undefined) bodies.set(index, sum)
  else if (before !== sum) throw new Error(`Key ${index} got two different answers`)
  return replayed ? 'replayed' : 'executed'
}

/** Each key equally often, in random order. */
function shuffle (total: number, keys: number): Int32Array {
  const order = Int32Array.from({ length: total }, (_, i) => i % keys)
  for (let i = total - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1))
    const one = order[i] ?? 0
    order[i] = order[j] ?? 0
    order[j] = one
  }
  return order
}

function withResolvers (): { promise: Promise<void>, resolve: () => void, reject: (error: unknown) => void } {
  let resolve!: () => void
  let reject!: (error: unknown) => void
  const promise = new Promise<void>((_resolve, _reject) => {
    resolve = _resolve
    reject = _reject
  })
  return { promise, resolve, reject }
}

// JSON knows no Infinity: what is left out has its default.
serve({ run })
