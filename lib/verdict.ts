import { difference } from './fingerprint.ts'
import { IdempotencyError } from './errors.ts'
import type { Exchange } from './exchange.ts'
import type { Claim, Outcome } from './store.ts'

/** The questions of the protocol as pure functions; nothing here touches a store or a reply. */

export type Verdict = { replay: Outcome } | { refuse: IdempotencyError }
type Taken = Exclude<Claim, { outcome: 'acquired' }>

/** What a request gets whose key somebody else has taken; `fingerprint` is this request's own. */
export function judge (claim: Taken, fingerprint: string, retryAfter: number): Verdict {
  const known = claim.outcome === 'completed' ? claim.result.fingerprint : claim.fingerprint
  if (known !== '' && known !== fingerprint) return { refuse: mismatch(known, fingerprint) }
  if (claim.outcome === 'held') return { refuse: inProgress(retryAfter) }
  if (claim.outcome === 'abandoned') return { refuse: new IdempotencyError('idempotency_outcome_unknown', 'The first request with this Idempotency-Key was interrupted; whether it took effect is unknown. Look before you send it again with a fresh key.') }
  if (claim.result.replayable) return { replay: claim.result }
  return { refuse: new IdempotencyError('idempotency_response_unavailable', `The first request with this Idempotency-Key was answered with status ${claim.result.status}, but its response could not be kept. It is not run again.`) }
}

/** Whether the body must be read before the question can be answered. */
export function needsBody (claim: Taken): boolean {
  return claim.outcome === 'completed' || claim.fingerprint !== ''
}

export function inProgress (retryAfter: number): IdempotencyError {
  return new IdempotencyError('idempotency_in_progress', 'A request with this Idempotency-Key is still running. Retry later.', { retryAfter })
}

function mismatch (known: string, fingerprint: string): IdempotencyError {
  const what = difference(known, fingerprint)
  return new IdempotencyError('idempotency_key_mismatch', `The Idempotency-Key was reused with a different ${what === 'body' ? 'request body' : what}. Use a fresh key for distinct requests.`)
}

/**
 * What becomes of the key when a reply is on its way. `leave`: the handler may still run.
 * `wait`: it depends on whether the rest of the body arrives.
 */
export function settlement (exchange: Exchange, status: number): 'keep' | 'free' | 'leave' | 'wait' {
  const { body, letThrough, refusedBody, handler, timedOut } = exchange
  if (timedOut) return 'leave'
  if (!isCacheable(exchange, status) || !letThrough || refusedBody) return 'free'
  if (body.whole) return 'keep'
  return handler === 'none' ? 'free' : 'wait'
}

/** Whether a reply with this status is an outcome: the handler's word counts before the route's. */
export function isCacheable ({ override, route }: Exchange, status: number): boolean {
  return override === undefined ? route.cacheable(status) : override === 'keep'
}
