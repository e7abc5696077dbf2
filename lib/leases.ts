import type { Bounded } from './deadline.ts'
import { loggable, publish } from './events.ts'
import { hasLeft, isOverdue, knownFingerprint, type Exchange } from './exchange.ts'
import { KeyTable } from './key-table.ts'
import type { Store } from './store.ts'

/** A request that is over by then, or within a third of its lease, costs the store no renewal. */
const TELL_MS = 500

/**
 * Renews every key that is held for long, from one shared timer: soon once, which tells
 * other instances the fingerprint, and then at every third of the lease. Time is the
 * monotonic clock's, so that a clock that is set does not matter.
 */
export class Leases {
  readonly #store: Store
  readonly #bounded: Bounded
  readonly #over: (exchange: Exchange) => void
  readonly #held = new KeyTable<Exchange>()
  readonly #idle: Array<() => void> = []
  #timer: NodeJS.Timeout | undefined
  #period = Infinity
  #count = 0

  /** `over` is told, again and again, of keys whose response is over. */
  constructor (store: Store, bounded: Bounded, over: (exchange: Exchange) => void) {
    this.#store = store
    this.#bounded = bounded
    this.#over = over
  }

  add (exchange: Exchange): void {
    exchange.order = this.#count++
    this.#held.add(exchange)
    const period = Math.max(1, Math.min(exchange.route.lease / 3, TELL_MS) / 2)
    if (this.#timer !== undefined && period >= this.#period) return
    clearInterval(this.#timer)
    this.#period = period
    this.#timer = setInterval(() => this.#renewDue(), period).unref()
  }

  delete (exchange: Exchange): void {
    if (this.#held.delete(exchange)) this.checkIdle()
  }

  /** To be called when a handler has ended, though its key is still held: its outcome waits in the backlog. */
  checkIdle (): void {
    if (this.#idle.length === 0 || !this.#isIdle()) return
    for (const resolve of this.#idle.splice(0)) resolve()
  }

  /** The fingerprint of the request that holds a key in this process, where it is known; else ''. */
  fingerprintOf (storeKey: string): string {
    const exchange = this.#held.get(storeKey)
    return exchange === undefined || exchange.lost ? '' : knownFingerprint(exchange)
  }

  /** Settles once what still runs has ended. The process stays alive until then. */
  async idle (): Promise<void> {
    this.#timer?.ref()
    if (!this.#isIdle()) await new Promise<void>(resolve => { this.#idle.push(resolve) })
  }

  #isIdle (): boolean {
    let idle = true
    this.#held.forEach(({ retrying }) => { idle &&= retrying })
    return idle
  }

  stop (): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#period = Infinity
  }

  #renewDue (): void {
    if (this.#held.size === 0) return this.stop()
    const now = performance.now()
    const held: Exchange[] = []
    this.#held.forEach(exchange => { held.push(exchange) })
    // The one that was taken first is renewed first.
    for (const exchange of held.sort((a, b) => a.order - b.order)) {
      if (hasLeft(exchange)) this.#over(exchange)
      const { holding, route: { lease }, body, told, renewedAt } = exchange
      if (!holding) continue
      if (isOverdue(exchange, now)) loseLease(exchange)
      if (now - renewedAt >= Math.min(lease / 3, !told && body.whole ? TELL_MS : Infinity)) this.#renewHeld(exchange, now)
    }
  }

  /** Sends one renewal, which also tells the fingerprint. */
  renew (exchange: Exchange, now: number, done: (error: unknown, renewed?: boolean) => void): void {
    const { route, storeKey, token, body } = exchange
    exchange.renewedAt = now
    exchange.told = body.whole
    this.#bounded(() => this.#store.renew(storeKey, token, route.lease, route.ttl, knownFingerprint(exchange)), (error, renewed) => {
      if (renewed === true) exchange.confirmedAt = now
      done(error, renewed)
    })
  }

  #renewHeld (exchange: Exchange, now: number): void {
    const { request } = exchange
    this.renew(exchange, now, (error, renewed) => {
      // The answer to the outcome decides, not a renewal's that was under way.
      if (!exchange.holding || exchange.settling || exchange.lost) return
      if (error !== null) {
        request.log.error({ err: loggable(error) }, 'idempotency: the lease could not be renewed; it is tried again')
        publish('store-error', request, exchange, { error })
      } else if (renewed !== true) {
        loseLease(exchange)
      }
    })
  }
}

/** Another request may hold the key now: tells the handler, the log and the operator, once. */
export function loseLease (exchange: Exchange): void {
  if (exchange.lost) return
  exchange.lose()
  exchange.request.log.warn('idempotency: the lease was lost before the outcome was kept')
  publish('lease-lost', exchange.request, exchange)
}
