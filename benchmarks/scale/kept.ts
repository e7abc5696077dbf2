/** Keys and responses as the plugin makes them, so that a store can be filled without a million requests. */
import { hash, randomUUID } from 'node:crypto'
import { fingerprintOf, saltOf, storeKey } from '../../lib/protocol/fingerprint.ts'
import { hashOf } from '../../lib/util/hash.ts'
import type { StoreOutcome, IdempotencyStore } from '../../lib/index.ts'
import type { OwnRedis } from '../redis.ts'

export const PREFIX = 'idempotency:'
export const DAY = 86_400_000
export const LEASE = 30_000
export const PATH = '/payments'
export const REQUEST = JSON.stringify({ amount: 4200, currency: 'EUR', reference: 'order-1', note: 'x'.repeat(120) })

/**
 * What a client sends: keys of one length whose fingerprints have one length, too, so that all records are of one
 * size.
 */
export function clientKey (index: number): string {
  const start = `key-${String(index).padStart(12, '0')}`
  for (const letter of 'abcdefghijklmnopqrstuvwxyz') {
    // A fingerprint ends in this number.
    if (String(hashOf(start + letter + PATH) & 0xfffff).length === 6) return start + letter
  }
  throw new Error(`No key ${index} has a fingerprint of the usual length`)
}
export const keyOf = (index: number): string => storeKey(PREFIX, undefined, clientKey(index))

/** As lib/body.ts does with a body that has arrived. */
function digest (salt: string): string {
  const length = Buffer.alloc(4)
  length.writeUInt32BE(Buffer.byteLength(salt))
  return hash('sha256', Buffer.concat([Buffer.from(REQUEST + salt), length]), 'base64url')
}
export function fingerprint (index: number): string {
  const key = clientKey(index)
  return fingerprintOf(key, 'POST', PATH, digest(saltOf(key, 'POST', PATH)))
}

/** The handler's answer: names its key, and each execution differs by its `run`. */
export interface Payment { id: string, run: string, amount: number, status: string, note: string }
const make = (key: string, run: string, padding: number): Payment =>
  ({ id: `pay_${key}`, run, amount: 4200, status: 'succeeded', note: 'x'.repeat(padding) })
/** Its JSON has `bytes` bytes. */
export const payment = (key: string, run: string, bytes = 300): Payment => make(key, run, bytes - EMPTY)
export const location = (key: string): string => `${PATH}/pay_${key}`
const FILLED = 'filled00'
const EMPTY = JSON.stringify(make(clientKey(0), FILLED, 0)).length

export function outcome (index: number, bytes = 300, form: 'string' | 'Buffer' = 'string'): StoreOutcome {
  const key = clientKey(index)
  const body = JSON.stringify(payment(key, FILLED, bytes))
  return {
    fingerprint: fingerprint(index),
    status: 201,
    replayable: true,
    headers: [['location', location(key)], ['content-type', 'application/json; charset=utf-8']],
    body: form === 'string' ? body : Buffer.from(body),
    text: form === 'string'
  }
}

/** Bytes of a response: its body, and a line for each header: `name: value`, CR LF. */
export const bytesOf = ({ headers, body }: StoreOutcome): number =>
  Buffer.byteLength(body) + headers.reduce((sum, [name, value]) => sum + `${name}: ${String(value)}\r\n`.length, 0)

/** One first execution, as far as the store sees it. */
export async function keep (store: IdempotencyStore, index: number, ttl = DAY, kept = outcome(index)): Promise<void> {
  const key = keyOf(index)
  const token = randomUUID()
  const pending = store.claim(key, { token, lease: LEASE, ttl, takeover: true })
  const claim = pending instanceof Promise ? await pending : pending
  if (claim.outcome !== 'acquired') throw new Error(`A fresh key was ${claim.outcome}`)
  if (!await store.complete(key, token, kept, ttl)) throw new Error('An outcome was refused')
}

/**
 * Puts keys `from` to `to` into Redis: records that the store has written, with each key's own
 * fingerprint and name in them, so that a million take seconds. `until`: when they expire, ms since the epoch.
 */
export async function fillRedis (
  { client }: OwnRedis,
  store: IdempotencyStore,
  from: number,
  to: number,
  { until = Date.now() + DAY, bytes = 300 } = {}
): Promise<void> {
  if (from === to) return
  const template = await templateOf(client, store, from, bytes)
  for (let at = from; at < to; at += 1_000) {
    const keys: string[] = []
    for (let index = at; index < Math.min(at + 1_000, to); index++) {
      keys.push(keyOf(index), fingerprint(index), clientKey(index))
    }
    await client.eval(FILL, 0, until, template.length, ...template, ...keys)
  }
}

/** A record in pieces: F and K stand for fingerprint and client's key. */
async function templateOf (
  client: OwnRedis['client'], store: IdempotencyStore, index: number, bytes: number
): Promise<Array<string | Buffer>> {
  await keep(store, index, DAY, outcome(index, bytes))
  const record = (await client.getBuffer(keyOf(index)) as Buffer).toString('latin1')
  const pieces = record.split(new RegExp(`(${fingerprint(index)}|${clientKey(index)})`))
  if (!pieces.includes(fingerprint(index))) throw new Error('The record in Redis does not show its fingerprint')
  return pieces.map(piece => piece === fingerprint(index)
    ? 'F'
    : piece === clientKey(index) ? 'K' : Buffer.from(`-${piece}`, 'latin1'))
}

const FILL = `
local record, size = {}, tonumber(ARGV[2])
for i = 3 + size, #ARGV, 3 do
  for p = 1, size do
    local part = ARGV[2 + p]
    record[p] = part == 'F' and ARGV[i + 1] or part == 'K' and ARGV[i + 2] or string.sub(part, 2)
  end
  redis.call('SET', ARGV[i], table.concat(record), 'PXAT', ARGV[1])
end`
