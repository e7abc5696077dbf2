/** Full load: autocannon in this process, as many requests as the server can answer. */
import { createHistogram } from 'node:perf_hooks'
import autocannon from 'autocannon'
import type { Keys } from './cases.ts'
import { freshNumber, KEY_TO_NUMBER, NUMBER, SAME_KEY } from './keys.ts'
import { sent, type Path } from './payloads.ts'
import { Rejected } from './rejected.ts'

const CONNECTIONS = 32

export interface Target { port: number, path: Path, keys: Keys }
export interface Answers {
  requests: number
  /** Requests per second. */
  rate: number
  /** Milliseconds. */
  p50: number
  p99: number
}

/** The part of autocannon's client that gives it the bytes of its next request; not in its types. */
interface RequestSource { getRequestBuffer: () => Buffer }

/**
 * Gives each request of a connection a key of its own by writing it into the one buffer that is
 * sent again and again: building a request anew would cost the client more than sending it. Safe
 * without pipelining: the answer to the request before has come, so its bytes have left.
 */
function freshKeys (client: RequestSource): void {
  const buffer = Buffer.from(client.getRequestBuffer())
  const at = buffer.indexOf(KEY_TO_NUMBER) + KEY_TO_NUMBER.length - NUMBER.length
  client.getRequestBuffer = () => {
    buffer.write(freshNumber(), at, 'latin1')
    return buffer
  }
}

export async function fullLoad ({ port, path, keys }: Target, seconds: number): Promise<Answers> {
  const latency = createHistogram()
  const options: autocannon.Options = {
    url: `http://127.0.0.1:${port}${path}`,
    method: 'POST',
    body: sent[path].body,
    headers: {
      'content-type': sent[path].type,
      ...(keys === 'none' ? {} : { 'idempotency-key': keys === 'same' ? SAME_KEY : KEY_TO_NUMBER })
    },
    connections: CONNECTIONS,
    duration: seconds,
    // How soon after its duration it ends.
    sampleInt: 50,
    setupClient: client => { if (keys === 'fresh') freshKeys(client as unknown as RequestSource) }
  }
  const started = performance.now()
  const { requests, non2xx, errors, timeouts } = await new Promise<autocannon.Result>((resolve, reject) => {
    autocannon(options, (error, result) => {
      if (error) reject(error)
      else resolve(result)
    })
      .on('response', (_client, _status, _bytes, milliseconds) => {
        latency.record(Math.max(1, Math.round(milliseconds * 1_000)))
      })
  })
  const elapsed = (performance.now() - started) / 1_000
  if (non2xx > 0 || errors > 0 || timeouts > 0) {
    throw new Rejected(
      `${path}: ${non2xx} answers were not 2xx, ${errors} requests failed, ${timeouts} of them timed out`
    )
  }
  if (elapsed > seconds * 1.5 + 0.2) throw new Rejected(`${path}: ${seconds} s took ${elapsed.toFixed(2)} s`)
  return {
    requests: requests.total,
    rate: requests.total / elapsed,
    p50: latency.percentile(50) / 1_000,
    p99: latency.percentile(99) / 1_000
  }
}
