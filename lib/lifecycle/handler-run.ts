import type { HandlerProgress } from '../protocol/settlement.ts'
import type { Exchange } from './exchange.ts'

/**
 * How far a handler is. `callback`: it will call `reply.send`, or nothing. `promise`: its promise will settle.
 * `delegated`: it has ended, and given its reply to somebody who may send it later. `empty`: it has ended with nothing
 * to send. `ended`: it has ended otherwise.
 */
export type Phase = 'callback' | 'promise' | 'delegated' | 'empty' | 'ended'

/** What may follow each phase. */
export const PHASES: Readonly<Record<Phase, readonly Phase[]>> = {
  callback: ['promise', 'delegated', 'empty', 'ended'],
  promise: ['delegated', 'empty', 'ended'],
  delegated: ['delegated', 'empty', 'ended'],
  empty: [],
  ended: []
}

/** A handler that has begun; made for requests that hold their key. */
export class HandlerRun {
  #phase: Phase = 'callback'
  #replied = false
  /** The reply's `then` was called: whoever awaits it does not know yet what will be sent. */
  #returnedReply = false
  #delegatedAt = 0
  #unwatched: Promise<unknown> | undefined

  get phase (): Phase {
    return this.#phase
  }

  /** `reply.send` was called while the reply was the handler's to send. */
  get replied (): boolean {
    return this.#replied
  }

  /** When its phase became `delegated`, by the monotonic clock. */
  get delegatedAt (): number {
    return this.#delegatedAt
  }

  get hasEnded (): boolean {
    return this.#phase === 'empty' || this.#phase === 'ended'
  }

  /** A handler may do several things late, in any order: the first end counts, and what the table lacks is ignored. */
  to (phase: Phase): void {
    if (!PHASES[this.#phase].includes(phase)) return
    this.#phase = phase
    if (phase === 'delegated') this.#delegatedAt = performance.now()
  }

  noteReply (): void {
    this.#replied = true
  }

  noteReturnedReply (): void {
    this.#returnedReply = true
  }

  /** Keeps the handler's promise, whose end matters only once the response is over: most never need to be asked. */
  promised (promise: Promise<unknown>): void {
    this.to('promise')
    this.#unwatched = promise
  }

  /** Asks the handler's promise for its end, once. */
  watch (ended: (value: unknown) => void, failed: () => void): void {
    this.#unwatched?.then(ended, failed)
    this.#unwatched = undefined
  }

  /** The handler has ended, with `value` or without. */
  end (value: unknown): void {
    if (this.#returnedReply && !this.#replied) this.to('delegated')
    else this.to(value === undefined ? 'empty' : 'ended')
  }
}

/** How far the handler of a request is, for `whenOver`. */
export function progressOf ({ run, closedAt, route }: Exchange, now: number): HandlerProgress {
  if (run === undefined) return 'none'
  if (run.phase !== 'delegated' || run.replied) return run.phase
  return now - Math.max(closedAt, run.delegatedAt) >= route.lease ? 'silent' : 'delegated'
}
