import { setImmediate as turn } from 'node:timers/promises'
import type { FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { Backlog } from '../lib/lease/backlog.ts'
import { commit, type Ending } from '../lib/lease/commit.ts'
import { Lease, type Holder } from '../lib/lease/lease.ts'
import { Renewals } from '../lib/lease/renewal.ts'
import { StoreCalls } from '../lib/lease/store-calls.ts'
import type { IdempotencyStore } from '../lib/index.ts'
import { gate } from './fixtures/app.ts'

/** What a lease hears of the store, each answer at the one moment at which it counts. */

// The timers of leases keep no process alive.
const alive = setInterval(() => {}, 60_000)
t.teardown(() => { clearInterval(alive) })

interface World { lease: Lease, renewals: Renewals, calls: StoreCalls, lines: string[] }

function world (
  t: Test, store: Partial<IdempotencyStore>, { lease = 60_000, storeTimeout = 60_000, onTurn = (): void => {} } = {}
): World {
  const lines: string[] = []
  const note = (_: object, line: string): void => { lines.push(line) }
  const holder: Holder = {
    key: 'key',
    id: 'id',
    attempt: 1,
    heldSince: 0,
    request: { log: { warn: note, error: note } } as unknown as FastifyRequest,
    storeKey: 'id',
    token: 'token',
    started: true,
    bodyLength: 0,
    route: { lease, ttl: 1_000, retryAfter: 1, keyName: 'Idempotency-Key' },
    boundTo: '',
    binds: false,
    knownFingerprint: () => 'f',
    binding: () => undefined
  }
  const calls = new StoreCalls(store as IdempotencyStore, storeTimeout)
  const renewals = new Renewals(calls, onTurn)
  t.teardown(() => { renewals.stop() })
  return { lease: new Lease(holder, performance.now()), renewals, calls, lines }
}

t.test('an answer that arrives while the process stands still is in time', async t => {
  const answer = gate()
  const remove = async (): Promise<boolean> => {
    await answer.promise
    return true
  }
  const { calls } = world(t, { remove }, { storeTimeout: 2 })
  const heard: unknown[] = []
  calls.remove('k', (error, value) => { heard.push(error ?? value) })
  setTimeout(answer.open, 3)
  // Both timers are due when the loop goes on, the store's own time first.
  const end = performance.now() + 20
  while (performance.now() < end);
  await answer.promise
  await turn()
  await turn()
  t.same(heard, [true])
})

t.test('G5: a renewal that succeeds late counts, from when it was sent', async t => {
  const [answer, late] = [gate(), gate()]
  const renew = async (): Promise<boolean> => {
    await answer.promise
    setImmediate(late.open)
    return true
  }
  const { lease, renewals } = world(t, { renew }, { storeTimeout: 1 })
  lease.failures = 1
  const sent = lease.confirmedAt + 5
  const heard = await new Promise(resolve => {
    renewals.renew(lease, sent, (error, renewed) => { resolve([(error as Error).name, renewed]) })
  })
  t.same(heard, ['StoreTimeout', undefined])
  t.equal(lease.fingerprintSent, false)
  answer.open()
  await late.promise
  t.match(lease, { failures: 0, confirmedAt: sent, fingerprintSent: true })
})

t.test('G5: renewals that fail are tried again at each turn, and told once; one refused loses the lease', async t => {
  let asked = 0
  const refused = gate()
  const renew = async (): Promise<boolean> => {
    if (++asked <= 3) throw new Error('away')
    setImmediate(refused.open)
    return false
  }
  const { lease, renewals, lines } = world(t, { renew }, { lease: 60_000 })
  // Due at once.
  lease.renewedAt = lease.confirmedAt = performance.now() - 30_000
  renewals.add(lease)
  await refused.promise
  t.same(lines, [
    'idempotency: the lease could not be renewed; it is tried again',
    'idempotency: the lease was lost before the outcome was stored'
  ])
  t.equal(lease.lost, true)
})

t.test('the answer to a renewal that comes after the end of the lease changes nothing', async t => {
  const [asked, answer, heard] = [gate(), gate(), gate()]
  const renew = async (): Promise<boolean> => {
    asked.open()
    await answer.promise
    setImmediate(heard.open)
    return false
  }
  const { lease, renewals, lines } = world(t, { renew })
  lease.renewedAt -= 30_000
  renewals.add(lease)
  await asked.promise
  lease.to('committing')
  lease.to('completed')
  renewals.delete(lease)
  renewals.delete(lease)
  answer.open()
  await heard.promise
  t.same([lines, lease.lost], [[], false])
  await renewals.idle()
})

t.test('a lease that ends at its turn is not renewed, and one that nobody confirms is lost', async t => {
  let renewed = 0
  const renew = async (): Promise<boolean> => {
    renewed++
    return await new Promise(() => {})
  }
  const ends = gate()
  const one = world(t, { renew }, {
    onTurn: () => {
      one.lease.giveUp()
      one.renewals.delete(one.lease)
      ends.open()
    }
  })
  one.lease.renewedAt -= 30_000
  one.renewals.add(one.lease)
  await ends.promise
  await one.renewals.idle()
  await turn()
  t.equal(renewed, 0)

  const lost = gate()
  const two = world(t, { renew }, { lease: 100, onTurn: () => { if (two.lease.lost) lost.open() } })
  two.lease.confirmedAt -= 100
  two.renewals.add(two.lease)
  await lost.promise
  t.same(two.lines, ['idempotency: the lease was lost before the outcome was stored'])
})

const RELEASE: Ending = { outcome: undefined, status: 500 }
const COMPLETE: Ending = {
  outcome: { fingerprint: 'f', status: 200, replayable: true, headers: [], body: '', text: true }, status: 200
}

t.test('G10: a store that grants a key again and again, and refuses its token, is an error in the end', async t => {
  let claims = 0
  const { lease, renewals, calls } = world(t, {
    complete: () => false,
    claim: () => ({ outcome: 'acquired', attempt: ++claims, takeover: false })
  })
  const error = await new Promise(resolve => { commit({ calls, renewals }, lease, COMPLETE, resolve) })
  t.match(error, { message: 'The store grants the key to this token, and then refuses it' })
  t.equal(claims, 3)
})

t.test('G2: of three commits of one lease the one in the middle is never sent, and the last one decides', async t => {
  const answer = gate()
  const sent: string[] = []
  const { lease, renewals, calls } = world(t, {
    async complete () {
      sent.push('complete')
      await answer.promise
      return true
    },
    release () {
      sent.push('release')
      return true
    }
  })
  const told = [COMPLETE, COMPLETE, RELEASE].map(async ending => await new Promise(resolve => {
    commit({ calls, renewals }, lease, ending, error => { resolve(error) })
  }))
  t.same(sent, ['complete'])
  answer.open()
  t.same(await Promise.all(told), [null, null, null])
  t.same([sent, lease.state], [['complete', 'release'], 'released'])
  // A release that is repeated would meet the next holder.
  commit({ calls, renewals }, lease, RELEASE, error => t.equal(error, null))
  t.equal(sent.length, 2)
})

for (const [when, answers] of Object.entries({
  'its renewal fails': { renew: fail, complete: pass },
  'its renewal succeeds': { renew: pass, complete: pass },
  'it is written': { renew: undefined, complete: pass },
  'it is refused': { renew: undefined, complete: fail }
})) {
  t.test(`G10: an outcome that is taken from the backlog while ${when} is not tried again`, async t => {
    const [asked, answer, heard] = [gate(), gate(), gate()]
    const at = async (answers: (() => boolean) | undefined): Promise<boolean> => {
      if (answers === undefined) return true
      asked.open()
      await answer.promise
      setImmediate(heard.open)
      return answers()
    }
    const sent: string[] = []
    const { lease, renewals, calls } = world(t, {
      async renew () {
        sent.push('renew')
        return await at(answers.renew)
      },
      async complete () {
        sent.push('complete')
        return await at(answers.complete)
      }
    })
    const backlog = new Backlog({ calls, renewals })
    t.teardown(() => { backlog.stop() })
    lease.to('committing')
    backlog.add(lease, COMPLETE, new Error('away'))
    await asked.promise
    const before = [...sent]
    backlog.delete(lease)
    answer.open()
    await heard.promise
    await turn()
    await backlog.idle()
    t.same(sent, before)
  })
}

function fail (): boolean {
  throw new Error('away')
}

function pass (): boolean {
  return true
}
