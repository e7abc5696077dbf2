/**
 * The store contract: one key moves through `absent → held → completed`, with
 * `held → freed`, and `held → held by another` once the lease has passed.
 *
 * Every operation is one atomic step. Every step after `claim` names the token of the
 * claim and is refused (`false`) unless the record still carries that token. Each method
 * may answer at once or with a promise; a failure is a throw or a rejection.
 */
export interface IdempotencyStore {
  /**
   * Takes the key if it is absent, freed, already ours (same token: the lease starts anew), or its lease has passed.
   */
  claim (key: string, request: StoreClaimRequest): StoreAnswer<StoreClaim>
  /**
   * Extends the lease to `lease` ms from now; keeps `fingerprint`, unless '', for duplicates to compare with.
   * `bind`: the key is bound to `fingerprint` from now on. A key that is bound already keeps its fingerprint.
   */
  renew (
    key: string, token: string, lease: number, ttl: number, fingerprint: string, bind?: boolean
  ): StoreAnswer<boolean>
  /**
   * Keeps the outcome for `ttl` ms from now. Repeating it with the same token replaces the outcome. What the key was
   * bound to, and its recorded steps, are dropped.
   */
  complete (key: string, token: string, outcome: StoreOutcome, ttl: number): StoreAnswer<boolean>
  /**
   * Frees the key for the next claim. The count of attempts is remembered for `ttl` ms; this one counts if it was
   * `executed`. A key that is bound stays so, with its recorded steps; one that is not is bound by `binding`.
   */
  release (key: string, token: string, ttl: number, executed: boolean, binding?: StoreBinding): StoreAnswer<boolean>
  /** What is known of a key, or `undefined`. */
  read (key: string): StoreAnswer<StoreEntry | undefined>
  /** Forgets a key whatever its state, with its recorded steps; `false` if there was none. */
  remove (key: string): StoreAnswer<boolean>
  /**
   * Records that a step has begun (`result` is undefined), or its result, and binds the key to `fingerprint`. The
   * first result of a name stands, and replaces its beginning; what stands is answered. It never makes a key, never
   * changes a completed or freed one, and never the lease.
   *
   * The token must hold the key, though its lease may have passed. A result, but not a beginning, is also taken from
   * a token that holds it no more (an execution that was frozen, and comes late), while another token holds the key
   * and its fingerprint is `fingerprint`. Everything else is `lost`, a key that is bound to another fingerprint too.
   *
   * For `request.idempotency.step`, which rejects where a store lacks `record` or `recorded`.
   */
  record? (
    key: string, token: string, fingerprint: string, name: string, result: string | undefined
  ): StoreAnswer<StoreRecording>
  /** All that is recorded under a key that is held or freed, in any order; else nothing. */
  recorded? (key: string): StoreAnswer<StoreStep[]>
  /**
   * Calls `changed` once, soon, when the key is not held (any more); returns what stops it.
   * For `inFlight: { wait }`; a store without it is polled.
   */
  watch? (key: string, changed: () => void): () => void
  /** Called once when the Fastify instance has closed. */
  close? (): StoreAnswer<void>
}

export type StoreAnswer<T> = T | Promise<T>

export interface StoreClaimRequest {
  /** Unique to this claim: whoever carries it holds the key. */
  token: string
  /** Milliseconds after which a holder that has gone silent may be replaced. */
  lease: number
  /** Milliseconds that a record left by a dead holder is remembered after its lease. */
  ttl: number
  /** Whether a key whose holder has died may be taken over; `false` answers `abandoned`. */
  takeover: boolean
}

export type StoreClaim =
  | {
    outcome: 'acquired'
    attempt: number
    /** The lease of a dead holder had passed. */
    takeover: boolean
    /** What the key is bound to; '' or `undefined` where it is not. It stays bound, with its steps. */
    fingerprint?: string | undefined
  }
  | { outcome: 'held', attempt: number, fingerprint: string }
  | { outcome: 'abandoned', attempt: number, fingerprint: string }
  | { outcome: 'completed', attempt: number, result: StoreOutcome }

/** A kept response. Without `replayable`, only the fact that the request was answered with `status`. */
export interface StoreOutcome {
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

/** Room for the header lines of most responses: V8 gives an array that grows from nothing room for 17. */
export function newHeaders (): StoreOutcome['headers'] {
  return new Array<StoreOutcome['headers'][0]>(4)
}

/**
 * A step under a key. Names are not empty but for one of the plugin's own; results are text, which means nothing to
 * a store and may be empty. All of a key take 64 KiB at most in one execution, names included.
 */
export interface StoreStep {
  name: string
  /** `undefined`: the step has begun, and nobody knows its end. */
  result: string | undefined
}

/**
 * A key is bound to the request whose steps it has, or whose derived keys are in use: it is another request's only
 * once it was completed, removed, or has expired.
 */
export interface StoreBinding {
  fingerprint: string
  /** What is recorded; none where only derived keys are in use. */
  steps: readonly StoreStep[]
}

/** What came of recording a step. */
export type StoreRecording =
  /** This is what stands now. */
  | { outcome: 'recorded' }
  /** This stood before, and stands: a result, or a beginning (`undefined`). */
  | { outcome: 'known', result: string | undefined }
  /** The key is not this execution's any more, and nothing was recorded. */
  | { outcome: 'lost' }

export interface StoreEntry {
  state: 'held' | 'freed' | 'completed'
  /** Executions of this key so far, takeovers and freed failures included. */
  attempt: number
  /** When this state began, ms since the epoch by the store's clock. */
  since: number
  /** When the lease (held) or the record ends, ms since the epoch by the store's clock. */
  until: number
  /** The kept outcome; `undefined` unless completed. */
  result: StoreOutcome | undefined
}

const METHODS = ['claim', 'renew', 'complete', 'release', 'read', 'remove'] as const

/** @throws {TypeError} naming the first method that `store` lacks. */
export function assertStore (store: unknown): asserts store is IdempotencyStore {
  for (const method of METHODS) {
    if (typeof (store as Record<string, unknown> | null)?.[method] !== 'function') {
      throw new TypeError(
        `fastify-idempotency: option "store" must be an object of the store contract; it has no method "${method}"`
      )
    }
  }
}

const OUTCOMES: ReadonlySet<unknown> = new Set(['acquired', 'held', 'abandoned', 'completed'])

/**
 * A store's answer to a claim, once it is one. Only what a store can mean counts as a grant: a client inside a
 * transaction answers `QUEUED`, and a store of one's own may answer anything.
 * @throws {StoreAnswerError} when it is none.
 */
export function claimIn (answer: unknown): StoreClaim {
  const { outcome, attempt, fingerprint, result } = (answer ?? {}) as Record<string, unknown>
  const valid = OUTCOMES.has(outcome) && Number.isSafeInteger(attempt) && (outcome === 'acquired'
    ? isText(fingerprint)
    : outcome === 'completed' ? isOutcome(result) : typeof fingerprint === 'string')
  if (!valid) throw new StoreAnswerError('a claim')
  return answer as StoreClaim
}

/** A store's answer to a step after the claim. @throws {StoreAnswerError} unless it is true or false. */
export function acceptedIn (answer: unknown): boolean {
  if (typeof answer !== 'boolean') throw new StoreAnswerError('a step')
  return answer
}

const RECORDINGS: ReadonlySet<unknown> = new Set(['recorded', 'known', 'lost'])

/** A store's answer to `record`. @throws {StoreAnswerError} when it is none. */
export function recordingIn (answer: unknown): StoreRecording {
  const { outcome, result } = (answer ?? {}) as Record<string, unknown>
  if (!RECORDINGS.has(outcome) || !isText(result)) throw new StoreAnswerError('a step to be recorded')
  return answer as StoreRecording
}

/** A store's answer to `recorded`. @throws {StoreAnswerError} when it is none. */
export function stepsIn (answer: unknown): StoreStep[] {
  const isStep = (step: Partial<StoreStep> | null): boolean => typeof step?.name === 'string' && isText(step.result)
  if (!Array.isArray(answer) || !answer.every(isStep)) throw new StoreAnswerError('the question for recorded steps')
  return answer as StoreStep[]
}

function isText (value: unknown): boolean {
  return value === undefined || typeof value === 'string'
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
