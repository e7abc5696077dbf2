import { matches } from '../protocol/fingerprint.ts'
import { evaluateClaim, inProgress, mismatch, type Taken, type Verdict } from '../protocol/verdict.ts'
import type { Backlog } from './backlog.ts'
import { Commit, type Ending, type LeaseDeps } from './commit.ts'
import type { Holder, Lease } from './lease.ts'

export interface SettleDeps extends LeaseDeps {
  backlog: Backlog
}

/**
 * Commits the ending of a lease, or leaves it to the backlog. `done` is called when the reply may leave; `instead`:
 * the lease was lost, and the client must see this in the reply's place.
 */
export function settle (deps: SettleDeps, lease: Lease, ending: Ending, done: (instead?: Verdict) => void): void {
  const { holder } = lease
  const foreign = ofAnother(holder, ending)
  if (foreign !== undefined) {
    return settle(deps, lease, { ...ending, outcome: undefined }, instead => done(instead ?? foreign))
  }
  deps.backlog.delete(lease)
  new Settlement(deps, lease, ending, done).start()
}

class Settlement extends Commit<SettleDeps> {
  readonly #done: (instead?: Verdict) => void

  constructor (deps: SettleDeps, lease: Lease, ending: Ending, done: (instead?: Verdict) => void) {
    super(deps, lease, ending)
    this.#done = done
  }

  protected override committed (error: unknown, taken?: Taken): void {
    const { deps, lease, ending } = this
    const { holder } = lease
    if (error === null) {
      return this.#done(taken === undefined ? undefined : evaluateClaim(taken, holder.knownFingerprint(), holder.route))
    }
    // Refused and nobody knows why, or silent for a lease: the reply may be a second outcome, so it must not be seen.
    const doubtful = lease.lost || lease.isOverdue()
    deps.backlog.add(lease, ending, error)
    this.#done(doubtful ? { refuse: inProgress(holder.route) } : undefined)
  }
}

/**
 * The refusal in the place of an outcome of another request than the one that the key is bound to: its handler has
 * read the body itself, so that it could not be compared before.
 */
function ofAnother ({ boundTo, route }: Holder, { outcome }: Ending): Verdict | undefined {
  if (outcome === undefined || boundTo === '' || matches(boundTo, outcome.fingerprint)) return undefined
  return { refuse: mismatch(boundTo, outcome.fingerprint, route.keyName) }
}
