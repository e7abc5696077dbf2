import type { FastifyRequest } from 'fastify'
import t from 'tap'
import { Lease, TRANSITIONS, type Holder, type LeaseState } from '../lib/lease/lease.ts'
import { Renewals } from '../lib/lease/renewal.ts'
import { StoreCalls } from '../lib/lease/store-calls.ts'
import type { IdempotencyStore } from '../lib/index.ts'

const STATES = Object.keys(TRANSITIONS) as LeaseState[]
const request = { log: { warn () {} } } as unknown as FastifyRequest

/** The states in between, from the first one to `goal`; `undefined` where the table has no way. */
function wayTo (goal: LeaseState): LeaseState[] | undefined {
  const ways: LeaseState[][] = [['held']]
  for (const way of ways) {
    const last = way.at(-1) as LeaseState
    if (last === goal) return way.slice(1)
    for (const next of TRANSITIONS[last]) {
      if (!ways.some(other => other.includes(next))) ways.push([...way, next])
    }
  }
  return undefined
}

function leaseIn (state: LeaseState): Lease {
  const holder: Holder = {
    key: 'key',
    id: 'id',
    attempt: 1,
    heldSince: 0,
    request,
    storeKey: 'id',
    token: 'token',
    started: true,
    bodyLength: 0,
    route: { lease: 1_000, ttl: 1_000, retryAfter: 1, keyName: 'Idempotency-Key' },
    boundTo: '',
    binds: false,
    knownFingerprint: () => '',
    binding: () => undefined
  }
  const lease = new Lease(holder, 0)
  for (const next of wayTo(state) ?? []) lease.to(next)
  return lease
}

t.test('a lease begins as held, and every state can be reached', async t => {
  t.equal(leaseIn('held').state, 'held')
  for (const state of STATES) t.ok(wayTo(state), state)
})

for (const from of STATES) {
  t.test(`a lease that is ${from} goes where the table says, and nowhere else`, async t => {
    for (const to of STATES) {
      const lease = leaseIn(from)
      if (TRANSITIONS[from].includes(to)) {
        lease.to(to)
        t.equal(lease.state, to)
      } else {
        t.throws(() => { lease.to(to) }, new Error(`A lease cannot go from ${from} to ${to}`))
        t.equal(lease.state, from, 'a refused transition changes nothing')
      }
    }
  })
}

t.test('G2: a lease that was superseded or given up is final; one that was committed is only over', async t => {
  const final = STATES.filter(state => leaseIn(state).isFinal)
  const over = STATES.filter(state => leaseIn(state).isOver)
  t.same(final, ['superseded', 'given-up'])
  t.same(over, ['completed', 'released', 'superseded', 'given-up'])
  t.same(final, STATES.filter(state => TRANSITIONS[state].length === 0))
  for (const state of ['backlogged', 'completed', 'released', 'superseded'] as const) {
    t.same(
      STATES.filter(from => TRANSITIONS[from].includes(state)), ['committing'], `only a commit makes a lease ${state}`
    )
  }
})

t.test('a lease that is given up cannot be given up twice, and aborts the signal', async t => {
  const lease = leaseIn('held')
  const { signal } = lease
  lease.giveUp()
  t.ok(signal.aborted)
  t.throws(() => { lease.giveUp() })
})

t.test('G2: a holder whose lease must have passed does not say what body the key has', t => {
  const never = new StoreCalls({ renew: async () => await new Promise(() => {}) } as unknown as IdempotencyStore, 1_000)
  const renewals = new Renewals(never, () => {})
  t.teardown(() => renewals.stop())
  const { holder } = leaseIn('held')
  const known = { ...holder, storeKey: 'k', knownFingerprint: () => 'known' }
  const lease = new Lease(known, performance.now() - holder.route.lease)
  renewals.add(lease)
  t.equal(renewals.fingerprintOf('k'), '')
  renewals.delete(lease)
  renewals.add(new Lease(known, performance.now()))
  t.equal(renewals.fingerprintOf('k'), 'known')
  t.end()
})
