import fc from 'fast-check'
import t from 'tap'
import { encodeOutcome, MemoryStore, type StoreOutcome } from '../lib/index.ts'

const LEASE = 60_000
const TTL = 3_600_000
/** Of each record, beside its texts: its head, and its place in the index. */
const BESIDE = 24 + 12

const any = fc.string({ unit: 'binary', maxLength: 60 })
const value = fc.oneof(fc.string({ maxLength: 40 }), fc.constant('a longer one '.repeat(50)))
const outcomes = fc.record({
  status: fc.integer({ min: 200, max: 499 }),
  headers: fc.array(fc.tuple(fc.constantFrom('x-one', 'x-two'), value), { maxLength: 2 }),
  body: fc.oneof(
    fc.string({ unit: 'binary', maxLength: 3_000 }),
    fc.string({ maxLength: 9_000 }),
    fc.uint8Array({ maxLength: 3_000 }).map(array => Buffer.from(array))
  )
})

interface Made { status: number, headers: Array<[string, string]>, body: string | Buffer }

function outcomeOf ({ status, headers, body }: Made): StoreOutcome {
  const named = new Map(headers)
  return {
    fingerprint: 'digest.POST.1', status, replayable: true, headers: [...named], body, text: typeof body === 'string'
  }
}

t.test('G13, G14: MemoryStore gives any texts back, wherever its memory ends, and counts their bytes', async t => {
  let records = 0
  fc.assert(fc.property(fc.array(fc.tuple(any, outcomes), { minLength: 40, maxLength: 80 }), all => {
    const store = new MemoryStore()
    // Keys that differ as bytes: half of a surrogate pair is written as any other half.
    const kept = new Map(all.map(([key, outcome], i) => [`${i} ${Buffer.from(key).toString()}`, outcomeOf(outcome)]))
    for (const [key, outcome] of kept) {
      const token = `token of ${key}`
      const before = store.bytes
      store.claim(key, { token, lease: LEASE, ttl: TTL, takeover: false })
      if (!store.complete(key, token, outcome, TTL)) throw new Error('not completed')
      const expected = BESIDE + Buffer.byteLength(key + token) + encodeOutcome(outcome).length
      if (store.bytes - before !== expected) throw new Error(`${store.bytes - before} bytes instead of ${expected}`)
      records++
    }
    for (const [key, { status, headers, body }] of kept) {
      const found = store.claim(key, { token: 'other', lease: LEASE, ttl: TTL, takeover: false })
      if (found.outcome !== 'completed') throw new Error(`${found.outcome} instead of completed`)
      const { result } = found
      if (result.status !== status || JSON.stringify(result.headers) !== JSON.stringify(headers)) {
        throw new Error('another head')
      }
      if (!Buffer.from(result.body).equals(Buffer.from(body))) throw new Error('another body')
    }
  }), { numRuns: 60 })
  t.ok(records > 2_000)
})
