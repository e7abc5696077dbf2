import fc from 'fast-check'
import t from 'tap'
import {
  decodeOutcome, encodeOutcome, UnreadableRecordError, type StoreBinding, type StoreOutcome
} from '../lib/index.ts'
import { decodeBinding, encodeBinding } from '../lib/stores/binding.ts'

/**
 * A kept response, and what is recorded of steps, as bytes: whatever is in it comes back, and what was cut off or
 * altered is nothing else.
 */

/** Any character that one byte can stand for, and those that frame other formats. */
const LATIN1 = fc.oneof(
  fc.string({ unit: fc.integer({ min: 0, max: 255 }).map(code => String.fromCharCode(code)) }),
  fc.string({ unit: fc.constantFrom(...'0123456789:=\r\n\0 a\xe9') })
)
const OUTCOME: fc.Arbitrary<StoreOutcome> = fc.record({
  fingerprint: fc.string({ unit: fc.constantFrom(...'abcXYZ019-_.+') }),
  status: fc.integer({ min: 100, max: 599 }),
  replayable: fc.boolean(),
  headers: fc.uniqueArray(fc.tuple(LATIN1, fc.oneof(LATIN1, fc.array(LATIN1, { minLength: 2, maxLength: 4 }))), {
    selector: ([name]) => name, maxLength: 5
  }),
  body: fc.oneof(
    fc.string({ unit: 'grapheme', maxLength: 300 }), fc.uint8Array({ maxLength: 300 }).map(bytes => Buffer.from(bytes))
  )
}).map(outcome => ({ ...outcome, text: typeof outcome.body === 'string' }))

/** The outcome with its body as bytes, to be compared. */
const plain = (
  { body, ...rest }: StoreOutcome
): unknown => ({ ...rest, body: Buffer.from(body as string).toString('latin1') })

/** What `decode` gives; `undefined` where it is told to be unreadable. */
function readable<T> (decode: () => T): T | undefined {
  try {
    return decode()
  } catch (error) {
    if (error instanceof UnreadableRecordError) return undefined
    throw error
  }
}

t.test('G13: any name, value and body comes back as it was, line breaks and NULs included', async t => {
  fc.assert(fc.property(OUTCOME, outcome => {
    t.strictSame(plain(decodeOutcome(encodeOutcome(outcome))), plain(outcome))
    return t.passing()
  }), { numRuns: 500 })
})

t.test('G13: a part of a longer piece of bytes is read as if it stood alone', async t => {
  fc.assert(fc.property(OUTCOME, fc.uint8Array({ maxLength: 20 }), fc.uint8Array({ maxLength: 20 }), (
    outcome, before, after
  ) => {
    const record = encodeOutcome(outcome)
    const all = Buffer.concat([before, record, after])
    t.strictSame(plain(decodeOutcome(all, before.length, before.length + record.length)), plain(outcome))
    return t.passing()
  }), { numRuns: 300 })
})

t.test('G10: a record that ends before its body is unreadable, wherever it ends', async t => {
  fc.assert(fc.property(OUTCOME, outcome => {
    const record = encodeOutcome(outcome)
    const bodyAt = record.length - Buffer.byteLength(outcome.body)
    for (let end = 0; end < bodyAt; end++) t.equal(readable(() => decodeOutcome(record.subarray(0, end))), undefined)
    return t.passing()
  }), { numRuns: 100 })
})

t.test('G10: a record that was altered is unreadable, or a well-formed outcome', async () => {
  const isText = (value: unknown): boolean => typeof value === 'string'
  fc.assert(fc.property(OUTCOME, fc.array(fc.tuple(fc.nat(), fc.integer({ min: 1, max: 255 })), {
    minLength: 1, maxLength: 3
  }), fc.boolean(), (outcome, changes, headOnly) => {
    const record = encodeOutcome(outcome)
    for (const [at, by] of changes) {
      const place = at % (headOnly ? 11 : record.length)
      record[place] = (record[place] as number) ^ by
    }
    const found = readable(() => decodeOutcome(record))
    if (found === undefined) return true
    return Number.isInteger(found.status) && found.status >= 100 && found.status <= 999 && isText(found.fingerprint) &&
      found.headers.every(([name, value]) => isText(name) && [value].flat().every(isText)) &&
      (isText(found.body) || Buffer.isBuffer(found.body))
  }), { numRuns: 5_000 })
})

t.test('G10: what is not quite a number in a record is damage', async t => {
  const record = String(
    encodeOutcome({ fingerprint: 'f', status: 200, replayable: true, headers: [], body: 'x', text: true })
  )
  t.equal(record, '132000000031:fx')
  for (const damaged of [
    '139e90000031:fx', '13+990000031:fx', '13 200000031:fx', '13200 000031:fx', '13200+000031:fx', '1320000003g1:fx',
    '13200000.031:fx'
  ]) {
    t.throws(() => decodeOutcome(Buffer.from(damaged)), UnreadableRecordError, damaged)
  }
})

t.test('headers that take 16 MiB or more are refused, not cut', async t => {
  const outcome = { fingerprint: 'f', status: 200, replayable: true, body: '', text: true }
  const withHeader = (length: number): Buffer => encodeOutcome({ ...outcome, headers: [['x', 'v'.repeat(length)]] })
  // 1:f, 1:x, and the value's own length before it.
  const longest = 0xffffff - 6 - '16777200:'.length
  t.equal(String(decodeOutcome(withHeader(longest)).headers[0]?.[1]).length, longest)
  t.throws(() => withHeader(longest + 1), { name: 'RangeError', message: /too large to be kept/ })
})

const BINDING: fc.Arbitrary<StoreBinding> = fc.record({
  fingerprint: fc.string({ unit: 'grapheme', maxLength: 30 }),
  steps: fc.array(fc.record({
    name: fc.string({ unit: 'grapheme', maxLength: 30 }),
    result: fc.option(fc.string({ unit: 'grapheme', maxLength: 30 }), { nil: undefined })
  }, { noNullPrototype: true }), { maxLength: 4 })
}, { noNullPrototype: true })

t.test('G16: any steps come back as they were, and what is cut off holds no others', async t => {
  fc.assert(fc.property(BINDING, binding => {
    const record = encodeBinding(binding)
    t.strictSame(decodeBinding(record), binding)
    for (let end = 0; end < record.length; end++) {
      const { steps, ...rest } = readable(() => decodeBinding(record.subarray(0, end))) ?? { steps: [] }
      t.strictSame(steps, binding.steps.slice(0, steps.length))
      if (steps.length > 0) t.strictSame(rest, { fingerprint: binding.fingerprint })
    }
    return t.passing()
  }), { numRuns: 100 })
})

t.test('G16: steps that are cut off or altered are unreadable, wherever that is', async t => {
  for (const [what, record] of Object.entries({
    'not even a length': '\0',
    'a fingerprint that is cut off': '\0\x04fp',
    'a section without its lengths': '\0\x02fpr\0\0\0',
    'a name that is longer than all': '\0\x02fpr\0\0\0\xffname\0\0\0\0',
    'a name without a length after it': '\0\x02fps\0\0\0\x04name\0\0\0',
    'a result that is longer than all': '\0\x02fpr\0\0\0\x01a\0\0\0\x08"1"',
    'a kind that is none': '\0\x02fpz\0\0\0\x01a\0\0\0\0'
  })) {
    t.throws(() => decodeBinding(Buffer.from(record, 'latin1')), {
      name: 'UnreadableRecordError', message: /steps recorded under the key are damaged/
    }, what)
  }
  t.equal(decodeBinding(Buffer.from('\0\x02fp')), undefined, 'a fingerprint alone binds nothing')
})
