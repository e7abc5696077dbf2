/**
 * The store contract: one key moves through `absent → held → completed`, with
 * `held → freed`, and `held → held by another` once the lease has passed.
 *
 * Every operation is one atomic step. Every step after `claim` names the token of the
 * claim and is refused (`false`) unless the record still carries that token. Each method
 * may answer at once or with a promise; a failure is a throw or a rejection.
 */
export interface Store {
  /** Takes the key if it is absent, freed, already ours (same token: the lease starts anew), or its lease has passed. */
  claim (key: string, request: ClaimRequest): Awaitable<Claim>
  /** Extends the lease to `lease` ms from now; keeps `fingerprint`, unless '', for duplicates to compare with. */
  renew (key: string, token: string, lease: number, ttl: number, fingerprint: string): Awaitable<boolean>
  /** Keeps the outcome for `ttl` ms from now. Repeating it with the same token replaces the outcome. */
  complete (key: string, token: string, outcome: Outcome, ttl: number): Awaitable<boolean>
  /** Frees the key for the next claim. The count of attempts is remembered for `ttl` ms; this one counts if it was `executed`. */
  release (key: string, token: string, ttl: number, executed: boolean): Awaitable<boolean>
  /** What is known of a key, or `undefined`. */
  read (key: string): Awaitable<Entry | undefined>
  /** Forgets a key whatever its state; `false` if there was none. */
  remove (key: string): Awaitable<boolean>
  /**
   * Calls `changed` once, soon, when the key is not held (any more); returns what stops it.
   * For `inFlight: { wait }`; a store without it is polled.
   */
  watch? (key: string, changed: () => void): () => void
  /** Called once when the Fastify instance has closed. */
  close? (): Awaitable<void>
}

export type Awaitable<T> = T | Promise<T>

export interface ClaimRequest {
  /** Unique to this claim: whoever carries it holds the key. */
  token: string
  /** Milliseconds after which a holder that has gone silent may be replaced. */
  lease: number
  /** Milliseconds that a record left by a dead holder is remembered after its lease. */
  ttl: number
  /** Whether a key whose holder has died may be taken over; `false` answers `abandoned`. */
  takeover: boolean
}

export type Claim =
  | { outcome: 'acquired', attempt: number, /** The lease of a dead holder had passed. */ takeover: boolean }
  | { outcome: 'held', attempt: number, fingerprint: string }
  | { outcome: 'abandoned', attempt: number, fingerprint: string }
  | { outcome: 'completed', attempt: number, result: Outcome }

/** A kept response. Without `replayable`, only the fact that the request was answered with `status`. */
export interface Outcome {
  fingerprint: string
  status: number
  replayable: boolean
  /** Lower-case names, latin1 values (RFC 9110, section 5.5); a header sent on several lines has several. */
  headers: Array<[name: string, value: string | string[]]>
  /** A string stands for its UTF-8 bytes, and may come back as those. */
  body: string | Buffer
  /** The payload was a string: hooks that see a replay see one again. */
  text: boolean
}

export interface Entry {
  state: 'held' | 'freed' | 'completed'
  /** Executions of this key so far, takeovers and freed failures included. */
  attempt: number
  /** When this state began, ms since the epoch by the store's clock. */
  since: number
  /** When the lease (held) or the record ends, ms since the epoch by the store's clock. */
  until: number
  /** The kept outcome; `undefined` unless completed. */
  result: Outcome | undefined
}

const METHODS = ['claim', 'renew', 'complete', 'release', 'read', 'remove'] as const

/** @throws {TypeError} naming the first method that `store` lacks. */
export function assertStore (store: unknown): asserts store is Store {
  for (const method of METHODS) {
    if (typeof (store as Record<string, unknown> | null)?.[method] !== 'function') {
      throw new TypeError(`fastify-idempotency: option "store" must be an object of the store contract; it has no method "${method}"`)
    }
  }
}

const OUTCOMES: ReadonlySet<unknown> = new Set(['acquired', 'held', 'abandoned', 'completed'])

/**
 * A store's answer to a claim, once it is one. Only what a store can mean counts as a grant: a client inside a
 * transaction answers `QUEUED`, and a store of one's own may answer anything.
 * @throws {StoreAnswerError} when it is none.
 */
export function claimIn (answer: unknown): Claim {
  const { outcome, attempt, fingerprint, result } = (answer ?? {}) as Record<string, unknown>
  const valid = OUTCOMES.has(outcome) && Number.isSafeInteger(attempt) &&
    (outcome === 'acquired' || (outcome === 'completed' ? isOutcome(result) : typeof fingerprint === 'string'))
  if (!valid) throw new StoreAnswerError('a claim')
  return answer as Claim
}

/** A store's answer to a step after the claim. @throws {StoreAnswerError} unless it is true or false. */
export function acceptedIn (answer: unknown): boolean {
  if (typeof answer !== 'boolean') throw new StoreAnswerError('a step')
  return answer
}

/** The store has answered with something that the contract does not know; nothing runs on the strength of it. */
export class StoreAnswerError extends TypeError {
  override readonly name = 'StoreAnswerError'

  constructor (what: string) {
    super(`The store's answer to ${what} is none of the store contract's; ` +
      'a client that is inside a transaction, or shared with one, cannot be used')
  }
}

function isOutcome (value: unknown): boolean {
  const { fingerprint, status, headers, body } = (value ?? {}) as Record<string, unknown>
  return typeof fingerprint === 'string' && typeof status === 'number' && Array.isArray(headers) &&
    (typeof body === 'string' || Buffer.isBuffer(body))
}
