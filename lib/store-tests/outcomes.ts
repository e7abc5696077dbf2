import assert from 'node:assert/strict'
import type { StoreEntry, StoreOutcome, IdempotencyStore } from '../stores/contract.ts'
import { claimOf, result, token, TTL, type Suite } from './kit.ts'

/** What is kept comes back as it was given. */
export function outcomeTests ({ check }: Suite): void {
  check('a completed key answers every claim with the outcome, exactly', async store => {
    assert.deepEqual(await kept(store, result), result)
    assert.deepEqual(
      await store.claim('k', claimOf('c', { takeover: false })), { outcome: 'completed', attempt: 1, result }
    )
  })

  check('a string body comes back as a string\'s', async store => {
    for (const body of ['häß €', '\u{1f511}', '\0', 'x'.repeat(5_000), '']) {
      const outcome = await kept(store, { ...result, body, text: true })
      assert.deepEqual([String(outcome.body), outcome.text], [body, true])
    }
  })

  check('a body of any bytes comes back as those, whatever its length', async store => {
    const all = Buffer.from(Array.from({ length: 256 }, (_, byte) => byte))
    for (const body of [
      all, Buffer.alloc(0), Buffer.from('{}'), Buffer.alloc(1_048_576, all), Buffer.alloc(1_048_577, 'ü')
    ]) {
      const outcome = await kept(store, { ...result, body })
      assert.ok(Buffer.isBuffer(outcome.body) && outcome.body.equals(body), `${body.length} bytes`)
      assert.equal(outcome.text, false)
    }
  })

  check('a large string body comes back whole', async store => {
    const body = 'ü€\u{1f511}x'.repeat(104_858)
    const outcome = await kept(store, { ...result, body, text: true })
    assert.ok(String(outcome.body) === body)
    assert.equal(outcome.text, true)
  })

  check('headers of every shape come back, in their order', async store => {
    const headers: StoreOutcome['headers'] = [
      ['x-empty', ''], ['x-colon', 'a: b; c="d, e"'], ['x-tab', 'a\tb'], ['x-latin1', '\xa0\xe9\xff'],
      ['x-field', 'x-other: b'], ['x-colons', ['a: b', ': ', ':', 'a:b']], ['x-blanks', '  a b\t '], ['x-blank', ' '],
      ['x-length', '5:hello'], ['x-end-latin1', 'caf\xe9 '],
      ['x-quotes', '"a\\"b", \'c\''], ['x-number', ['0', '1']], ['x-long', 'v'.repeat(8_192)],
      ['set-cookie', ['a=1; Path=/', 'b=2']], ['x-several', ['', 'a', '', 'a']], ['x-one', ['a']],
      ['__proto__', 'p'], ['constructor', 'c'],
      ...Array.from({ length: 100 }, (_, i): [string, string] => [`x-${i}`, String(i)])
    ]
    assert.deepEqual(linesOf(await kept(store, { ...result, headers })), linesOf({ headers }))
  })

  check('every status comes back as a number', async store => {
    for (const status of [200, 204, 299, 301, 304, 400, 499, 500, 599, 999]) {
      assert.equal((await kept(store, { ...result, status })).status, status)
    }
  })

  check('an outcome that cannot be replayed, and an empty one, are kept as such', async store => {
    const empty: StoreOutcome = { fingerprint: 'f', status: 204, replayable: false, headers: [], body: '', text: true }
    assert.deepEqual(await kept(store, empty), empty)
    const replayable: StoreOutcome = { ...empty, replayable: true }
    assert.deepEqual(await kept(store, replayable), replayable)
  })

  check('what is kept does not change with what the caller gave, or was given', async store => {
    const request = claimOf('a')
    await store.claim('k', request)
    Object.assign(request, { token: token('b'), lease: 0, ttl: 0 })
    const given = (): StoreOutcome => (
      { ...result, headers: [['x-one', 'a'], ['x-several', ['a', 'b']]], body: Buffer.from('before') }
    )
    const outcome = given()
    assert.equal(await store.complete('k', token('a'), outcome, TTL), true)
    spoil(outcome)
    const claim = await store.claim('k', claimOf('b')) as { result: StoreOutcome }
    assert.deepEqual(claim.result, given())
    spoil(claim.result)
    const entry = await store.read('k')
    assert.deepEqual(entry?.result, given())
    spoil(entry?.result as StoreOutcome)
    Object.assign(entry as StoreEntry, { state: 'freed', attempt: 7, since: 0, until: 0 })
    assert.deepEqual(await store.claim('k', claimOf('c')), { outcome: 'completed', attempt: 1, result: given() })
  })
}

/** What another claim gets of an outcome. */
async function kept (store: IdempotencyStore, outcome: StoreOutcome): Promise<StoreOutcome> {
  await store.remove('k')
  await store.claim('k', claimOf('a'))
  assert.equal(await store.complete('k', token('a'), outcome, TTL), true)
  const claim = await store.claim('k', claimOf('b'))
  assert.equal(claim.outcome, 'completed')
  return (claim as { result: StoreOutcome }).result
}

/** As they are sent: a header that has one value may come back with it alone. */
function linesOf ({ headers }: Pick<StoreOutcome, 'headers'>): Array<[name: string, value: string]> {
  return headers.flatMap(([name, value]) => [value].flat().map((value): [string, string] => [name, value]))
}

function spoil (outcome: StoreOutcome): void {
  (outcome.body as Buffer).fill('!')
  for (const header of outcome.headers) {
    if (Array.isArray(header[1])) header[1].push('spoilt')
    header[0] = 'spoilt'
  }
  outcome.headers.push(['spoilt', ''])
  outcome.status = 500
}
