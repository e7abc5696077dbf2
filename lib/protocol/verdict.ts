import type { StoreClaim, StoreOutcome } from '../stores/contract.ts'
import { IdempotencyError } from './errors.ts'
import { difference, matches } from './fingerprint.ts'

/** What a request gets whose key somebody else has: the kept response, or a refusal. */
export type Verdict = { replay: StoreOutcome } | { refuse: IdempotencyError }
export type Taken = Exclude<StoreClaim, { outcome: 'acquired' }>

/** `fingerprint` is this request's own; '' where it could not be compared. `retryAfter`: seconds. */
export function evaluateClaim (claim: Taken, fingerprint: string, retryAfter: number): Verdict {
  const known = fingerprintIn(claim)
  if (known !== '' && !matches(known, fingerprint)) return { refuse: mismatch(known, fingerprint) }
  if (claim.outcome === 'held') return { refuse: inProgress(retryAfter) }
  if (claim.outcome === 'abandoned') return { refuse: outcomeUnknown() }
  return claim.result.replayable ? { replay: claim.result } : { refuse: unavailable(claim.result.status) }
}

/** The fingerprint of the request that has the key; '' where it is not known yet. */
export function fingerprintIn (claim: Taken): string {
  return claim.outcome === 'completed' ? claim.result.fingerprint : claim.fingerprint
}

/** Whether the body must be read before the claim can be evaluated. */
export function needsBody (claim: Taken): boolean {
  return claim.outcome === 'completed' || claim.fingerprint !== ''
}

export function inProgress (retryAfter: number): IdempotencyError {
  return new IdempotencyError('idempotency_in_progress',
    'A request with this Idempotency-Key is still running. Retry later.', { retryAfter })
}

function outcomeUnknown (): IdempotencyError {
  return new IdempotencyError('idempotency_outcome_unknown',
    'The first request with this Idempotency-Key was interrupted; whether it took effect is unknown. ' +
    'Look before you send it again with a fresh key.')
}

function unavailable (status: number): IdempotencyError {
  return new IdempotencyError('idempotency_response_unavailable',
    `The first request with this Idempotency-Key was answered with status ${status}, but its response could ` +
    'not be kept. It is not run again.')
}

export function mismatch (known: string, fingerprint: string): IdempotencyError {
  const what = difference(known, fingerprint)
  return new IdempotencyError('idempotency_key_mismatch',
    `The Idempotency-Key was reused with a different ${what === 'body' ? 'request body' : what}. ` +
    'Use a fresh key for distinct requests.')
}
