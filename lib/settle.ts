import type { Core } from './core.ts'
import { hasLeft, isOverdue, knownFingerprint, type Exchange } from './exchange.ts'
import { capture, unreplayable } from './response.ts'
import type { Outcome } from './store.ts'
import { inProgress, isCacheable } from './verdict.ts'
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
  exchange.reply.raw.on('close', () => settleOver(core, exchange))
}

/**
 * Settles a key whose response is over, sent or not, where no hook will. Asked again until it
 * is settled: no event tells what is done past Fastify for a client that has left.
 */
export function settleOver (core: Core, exchange: Exchange, value?: unknown): void {
  const { handler, promised, reply, sendCalled, sending, timedOut } = exchange
  if (!isOpen(exchange) || sending) return
  if (handler === 'none') return settleUnhandled(core, exchange)
  if (timedOut) {
    // Ended, or replied before the timeout.
    if (handler === 'ended' || (sendCalled && !promised)) settleUnseen(core, exchange)
  } else if (reply.sent) {
    // Past Fastify (hijack, raw, its last resort): done, though nobody saw with what. Cut off, its handler may still run.
    if (!promised || reply.raw.writableFinished) settleUnseen(core, exchange)
  } else if (handler === 'ended' && value === undefined && !sendCalled) {
    // Fastify sends nothing, and calls no hook, for an undefined result once the client has left.
    settleEmpty(core, exchange)
  }
}

/** Called when an async handler has settled, with what it resolved to. */
export function handlerEnded (core: Core, exchange: Exchange, value: unknown): void {
  exchange.promised = false
  if (exchange.delegated && !exchange.sendCalled) return
  exchange.handler = 'ended'
  if (exchange.timedOut || hasLeft(exchange)) settleOver(core, exchange, value)
}

/** Called when a handler has failed. Fastify tells, unless the reply is over. */
export function handlerFailed (core: Core, exchange: Exchange): void {
  exchange.promised = false
  exchange.handler = 'ended'
  if (exchange.timedOut && isOpen(exchange)) settle(core, exchange, undefined, ignore)
  else if (exchange.reply.sent && hasLeft(exchange)) settleOver(core, exchange)
}

/** A response that was over before the handler ran. */
function settleUnhandled (core: Core, exchange: Exchange): void {
  const { body, letThrough, reply, timedOut } = exchange
  // Fastify goes on without its client: the handler, or the reply of a hook, will decide.
  if (!reply.sent && body.whole) return
  if (reply.sent && !timedOut && letThrough && body.whole) return settleUnseen(core, exchange)
  // Nothing may run without the key.
  reply.hijack()
  settle(core, exchange, undefined, ignore)
}

function settleUnseen (core: Core, exchange: Exchange): void {
  const { statusCode } = exchange.reply.raw
  if (!exchange.timedOut && !mayBeKept(exchange, statusCode)) return settle(core, exchange, undefined, ignore)
  whenWhole(core, exchange, () => settle(core, exchange, unreplayable(statusCode, knownFingerprint(exchange)), ignore))
}

function settleEmpty (core: Core, exchange: Exchange): void {
  const { reply, request, route } = exchange
  whenWhole(core, exchange, () => {
    let outcome
    try {
      if (isCacheable(exchange, reply.statusCode)) outcome = capture(reply, reply.getHeaders(), exchange.fingerprint, route.replayHeaders)
    } catch (error) {
      request.log.error({ err: error }, 'idempotency: a function among the options has failed; the response is not kept')
    }
    settle(core, exchange, outcome, ignore)
  })
}

/** Where the route's own function fails, the safe answer: what has been answered does not run again. */
function mayBeKept (exchange: Exchange, status: number): boolean {
  try {
    return isCacheable(exchange, status)
  } catch (error) {
    exchange.request.log.error({ err: error }, 'idempotency: the option "cacheable" has failed')
    return true
  }
}

/** A key settles only for a whole body; one that was cut off frees it. */
function whenWhole (core: Core, exchange: Exchange, done: () => void): void {
  exchange.settling = true
  exchange.body.drain('answered', error => error === undefined ? done() : settle(core, exchange, undefined, ignore))
}

function isOpen ({ holding, settling, settled, retrying }: Exchange): boolean {
  return holding && !settling && !settled && !retrying
}
