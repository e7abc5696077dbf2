import { publish } from '../events.ts'
import { matches } from '../protocol/fingerprint.ts'
import { acceptedIn, type IdempotencyStore, type StoreClaim, type StoreOutcome } from '../stores/contract.ts'
import type { Taken } from '../protocol/verdict.ts'
import type { Lease } from './lease.ts'
import type { Renewals } from './renewal.ts'
import type { Operation, StoreCalls } from './store-calls.ts'

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
export abstract class Commit<Deps extends LeaseDeps = LeaseDeps> implements Operation<boolean> {
  protected readonly deps: Deps
  protected readonly lease: Lease
  protected readonly ending: Ending
  #number = 0
  #round = 1

  constructor (deps: Deps, lease: Lease, ending: Ending) {
    this.deps = deps
    this.lease = lease
    this.ending = ending
  }

  /** `taken`: another request has the key, and this is what came of it. */
  protected abstract committed (error: unknown, taken?: Taken): void

  start (): void {
    const { lease } = this
    // Releasing twice would meet the next holder.
    if (lease.state === 'released' && this.ending.outcome === undefined) return this.committed(null)
    lease.to('committing')
    this.#number = ++lease.commits
    if (lease.writing) lease.whenIdle(() => this.#begin())
    else this.#begin()
  }

  get #isLast (): boolean {
    return this.#number === this.lease.commits
  }

  #begin (): void {
    if (!this.#isLast) return this.committed(null)
    this.lease.writing = true
    this.deps.calls.run(this)
  }

  send (store: IdempotencyStore): unknown {
    const { lease, ending: { outcome } } = this
    const { holder } = lease
    const { storeKey, token, route } = holder
    if (outcome !== undefined) return store.complete(storeKey, token, outcome, route.ttl)
    // An outcome that was written before has dropped the steps, and so has a store that was emptied.
    const binding = holder.binding(lease.commits > 1 || this.#round > 1)
    return store.release(storeKey, token, route.ttl, holder.started, binding)
  }

  check (answer: unknown): boolean {
    return acceptedIn(answer)
  }

  answered (error: unknown, accepted?: boolean): void {
    if (error !== null || accepted === true) return this.#end(error)
    if (this.#round > MAX_ROUNDS) {
      return this.#end(new Error('The store grants the key to this token, and then refuses it'))
    }
    this.#learnWhy()
  }

  /**
   * The token was rejected: claims again to learn why: a winner's response, somebody who runs now, or nobody (the
   * store has lost the record), and then the outcome is written again.
   */
  #learnWhy (): void {
    const { deps, lease } = this
    const { holder } = lease
    const { storeKey, token, route } = holder
    lease.lose()
    deps.calls.claim(storeKey, { token, lease: route.lease, ttl: route.ttl, takeover: true }, (error, claim) => {
      if (error !== null) return this.#end(error)
      const found = claim as StoreClaim
      if (found.outcome !== 'acquired') return this.#end(null, found)
      const { attempt, fingerprint = '' } = found
      if (fingerprint !== '' && !matches(fingerprint, holder.knownFingerprint())) {
        // Freed meanwhile by another request, to which it stays bound.
        return deps.calls.release(
          storeKey, token, route.ttl, false, undefined,
          error => this.#end(error, { outcome: 'held', attempt, fingerprint })
        )
      }
      lease.lost = false
      this.#round++
      deps.calls.run(this)
    })
  }

  #end (error: unknown, taken?: Taken): void {
    const { deps, lease } = this
    lease.writing = false
    if (!this.#isLast) {
      this.committed(null)
    } else if (error !== null) {
      this.committed(error)
    } else {
      if (taken === undefined) recordCommitted(lease, this.ending)
      else lease.to('superseded')
      deps.renewals.delete(lease)
      this.committed(null, taken)
    }
    lease.idle()
  }
}

/** A commit that tells a function what came of it. */
class ToldCommit extends Commit {
  readonly #done: Committed

  constructor (deps: LeaseDeps, lease: Lease, ending: Ending, done: Committed) {
    super(deps, lease, ending)
    this.#done = done
  }

  protected override committed (error: unknown, taken?: Taken): void {
    this.#done(error, taken)
  }
}

export function commit (deps: LeaseDeps, lease: Lease, ending: Ending, done: Committed): void {
  new ToldCommit(deps, lease, ending, done).start()
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
