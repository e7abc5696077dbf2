import type { Bounded } from './deadline.ts'
import { publish } from './events.ts'
import { knownFingerprint, type Exchange } from './exchange.ts'
import { loseLease, type Leases } from './leases.ts'
import type { Claim, Outcome, Store } from './store.ts'
import { judge, type Verdict } from './verdict.ts'

/** What holding a key needs. */
export interface Keeping {
  store: Store
  /** The way to the store: every operation goes through it. */
  bounded: Bounded
  leases: Leases
}

/** `undefined`: the client may see the reply. `instead`: it must see this, the lease was lost. */
export type Settled = { instead: Verdict } | undefined

/** A store that grants a key and then refuses its token breaks the contract; once may be an eviction between the two. */
const MAX_ROUNDS = 3

/**
 * Tells the store. Where it refuses, the token no longer holds the key: claiming again, with
 * the same token, tells what came of it: a winner's response, somebody who runs now, or
 * nobody (the store lost the record), and then the outcome is written anew.
 */
export function write (keeping: Keeping, exchange: Exchange, outcome: Outcome | undefined, done: (error: unknown, settled?: Settled) => void, rounds = 1): void {
  const { storeKey, token, route } = exchange
  tell(keeping, exchange, outcome, (error, accepted) => {
    if (error !== null || accepted === true) return done(error)
    if (rounds > MAX_ROUNDS) return done(new Error('The store grants the key to this token, and then refuses it'))
    loseLease(exchange)
    keeping.bounded(() => keeping.store.claim(storeKey, { token, lease: route.lease, ttl: route.ttl, takeover: true }), (error, claim) => {
      if (error !== null) return done(error)
      const found = claim as Claim
      if (found.outcome !== 'acquired') return done(null, { instead: judge(found, knownFingerprint(exchange), route.retryAfter) })
      exchange.lost = false
      write(keeping, exchange, outcome, done, rounds + 1)
    })
  })
}

function tell (keeping: Keeping, { storeKey, token, route, handler }: Exchange, outcome: Outcome | undefined, done: (error: unknown, accepted?: boolean) => void): void {
  keeping.bounded(() => outcome === undefined
    ? keeping.store.release(storeKey, token, route.ttl, handler !== 'none')
    : keeping.store.complete(storeKey, token, outcome, route.ttl), done)
}

/** The store has spoken: nothing is held any more. */
export function finish (keeping: Keeping, exchange: Exchange, outcome: Outcome | undefined, settled: Settled): void {
  exchange.holding = false
  keeping.leases.delete(exchange)
  if (settled !== undefined) return
  exchange.settled = true
  const { request } = exchange
  if (outcome === undefined) {
    const { reply, sending } = exchange
    // A request that was cut off is told by its reply as well.
    if (!exchange.freed) publish('released', request, exchange, sending || reply.raw.headersSent ? { status: reply.statusCode } : {})
  } else if (outcome.replayable) {
    publish('executed', request, exchange, { status: outcome.status })
  } else {
    request.log.warn({ status: outcome.status }, 'idempotency: the response cannot be kept; retries get idempotency_response_unavailable')
    publish('unreplayable', request, exchange, { status: outcome.status })
  }
  exchange.freed = outcome === undefined
}
