import { publish } from '../events.ts'
import { matches } from '../protocol/fingerprint.ts'
import type { StoreClaim, StoreOutcome } from '../stores/contract.ts'
import type { Taken } from '../protocol/verdict.ts'
import type { Lease } from './lease.ts'
import type { Renewals } from './renewal.ts'
import type { StoreCalls } from './store-calls.ts'

/** What committing needs. */
export interface LeaseDeps {
  calls: StoreCalls
  renewals: Renewals
}

/**
 * An outcome that is kept, or none: the key is released. `status`: of the reply that releases it, where there is one.
 */
export interface Ending {
  outcome: StoreOutcome | undefined
  status: number | undefined
}

/** `taken`: another request has the key, and this is what came of it. */
export type Committed = (error: unknown, taken?: Taken) => void

/**
 * A store that grants a key and then refuses its token breaks the contract; once may be an eviction between the two.
 */
const MAX_ROUNDS = 3

/**
 * Writes the ending of a lease to the store, and records what the store has said. Of several commits of one lease
 * the last decides: the answer to an earlier one changes nothing. One is sent at a time, since a store need not do
 * two in the order in which they were sent, and a late outcome would take the place of a release.
 */
export function commit (deps: LeaseDeps, lease: Lease, ending: Ending, done: Committed): void {
  // Releasing twice would meet the next holder.
  if (lease.state === 'released' && ending.outcome === undefined) return done(null)
  lease.to('committing')
  const number = ++lease.commits
  lease.whenIdle(() => {
    if (number !== lease.commits) return done(null)
    lease.writing = true
    write(deps, lease, ending.outcome, 1, (error, taken) => {
      lease.writing = false
      if (number !== lease.commits) {
        done(null)
      } else if (error !== null) {
        done(error)
      } else {
        if (taken === undefined) recordCommitted(lease, ending)
        else lease.to('superseded')
        deps.renewals.delete(lease)
        done(null, taken)
      }
      lease.idle()
    })
  })
}

/**
 * Writes the outcome; if the token is rejected, claims again to learn why: a winner's response, somebody who runs
 * now, or nobody (the store has lost the record), and then the outcome is written again.
 */
function write (
  deps: LeaseDeps, lease: Lease, outcome: StoreOutcome | undefined, round: number, done: Committed
): void {
  const { holder } = lease
  const { storeKey, token, route, started } = holder
  const written = (error: unknown, accepted?: boolean): void => {
    if (error !== null || accepted === true) return done(error)
    if (round > MAX_ROUNDS) return done(new Error('The store grants the key to this token, and then refuses it'))
    lease.lose()
    deps.calls.claim(storeKey, { token, lease: route.lease, ttl: route.ttl, takeover: true }, (error, claim) => {
      if (error !== null) return done(error)
      const found = claim as StoreClaim
      if (found.outcome !== 'acquired') return done(null, found)
      const { attempt, fingerprint = '' } = found
      if (fingerprint !== '' && !matches(fingerprint, holder.knownFingerprint())) {
        // Freed meanwhile by another request, to which it stays bound.
        return deps.calls.release(
          storeKey, token, route.ttl, false, undefined, error => done(error, { outcome: 'held', attempt, fingerprint })
        )
      }
      lease.lost = false
      write(deps, lease, outcome, round + 1, done)
    })
  }
  // An outcome that was written before has dropped the steps, and so has a store that was emptied.
  const binding = outcome === undefined ? holder.binding(lease.commits > 1 || round > 1) : undefined
  if (outcome === undefined) deps.calls.release(storeKey, token, route.ttl, started, binding, written)
  else deps.calls.complete(storeKey, token, outcome, route.ttl, written)
}

function recordCommitted (lease: Lease, { outcome, status }: Ending): void {
  const { holder } = lease
  const { request, id } = holder
  lease.to(outcome === undefined ? 'released' : 'completed')
  if (outcome === undefined) {
    publish('released', request, holder, status === undefined ? {} : { status })
  } else if (outcome.replayable) {
    publish('executed', request, holder, { status: outcome.status })
  } else {
    request.log.warn({
      idempotencyId: id, status: outcome.status
    }, 'idempotency: the response cannot be kept; retries get idempotency_response_unavailable')
    publish('unreplayable', request, holder, { status: outcome.status })
  }
}
