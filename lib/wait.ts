import { loggable, publish } from './events.ts'
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
  let wake!: () => void
  // Woken from the request of the holder; a promise goes on in the asynchronous context of who waits.
  new Promise<void>(resolve => { wake = resolve }).then(() => {
    clearTimeout(timer)
    unwatch?.()
    if (!exchange.reply.sent && !hasLeft(exchange)) next(false)
  })
  const unwatch = watch(store, exchange, wake)
  // A holder that has died wakes nobody; its lease passes.
  const turn = unwatch === undefined ? pollDelay(exchange.turns, Math.random()) : exchange.route.lease
  const timer = setTimeout(wake, Math.min(left, turn)).unref()
}

/** What stops the watching; `undefined` where the store cannot tell. */
function watch (store: Store, exchange: Exchange, wake: () => void): (() => void) | undefined {
  const { request, storeKey, turns } = exchange
  try {
    return store.watch?.(storeKey, wake)
  } catch (error) {
    if (turns > 1) return undefined
    request.log.error({ err: loggable(error) }, 'idempotency: the key could not be watched; the store is asked again and again')
    publish('store-error', request, exchange, { error })
  }
}

/** Milliseconds until turn `turn` (from 1), half to one and a half times the nominal value as `random` says. */
function pollDelay (turn: number, random: number): number {
  return Math.min(POLL_MS * 1.5 ** (turn - 1), MAX_POLL_MS) * (0.5 + random)
}
