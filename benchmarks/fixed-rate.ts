/**
 * A fixed rate, open loop: requests leave on schedule whether or not earlier ones have been
 * answered, in batches each millisecond. autocannon's own rate sends a second's requests in one
 * burst, which measures full load once more.
 */
import { Agent, request } from 'node:http'
import { createHistogram } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { freshKey, SAME_KEY } from './keys.ts'
import type { Answers, Target } from './load.ts'
import { sent } from './payloads.ts'
import { Rejected } from './rejected.ts'

async function send (agent: Agent, { port, path, keys }: Target): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const key = keys === 'none' ? {} : { 'idempotency-key': keys === 'same' ? SAME_KEY : freshKey() }
    const { type, body } = sent[path]
    const headers = { 'content-type': type, 'content-length': body.length, ...key }
    request({ agent, port, path, host: '127.0.0.1', method: 'POST', headers }, response => {
      if (response.statusCode !== 201) {
        reject(new Rejected(`${path}: status ${String(response.statusCode)} at a fixed rate`))
      }
      response.resume().on('end', resolve)
    }).on('error', reject).end(body)
  })
}

export async function fixedRate (target: Target, rate: number, seconds: number): Promise<Answers> {
  const latency = createHistogram()
  const agent = new Agent({ keepAlive: true })
  const total = Math.round(rate * seconds)
  const pending: Array<Promise<void>> = []
  const started = performance.now()
  while (pending.length < total) {
    const due = Math.min(total, Math.floor((performance.now() - started) / 1_000 * rate))
    while (pending.length < due) {
      const sentAt = performance.now()
      const answered = send(agent, target).then(() => {
        latency.record(Math.max(1, Math.round((performance.now() - sentAt) * 1_000)))
      })
      answered.catch(() => {}) // awaited with all others below
      pending.push(answered)
    }
    await sleep(1)
  }
  const elapsed = (performance.now() - started) / 1_000
  await Promise.all(pending).finally(() => { agent.destroy() })
  if (elapsed > seconds * 1.02 + 0.02) {
    throw new Rejected(`${target.path}: sending took ${elapsed.toFixed(2)} s instead of ${seconds} s; lower the rate`)
  }
  return {
    requests: total, rate: total / elapsed, p50: latency.percentile(50) / 1_000, p99: latency.percentile(99) / 1_000
  }
}
