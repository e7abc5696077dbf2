import { setTimeout as sleep } from 'node:timers/promises'

/** Sends one operation until there is an answer, with nothing but `fetch`. See the README, "How to write a client". */

export interface Answer {
  status: number
  headers: Headers
  text: string
  /** The answer of an earlier attempt, whose response was lost. */
  replayed: boolean
  attempts: number
}

export interface SendOptions {
  /** Of the operation. Store it with the operation before the first attempt, so that it survives a restart. */
  key?: string
  method?: 'POST' | 'PATCH'
  headers?: Record<string, string>
  /** Gives up when it aborts. */
  signal?: AbortSignal
  /** ms for one attempt, its body included. */
  attemptTimeout?: number
  /** ms for all attempts and the waits between them. */
  deadline?: number
  /** ms of the first backoff, at most; it doubles with each attempt, up to `maxDelay`. */
  minDelay?: number
  maxDelay?: number
  onRetry?: (retry: { attempt: number, why: string, delay: number }) => void
  /** For tests. */
  clock?: Clock
}

export interface Clock {
  now: () => number
  random: () => number
  sleep: (ms: number, signal?: AbortSignal) => Promise<unknown>
  timeout: (ms: number) => AbortSignal
}

const realClock: Clock = {
  now: Date.now,
  random: Math.random,
  sleep: async (ms, signal) => await sleep(ms, undefined, signal === undefined ? {} : { signal }),
  timeout: AbortSignal.timeout
}

/**
 * `none`: it certainly did nothing. `done`: it ran to its end, with an answer that is lost. `unknown`: look before
 * you send it with another key.
 */
export type Effect = 'none' | 'unknown' | 'done'

/** There will be no answer to this operation. */
export class SendError extends Error {
  override readonly name = 'SendError'

  constructor (
    message: string, readonly effect: Effect, readonly key: string, readonly attempts: number, options?: ErrorOptions
  ) {
    super(`${message} (attempts: ${attempts}, key: ${key}). ${EFFECTS[effect]}`, options)
  }
}

const EFFECTS = {
  none: 'It did not take effect.',
  unknown: 'It may have taken effect: send it again with the same key, or look.',
  done: 'It ran to its end, but its answer cannot be had: read the resource instead.'
}

/** The plugin's refusals that no retry cures, and what is known of the operation then, whatever went before. */
const FINAL: Record<string, Effect | undefined> = {
  idempotency_key_invalid: undefined,
  idempotency_key_missing: undefined,
  idempotency_key_mismatch: undefined,
  idempotency_outcome_unknown: 'unknown',
  idempotency_response_unavailable: 'done'
}

/** These never reached an application that could have run something. */
const UNSENT = ['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN']

/**
 * Resolves with the operation's answer, which may be a 4xx.
 * @throws {SendError} when there is none.
 */
export async function send (url: string | URL, operation: unknown, options: SendOptions = {}): Promise<Answer> {
  const {
    key = crypto.randomUUID(), method = 'POST', signal, attemptTimeout = 10_000,
    deadline = 60_000, minDelay = 200, maxDelay = 10_000, onRetry, clock = realClock
  } = options
  const headers = { 'content-type': 'application/json', ...options.headers, 'idempotency-key': key }
  // Once: every attempt sends the same bytes.
  const body = JSON.stringify(operation)
  const end = clock.now() + deadline
  const aborted = (): boolean => signal?.aborted === true
  let mayHaveRun = false

  for (let attempt = 1; ; attempt++) {
    let why: string
    let retryAfter = 0
    let cause: unknown
    const giveUp = (message: string, effect?: Effect): SendError =>
      new SendError(message, effect ?? (mayHaveRun ? 'unknown' : 'none'), key, attempt, { cause })

    if (aborted()) {
      throw new SendError('Aborted', mayHaveRun ? 'unknown' : 'none', key, attempt - 1, { cause: signal?.reason })
    }
    try {
      const timeout = clock.timeout(Math.max(1, Math.min(attemptTimeout, end - clock.now())))
      const response = await fetch(url, {
        method,
        headers,
        body,
        redirect: 'manual',
        signal: signal === undefined ? timeout : AbortSignal.any([signal, timeout])
      })
      // A response that is cut off within its body has not been received.
      const text = await response.text()
      const { status } = response
      const replayed = response.headers.get('idempotent-replayed') === 'true'
      const code = codeOf(text)
      if (code in FINAL) throw giveUp(`Refused with ${status} ${code}`, FINAL[code])
      // A 5xx that is replayed was kept on purpose: it stays.
      const retry = code === 'idempotency_in_progress' || status === 429 || (status >= 500 && !replayed)
      if (!retry) return { status, headers: response.headers, text, replayed, attempts: attempt }
      why = `${status} ${code}`.trim()
      retryAfter = retryAfterOf(response.headers, clock.now())
      mayHaveRun ||= status !== 429 && code !== 'idempotency_store_unavailable'
    } catch (error) {
      if (error instanceof SendError) throw error
      cause = error
      const { name, message, cause: reason } = error as Error & { cause?: { code?: string } }
      why = name === 'TimeoutError' ? 'timeout' : reason?.code ?? message
      mayHaveRun ||= !UNSENT.includes(why)
      if (aborted()) throw giveUp('Aborted')
    }

    // Full jitter; where the server has named a time, after that.
    const delay = retryAfter + clock.random() * Math.min(maxDelay, minDelay * 2 ** (attempt - 1))
    if (clock.now() + delay >= end) throw giveUp(`Gave up after ${why}`)
    onRetry?.({ attempt, why, delay })
    // An abort is seen at the loop's head.
    await clock.sleep(delay, signal).catch(() => {})
  }
}

/** The stable code of the plugin's answers, in the envelope and in problem details alike; else ''. */
function codeOf (text: string): string {
  try {
    const { code } = JSON.parse(text) as { code?: unknown }
    return typeof code === 'string' && code.startsWith('idempotency_') ? code : ''
  } catch {
    return ''
  }
}

/** ms from now, of seconds and of a date. */
function retryAfterOf (headers: Headers, now: number): number {
  const value = headers.get('retry-after') ?? ''
  const ms = /^\d+$/.test(value) ? Number(value) * 1_000 : Date.parse(value) - now
  return ms > 0 ? ms : 0
}
