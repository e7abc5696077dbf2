import { evaluateClaim, inProgress, type Verdict } from '../protocol/verdict.ts'
import type { Backlog } from './backlog.ts'
import { commit, type Ending, type LeaseDeps } from './commit.ts'
import type { Lease } from './lease.ts'

export interface SettleDeps extends LeaseDeps {
  backlog: Backlog
}

/**
 * Commits the ending of a lease, or leaves it to the backlog. `done` is called when the reply may leave; `instead`:
 * the lease was lost, and the client must see this in the reply's place.
 */
export function settle (deps: SettleDeps, lease: Lease, ending: Ending, done: (instead?: Verdict) => void): void {
  const { holder } = lease
  deps.backlog.delete(lease)
  commit(deps, lease, ending, (error, taken) => {
    if (error === null) {
      return done(taken === undefined ? undefined : evaluateClaim(taken, holder.knownFingerprint(), holder.route))
    }
    // Refused and nobody knows why, or silent for a lease: the reply may be a second outcome, so it must not be seen.
    const doubtful = lease.lost || lease.isOverdue()
    deps.backlog.add(lease, ending, error)
    done(doubtful ? { refuse: inProgress(holder.route) } : undefined)
  })
}
