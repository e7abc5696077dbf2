import type { Core } from './core.ts'
import { hasLeft, isOverdue, type Exchange } from './exchange.ts'
import { capture, unreplayable } from './response.ts'
import type { Outcome } from './store.ts'
import { inProgress } from './verdict.ts'
import { finish, write, type Settled } from './write.ts'

/** Ends the holding of a key: its outcome is kept, or the key is freed. */

/** Keeps `outcome`, or frees the key without one. Calls back when the reply may leave. */
export function settle (core: Core, exchange: Exchange, outcome: Outcome | undefined, done: (settled: Settled) => void): void {
  exchange.settling = true
  core.backlog.delete(exchange)
  write(core, exchange, outcome, (error, settled) => {
    exchange.settling = false
    if (error === null) {
      finish(core, exchange, outcome, settled)
      return done(settled)
    }
    // Refused and nobody knows why, or silent for a lease: the reply may be a second outcome, so it must not be seen.
    const lost = exchange.lost || isOverdue(exchange)
    core.backlog.add(exchange, outcome, error)
    done(lost ? { instead: { refuse: inProgress(exchange.route.retryAfter) } } : undefined)
  })
}

const ignore = (): void => {}

/** The response's 'close' always comes, also where no hook runs: hijacked, raw, cut off. */
export function settleOnClose (core: Core, exchange: Exchange): void {
  const { reply } = exchange
  reply.raw.on('close', () => {
    if (!isOpen(exchange) || exchange.sending) return
    if (exchange.handler === 'none') return settle(core, exchange, undefined, ignore)
    // Replied past Fastify (hijack, raw, its last resort): done, though nobody saw with what.
    if (reply.sent && !exchange.timedOut) settleUnseen(core, exchange)
    else if (exchange.handler === 'ended') handlerEnded(core, exchange, undefined)
  })
}

/** Called when an async handler has settled, with what it resolved to. */
export function handlerEnded (core: Core, exchange: Exchange, value: unknown): void {
  const { reply } = exchange
  if (exchange.delegated && !exchange.sendCalled) return
  exchange.handler = 'ended'
  if (!isOpen(exchange)) return
  if (exchange.timedOut) return settleUnseen(core, exchange)
  // Fastify sends nothing, and calls no hook, for an undefined result once the client has left.
  if (value !== undefined || exchange.sendCalled || !hasLeft(exchange)) return
  if (reply.sent) return settleUnseen(core, exchange)
  whenWhole(core, exchange, () => settle(core, exchange, exchange.route.cacheable(reply.statusCode) ? capture(reply, reply.getHeaders(), exchange.fingerprint, exchange.route.replayHeaders) : undefined, ignore))
}

/** Called when a handler has failed after Fastify answered in its place. */
export function handlerFailed (core: Core, exchange: Exchange): void {
  exchange.handler = 'ended'
  if (exchange.timedOut && isOpen(exchange)) settle(core, exchange, undefined, ignore)
}

function settleUnseen (core: Core, exchange: Exchange): void {
  const { route, reply, timedOut } = exchange
  const { statusCode } = reply.raw
  if (!timedOut && !route.cacheable(statusCode)) return settle(core, exchange, undefined, ignore)
  whenWhole(core, exchange, () => settle(core, exchange, unreplayable(statusCode, exchange.fingerprint), ignore))
}

/** A key settles only for a whole body; one that was cut off frees it. */
function whenWhole (core: Core, exchange: Exchange, done: () => void): void {
  exchange.body.drain(true, error => error === undefined ? done() : settle(core, exchange, undefined, ignore))
}

function isOpen ({ holding, settling, settled, retrying }: Exchange): boolean {
  return holding && !settling && !settled && !retrying
}
