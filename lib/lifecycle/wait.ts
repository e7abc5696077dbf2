import { loggable, publish } from '../events.ts'
import type { IdempotencyStore } from '../stores/contract.ts'
import { hasClosed, type Exchange } from './exchange.ts'

const POLL_MS = 25
const MAX_POLL_MS = 250

/** The duplicates that wait for a holder, so that a closing instance can send them away, and those that come later. */
export class Waiters {
  readonly #waiting = new Set<Waiter>()
  #closing = false

  get closing (): boolean {
    return this.#closing
  }

  add (waiter: Waiter): void {
    this.#waiting.add(waiter)
  }

  delete (waiter: Waiter): void {
    this.#waiting.delete(waiter)
  }

  sendAway (): void {
    this.#closing = true
    for (const waiter of this.#waiting) waiter.wake()
  }
}

/** One duplicate that waits for the holder of its key, at most `wait` ms in all. */
export class Waiter {
  readonly #exchange: Exchange
  readonly #until: number
  #turns = 0
  #watchFailed = false
  /** A claim of it has not been answered in time: it may be granted late, and used by the next one. */
  uncertain = false
  /** Ends its turn; set by each. */
  wake!: () => void

  constructor (exchange: Exchange, wait: number) {
    this.#exchange = exchange
    this.#until = performance.now() + wait
  }

  /**
   * Waits one turn and calls `next`: with true at the limit, with false when it is time to ask again. A store that
   * can tell wakes the waiter; another one is polled, with jitter and at growing intervals. `gone` is called in its
   * place for a client that has left, or was answered by a timeout: nobody is here to run the handler for.
   */
  turn (next: (stillHeld: boolean) => void, gone: () => void): void {
    const exchange = this.#exchange
    const { core: { calls: { store }, waiters }, reply, route } = exchange
    const left = this.#until - performance.now()
    if (left <= 0 || waiters.closing) return next(true)
    this.#turns++
    waiters.add(this)
    // Woken from the request of the holder; a promise goes on in the asynchronous context of who waits.
    new Promise<void>(resolve => { this.wake = resolve }).then(() => {
      clearTimeout(timer)
      waiters.delete(this)
      unwatch?.()
      if (reply.sent || hasClosed(exchange)) gone()
      else next(waiters.closing)
    })
    const unwatch = this.#watch(store)
    // A holder that has died wakes nobody; its lease passes.
    const turn = unwatch === undefined ? pollDelay(this.#turns, Math.random()) : route.lease
    const timer = setTimeout(this.wake, Math.min(left, turn)).unref()
  }

  /** What stops the watching; `undefined` where the store cannot tell. */
  #watch (store: IdempotencyStore): (() => void) | undefined {
    const { request, storeKey, id } = this.#exchange
    try {
      const unwatch: unknown = store.watch?.(storeKey, this.wake)
      if (typeof unwatch === 'function') return unwatch as () => void
      if (unwatch === undefined) return undefined
      Promise.resolve(unwatch).catch(() => {})
      throw new TypeError('The store\'s "watch" must return the function that stops it')
    } catch (error) {
      if (this.#watchFailed) return undefined
      this.#watchFailed = true
      request.log.error({ idempotencyId: id, err: loggable(error) }, 'idempotency: the key could not be watched; ' +
        'the store is asked again and again')
      publish('store-error', request, this.#exchange, { error })
      return undefined
    }
  }
}

/** Milliseconds until turn `turn` (from 1), half to one and a half times the nominal value as `random` says. */
function pollDelay (turn: number, random: number): number {
  return Math.min(POLL_MS * 1.5 ** (turn - 1), MAX_POLL_MS) * (0.5 + random)
}
