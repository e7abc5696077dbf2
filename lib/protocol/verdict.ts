import type { StoreClaim, StoreOutcome } from '../stores/contract.ts'
import { IdempotencyError } from './errors.ts'
import { difference, matches } from './fingerprint.ts'

/** What a request gets whose key somebody else has: the kept response, or a refusal. */
export type Verdict = { replay: StoreOutcome } | { refuse: IdempotencyError }
export type Taken = Exclude<StoreClaim, { outcome: 'acquired' }>

/** What the texts of verdicts depend on. */
export interface Wording {
  /** What the key is called. */
  readonly keyName: string
  /** Seconds. */
  readonly retryAfter: number
}

/** `fingerprint` is this request's own; '' where it could not be compared. */
export function evaluateClaim (claim: Taken, fingerprint: string, wording: Wording): Verdict {
  const { keyName } = wording
  const known = fingerprintIn(claim)
  if (known !== '' && !matches(known, fingerprint)) return { refuse: mismatch(known, fingerprint, keyName) }
  if (claim.outcome === 'held') return { refuse: inProgress(wording) }
  if (claim.outcome === 'abandoned') return { refuse: outcomeUnknown(keyName) }
  return claim.result.replayable ? { replay: claim.result } : { refuse: unavailable(claim.result.status, keyName) }
}

/** The fingerprint of the request that has the key; '' where it is not known yet. */
export function fingerprintIn (claim: Taken): string {
  return claim.outcome === 'completed' ? claim.result.fingerprint : claim.fingerprint
}

/** Whether the body must be read before the claim can be evaluated. */
export function needsBody (claim: Taken): boolean {
  return claim.outcome === 'completed' || claim.fingerprint !== ''
}

export function inProgress ({ keyName, retryAfter }: Wording): IdempotencyError {
  return new IdempotencyError('idempotency_in_progress',
    `A request with this ${keyName} is still running. Retry later.`, { retryAfter })
}

function outcomeUnknown (keyName: string): IdempotencyError {
  return new IdempotencyError('idempotency_outcome_unknown',
    `The first request with this ${keyName} was interrupted; whether it took effect is unknown. ` +
    'Look before you send it again with a fresh key.')
}

function unavailable (status: number, keyName: string): IdempotencyError {
  return new IdempotencyError('idempotency_response_unavailable',
    `The first request with this ${keyName} was answered with status ${status}, but its response could ` +
    'not be kept. It is not run again.')
}

export function mismatch (known: string, fingerprint: string, keyName: string): IdempotencyError {
  const what = difference(known, fingerprint)
  return new IdempotencyError('idempotency_key_mismatch',
    `The ${keyName} was reused with a different ${what === 'body' ? 'request body' : what}. ` +
    'Use a fresh key for distinct requests.')
}
