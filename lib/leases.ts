import { within } from './deadline.ts'
import { publish } from './events.ts'
import type { Exchange } from './exchange.ts'
import type { Store } from './store.ts'

/**
 * Renews every key that is held longer than a third of its lease, from one shared timer.
 * Time is the monotonic clock's, so that a clock that is set does not matter.
 */
export class Leases {
  readonly #store: Store
  readonly #timeout: number
  readonly #held = new Set<Exchange>()
  readonly #idle: Array<() => void> = []
  #timer: NodeJS.Timeout | undefined
  #period = Infinity

  constructor (store: Store, storeTimeout: number) {
    this.#store = store
    this.#timeout = storeTimeout
  }

  add (exchange: Exchange): void {
    exchange.renewedAt = performance.now()
    this.#held.add(exchange)
    const period = Math.max(1, exchange.route.lease / 6)
    if (this.#timer !== undefined && period >= this.#period) return
    clearInterval(this.#timer)
    this.#period = period
    this.#timer = setInterval(() => this.#renewDue(), period).unref()
  }

  delete (exchange: Exchange): void {
    if (!this.#held.delete(exchange) || this.#held.size > 0) return
    for (const resolve of this.#idle.splice(0)) resolve()
  }

  /** Settles once no key is held: what still runs has ended. The process stays alive until then. */
  async idle (): Promise<void> {
    this.#timer?.ref()
    if (this.#held.size > 0) await new Promise<void>(resolve => { this.#idle.push(resolve) })
  }

  stop (): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#period = Infinity
  }

  #renewDue (): void {
    if (this.#held.size === 0) return this.stop()
    const now = performance.now()
    for (const exchange of this.#held) {
      if (now - exchange.renewedAt >= exchange.route.lease / 3) this.#renew(exchange, now)
    }
  }

  #renew (exchange: Exchange, now: number): void {
    const { request, route, storeKey, token } = exchange
    exchange.renewedAt = now
    const fingerprint = exchange.body.whole ? exchange.fingerprint : undefined
    within(this.#timeout, () => this.#store.renew(storeKey, token, route.lease, route.ttl, fingerprint), (error, renewed) => {
      if (!exchange.holding || exchange.settling) return
      if (error !== null) {
        request.log.error({ err: error }, 'idempotency: the lease could not be renewed; it is tried again')
        publish('store-error', request, exchange, { error })
      } else if (renewed !== true) {
        exchange.lose()
        request.log.warn('idempotency: the lease was lost while the handler runs')
        publish('lease-lost', request, exchange)
      }
    })
  }
}
