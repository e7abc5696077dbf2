/**
 * What a replay costs beside the bare route that it spares: `npm run bench`.
 *
 * The server runs in a process of its own, autocannon in this one. Each round measures
 * every case in turn, so that a machine whose speed drifts slows all of them; the ratio of
 * a case is the median of its rounds' ratios to the bare route of the same round. "bare
 * again" is the control: what it differs from 1.0 by is noise.
 */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import autocannon from 'autocannon'

const ROUNDS = Number(process.env.ROUNDS ?? 7)
const SECONDS = Number(process.env.SECONDS_PER_CASE ?? 2)
const body = JSON.stringify({ amount: 4200, currency: 'EUR', reference: 'order-1', note: 'x'.repeat(120) })

interface Case { name: string, app: 'bare' | 'ours', path: string, keys: 'none' | 'same' | 'fresh' }
const CASES: Case[] = [
  { name: 'bare route', app: 'bare', path: '/payments', keys: 'none' },
  { name: 'bare again (control)', app: 'bare', path: '/payments', keys: 'none' },
  { name: 'opted out', app: 'ours', path: '/out', keys: 'none' },
  { name: 'takes part, no key', app: 'ours', path: '/payments', keys: 'none' },
  { name: 'first execution', app: 'ours', path: '/payments', keys: 'fresh' },
  { name: 'replay', app: 'ours', path: '/payments', keys: 'same' }
]

const server = fork(new URL('server.js', import.meta.url))
const [ports] = await once(server, 'message') as [Record<Case['app'], number>]
let count = 0

async function measure ({ app, path, keys }: Case): Promise<number> {
  const request = {
    method: 'POST' as const,
    path,
    body,
    headers: { 'content-type': 'application/json', ...(keys === 'none' ? {} : { 'idempotency-key': 'same' }) },
    ...(keys === 'fresh' ? { setupRequest: (given: autocannon.Request) => ({ ...given, headers: { ...given.headers, 'idempotency-key': `k${count++}` } }) } : {})
  }
  const { requests, non2xx, errors } = await autocannon({ url: `http://127.0.0.1:${ports[app]}`, connections: 20, duration: SECONDS, requests: [request] })
  if (non2xx > 0 || errors > 0) throw new Error(`${path}: ${non2xx} answers were not 2xx, ${errors} requests failed`)
  return requests.average
}

const median = (values: number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? NaN

const rates = CASES.map((): number[] => [])
for (const each of CASES) await measure(each) // warm-up
for (let round = 0; round < ROUNDS; round++) {
  for (const [i, each] of CASES.entries()) rates[i]?.push(await measure(each))
}
server.kill()

console.log(`\n${ROUNDS} rounds of ${SECONDS} s, Node.js ${process.version}, in-process store\n`)
console.log('| case | requests/s (median) | ratio to bare: median (min to max) |\n|---|---|---|')
for (const [i, { name }] of CASES.entries()) {
  const own = rates[i] ?? []
  const ratios = own.map((rate, round) => rate / (rates[0]?.[round] ?? NaN))
  console.log(`| ${name} | ${Math.round(median(own))} | ${median(ratios).toFixed(2)} (${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)}) |`)
}
