import { loggable, publish } from './events.ts'
import type { Exchange } from './exchange.ts'
import { loseLease } from './leases.ts'
import { unreplayable } from './response.ts'
import type { Outcome } from './store.ts'
import { finish, write, type Keeping } from './write.ts'

interface Item { exchange: Exchange, outcome: Outcome | undefined, bytes: number }

const RETRY_MS = 100
const MAX_RETRY_MS = 2_000
const MAX_BYTES = 67_108_864
/** What an entry holds beside the bodies: request, reply and the plugin's own state. */
const ITEM_BYTES = 4_096

/**
 * Outcomes that the store did not take before their replies left. They are tried again one
 * at a time, with backoff, until the store takes them or their leases are truly lost; the
 * leases are renewed meanwhile.
 *
 * They may take 64 MiB, request bodies included. An outcome beyond that loses its body:
 * retries get `idempotency_response_unavailable`. If not even that fits, its key is let go
 * and is free when the lease ends.
 */
export class Backlog {
  readonly #keeping: Keeping
  readonly #items = new Map<Exchange, Item>()
  #bytes = 0
  #delay = RETRY_MS
  #timer: NodeJS.Timeout | undefined
  #busy = false

  constructor (keeping: Keeping) {
    this.#keeping = keeping
  }

  /** A later outcome of the same exchange replaces the one that waits. */
  add (exchange: Exchange, outcome: Outcome | undefined, error: unknown): void {
    report(exchange, outcome, error)
    this.delete(exchange)
    let item = itemOf(exchange, outcome)
    if (outcome?.replayable === true && this.#bytes + item.bytes > MAX_BYTES) item = itemOf(exchange, unreplayable(outcome.status, outcome.fingerprint))
    if (this.#bytes + item.bytes > MAX_BYTES) return this.#letGo(exchange, 'too many outcomes wait for the store')
    this.#items.set(exchange, item)
    this.#bytes += item.bytes
    exchange.retrying = true
    this.#keeping.leases.checkIdle()
    if (!this.#busy) this.#wait()
  }

  delete (exchange: Exchange): void {
    const item = this.#items.get(exchange)
    if (item === undefined) return
    exchange.retrying = false
    this.#bytes -= item.bytes
    this.#items.delete(exchange)
  }

  /** Tries everything once more, and lets the rest go: the instance closes. */
  async flush (): Promise<void> {
    clearTimeout(this.#timer)
    this.#busy = true
    await Promise.all(Array.from(this.#items.values(), async item => {
      await new Promise<void>(resolve => this.#write(item, () => resolve()))
      if (this.#has(item)) this.#letGo(item.exchange, 'the instance closes')
    }))
  }

  #wait (): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined
      this.#turn()
    }, this.#delay).unref()
  }

  /** Renews first: while the store is away, no body is queued again and again. */
  #turn (): void {
    const [item] = this.#items.values()
    this.#busy = item !== undefined
    if (item === undefined) return
    this.#keeping.leases.renew(item.exchange, performance.now(), error => {
      if (error !== null) return this.#failed(item, error)
      this.#write(item, error => {
        if (error !== null) return this.#failed(item, error)
        this.#delay = RETRY_MS
        this.#turn()
      })
    })
  }

  #write (item: Item, done: (error: unknown) => void): void {
    const { exchange, outcome } = item
    write(this.#keeping, exchange, outcome, (error, instead) => {
      // Meanwhile a later outcome may have taken its place.
      if (error === null && this.#has(item)) {
        this.delete(exchange)
        finish(this.#keeping, exchange, outcome, instead)
      }
      done(error)
    })
  }

  #failed (item: Item, error: unknown): void {
    if (this.#has(item)) {
      report(item.exchange, item.outcome, error)
      // Behind the others: the fault may be its own.
      this.#items.delete(item.exchange)
      this.#items.set(item.exchange, item)
    }
    this.#delay = Math.min(this.#delay * 2, MAX_RETRY_MS, item.exchange.route.lease / 3)
    this.#busy = false
    this.#wait()
  }

  #has (item: Item): boolean {
    return this.#items.get(item.exchange) === item
  }

  #letGo (exchange: Exchange, why: string): void {
    this.delete(exchange)
    exchange.holding = false
    exchange.request.log.error(`idempotency: ${why}; this one is given up, and its key is free when the lease ends`)
    loseLease(exchange)
    this.#keeping.leases.delete(exchange)
  }
}

function itemOf (exchange: Exchange, outcome: Outcome | undefined): Item {
  const body = outcome === undefined ? 0 : Buffer.byteLength(outcome.body)
  return { exchange, outcome, bytes: ITEM_BYTES + exchange.body.length + body }
}

function report (exchange: Exchange, outcome: Outcome | undefined, error: unknown): void {
  const { request } = exchange
  request.log.error({ err: loggable(error) }, `idempotency: the ${outcome === undefined ? 'key could not be freed' : 'response could not be kept'}; it is tried again in the background`)
  publish('store-error', request, exchange, { error })
}
