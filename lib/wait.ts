import { AsyncResource } from 'node:async_hooks'
import { hasLeft, type Exchange } from './exchange.ts'
import type { Store } from './store.ts'

const POLL_MS = 25
const MAX_POLL_MS = 250

/**
 * Waits one turn for the holder of a key, at most `wait` ms in all, and calls `next`: with
 * true at the limit, with false when it is time to ask again. A store that can tell wakes the
 * waiter; another one is polled, with jitter and at growing intervals. `next` is not called for a client
 * that has left, or was answered by a timeout: nobody is here to run the handler for.
 */
export function waitForHolder (store: Store, exchange: Exchange, wait: number, next: (stillHeld: boolean) => void): void {
  const now = performance.now()
  if (exchange.turns++ === 0) exchange.waitUntil = now + wait
  const left = exchange.waitUntil - now
  if (left <= 0) return next(true)
  // Woken from the request of the holder: what follows belongs to this one.
  const context = new AsyncResource('fastify-idempotency')
  const wake = (): void => {
    clearTimeout(timer)
    unwatch?.()
    if (!exchange.reply.sent && !hasLeft(exchange)) context.runInAsyncScope(next, undefined, false)
  }
  const unwatch = store.watch?.(exchange.storeKey, wake)
  // A holder that has died wakes nobody; its lease passes.
  const turn = unwatch === undefined ? pollDelay(exchange.turns, Math.random()) : exchange.route.lease
  const timer = setTimeout(wake, Math.min(left, turn)).unref()
}

/** Milliseconds until turn `turn` (from 1), half to one and a half times the nominal value as `random` says. */
function pollDelay (turn: number, random: number): number {
  return Math.min(POLL_MS * 1.5 ** (turn - 1), MAX_POLL_MS) * (0.5 + random)
}
