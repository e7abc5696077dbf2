/** What the steps of a store cost, in CPU of this process. */
import { randomUUID } from 'node:crypto'
import type { IdempotencyStore } from '../../lib/index.ts'
import { DAY, keyOf, LEASE, outcome } from './kept.ts'
import { cpu } from './loop.ts'
import { verify } from './figures.ts'

/** With a store that answers later, as many steps are under way at once. */
const AT_ONCE = 50

/** Microseconds for the claim of one of the keys `from` up to `to`, all of which are kept; `times` of them, any. */
export async function costOfReplay (store: IdempotencyStore, from: number, to: number, times: number): Promise<number> {
  const request = { token: randomUUID(), lease: LEASE, ttl: DAY, takeover: true }
  const keys = Array.from({ length: times }, () => keyOf(Math.floor(from + Math.random() * (to - from))))
  let replays = 0
  const before = cpu()
  await each(times, async i => {
    const pending = store.claim(keys[i] ?? '', request)
    const claim = pending instanceof Promise ? await pending : pending
    if (claim.outcome === 'completed' && claim.result.body.length === 300) replays++
  })
  const used = cpu() - before
  verify(replays === times, `A store lost kept keys: of ${times} it replays`, replays)
  return used / times
}

/** Microseconds for the claim and the outcome of a fresh key; keeps the keys `from` up to `from + times`. */
export async function costOfFresh (store: IdempotencyStore, from: number, times: number): Promise<number> {
  const fresh = Array.from(
    { length: times }, (_, i) => ({ key: keyOf(from + i), token: randomUUID(), kept: outcome(from + i) })
  )
  const before = cpu()
  await each(times, async i => {
    const { key, token, kept } = fresh[i] as typeof fresh[number]
    const pending = store.claim(key, { token, lease: LEASE, ttl: DAY, takeover: true })
    const { outcome } = pending instanceof Promise ? await pending : pending
    verify(outcome === 'acquired', 'A fresh key must be free', outcome)
    const completed = store.complete(key, token, kept, DAY)
    verify(completed instanceof Promise ? await completed : completed, 'An outcome was refused')
  })
  return (cpu() - before) / times
}

export async function each (times: number, step: (index: number) => Promise<unknown>): Promise<void> {
  let next = 0
  await Promise.all(Array.from({ length: AT_ONCE }, async () => { while (next < times) await step(next++) }))
}
