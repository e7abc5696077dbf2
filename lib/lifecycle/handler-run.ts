import type { HandlerProgress } from '../protocol/settlement.ts'
import type { Exchange } from './exchange.ts'

/**
 * How far a handler is. `callback`: it will call `reply.send`, or nothing. `promise`: a promise will tell its end.
 * `delegated`: it has ended and given its reply to somebody who may send it later.
 */
type Phase = 'callback' | 'promise' | 'delegated' | 'empty' | 'ended'

/** A handler that has begun; made for requests that hold their key. */
export class HandlerRun {
  phase: Phase = 'callback'
  /** `reply.send` was called while the reply was the handler's to send. */
  replied = false
  /** The handler has given its reply to somebody who may send it later. */
  returnedReply = false
  /** When its phase became `delegated`, by the monotonic clock. */
  delegatedAt = 0

  /** The handler has ended, with `value` or without. */
  end (value: unknown): void {
    if (this.returnedReply && !this.replied) {
      this.phase = 'delegated'
      this.delegatedAt = performance.now()
    } else {
      this.phase = value === undefined ? 'empty' : 'ended'
    }
  }
}

/** How far the handler of a request is, for `whenOver`. */
export function progressOf ({ run, closedAt, route }: Exchange, now: number): HandlerProgress {
  if (run === undefined) return 'none'
  if (run.phase !== 'delegated' || run.replied) return run.phase
  return now - Math.max(closedAt ?? now, run.delegatedAt) >= route.lease ? 'silent' : 'delegated'
}
