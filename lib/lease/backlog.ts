import type { FastifyRequest } from 'fastify'
import { loggable, publish, type Subject } from '../events.ts'
import { unreplayable } from '../protocol/settlement.ts'
import type { StoreOutcome } from '../stores/contract.ts'
import { commit, type Ending, type LeaseDeps } from './commit.ts'
import type { Lease } from './lease.ts'

/** A claim that may have been granted, and that nobody will use. */
export interface Unused extends Subject {
  readonly request: FastifyRequest
  readonly storeKey: string
  readonly token: string
  readonly route: { readonly lease: number, readonly ttl: number }
}

interface Item {
  readonly id: string
  readonly bytes: number
  /** The longest wait between two tries, in ms. */
  readonly maxDelay: number
  /** One try. */
  run (done: (error: unknown) => void): void
  /** One try has failed; returns what is to be tried next. */
  failed (error: unknown): Item
}

const RETRY_MS = 100
const MAX_RETRY_MS = 2_000
const MAX_BYTES = 67_108_864
/** What an item holds beside the bodies: request, reply and the plugin's own state. */
const ITEM_BYTES = 4_096
/** A body above this, which the store does not take though it takes renewals, may be too large for it. */
const LARGE_BODY = 65_536
const MAX_FAILURES = 3

/**
 * What the store did not take in time: outcomes whose replies have left, and claims to be given back. Each is tried
 * again, one at a time, with backoff, until the store takes it or its lease is truly lost; leases are renewed
 * meanwhile.
 *
 * They may take 64 MiB, request bodies included. An outcome beyond that loses its body:
 * retries get `idempotency_response_unavailable`. If not even that fits, its key is let go
 * and is free when the lease ends.
 */
export class Backlog {
  readonly #deps: LeaseDeps
  readonly #outcomes = new Map<Lease, Item>()
  readonly #items = new Set<Item>()
  readonly #idle: Array<() => void> = []
  #bytes = 0
  #delay = RETRY_MS
  #timer: NodeJS.Timeout | undefined
  #busy = false

  constructor (deps: LeaseDeps) {
    this.#deps = deps
  }

  /** A later ending of the same lease replaces the one that waits. */
  add (lease: Lease, ending: Ending, error: unknown): void {
    reportOutcome(lease, ending, error)
    this.delete(lease)
    lease.to('backlogged')
    let item = this.#outcomeOf(lease, ending)
    const { outcome, status } = ending
    if (outcome?.replayable === true && !this.#fits(item)) item = this.#outcomeOf(lease, bodiless(outcome, status))
    if (!this.#fits(item)) return this.#giveUp(lease)
    this.#outcomes.set(lease, item)
    this.#add(item)
  }

  delete (lease: Lease): void {
    const item = this.#outcomes.get(lease)
    if (item === undefined) return
    this.#outcomes.delete(lease)
    this.#remove(item)
  }

  /**
   * Gives back a claim, now and until the store takes it: a key that nobody uses must not look like a dead holder's.
   */
  giveBack (unused: Unused): void {
    const item = this.#unusedOf(unused)
    item.run(error => {
      if (error === null || !this.#fits(item)) return
      item.failed(error)
      this.#add(item)
    })
  }

  /** Settles once nothing waits. */
  async idle (): Promise<void> {
    this.#timer?.ref()
    if (this.#items.size > 0) await new Promise<void>(resolve => { this.#idle.push(resolve) })
  }

  /** Ends all tries; returns the ids of the keys whose claims could not be given back. */
  stop (): string[] {
    clearTimeout(this.#timer)
    this.#busy = true
    const unused = Array.from(this.#items).filter(item => !Array.from(this.#outcomes.values()).includes(item))
    return unused.map(({ id }) => id)
  }

  #fits (item: Item): boolean {
    return this.#bytes + item.bytes <= MAX_BYTES
  }

  #add (item: Item): void {
    this.#items.add(item)
    this.#bytes += item.bytes
    if (!this.#busy) this.#wait()
  }

  #remove (item: Item): void {
    if (!this.#items.delete(item)) return
    this.#bytes -= item.bytes
    if (this.#items.size === 0) for (const resolve of this.#idle.splice(0)) resolve()
  }

  #wait (): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined
      this.#turn()
    }, this.#delay).unref()
    if (this.#idle.length > 0) this.#timer.ref()
  }

  #turn (): void {
    const [item] = this.#items
    this.#busy = item !== undefined
    if (item === undefined) return
    item.run(error => {
      if (error !== null) return this.#failed(item, error)
      this.#remove(item)
      this.#delay = RETRY_MS
      // Not at once: calls would nest ever deeper where the store answers at once.
      setImmediate(() => this.#turn())
    })
  }

  #failed (item: Item, error: unknown): void {
    if (this.#items.has(item)) {
      const next = item.failed(error)
      // To the end: the fault may be its own.
      this.#items.delete(item)
      this.#items.add(next)
      this.#bytes += next.bytes - item.bytes
    }
    this.#delay = Math.min(this.#delay * 2, MAX_RETRY_MS, item.maxDelay)
    this.#busy = false
    this.#wait()
  }

  #giveUp (lease: Lease): void {
    const { request, id } = lease.holder
    request.log.error(
      { idempotencyId: id },
      'idempotency: too many outcomes wait for the store; this one is given up, and its key is free when the lease ends'
    )
    lease.giveUp()
    this.#deps.renewals.delete(lease)
  }

  #outcomeOf (lease: Lease, ending: Ending): Item {
    let failures = 0
    const { outcome, status } = ending
    const body = outcome === undefined ? 0 : Buffer.byteLength(outcome.body)
    const item: Item = {
      id: lease.holder.id,
      bytes: ITEM_BYTES + lease.holder.bodyLength + body,
      maxDelay: lease.holder.route.lease / 3,
      run: done => {
        // Renews first: while the store is away, no body is queued again and again.
        this.#deps.renewals.renew(lease, performance.now(), error => {
          if (error !== null || this.#outcomes.get(lease) !== item) return done(error)
          commit(this.#deps, lease, ending, error => {
            if (this.#outcomes.get(lease) !== item) return done(null)
            if (error === null) {
              this.#outcomes.delete(lease)
            } else {
              lease.to('backlogged')
              if (!isFull(error)) failures++
            }
            done(error)
          })
        })
      },
      failed: error => {
        reportOutcome(lease, ending, error)
        const tooLarge = failures >= MAX_FAILURES && outcome !== undefined && body > LARGE_BODY
        const next = tooLarge ? this.#outcomeOf(lease, bodiless(outcome, status)) : item
        this.#outcomes.set(lease, next)
        return next
      }
    }
    return item
  }

  #unusedOf (unused: Unused): Item {
    const { request, storeKey, token, route } = unused
    const item: Item = {
      id: unused.id,
      bytes: ITEM_BYTES,
      maxDelay: route.lease / 3,
      run: done => this.#deps.calls.release(storeKey, token, route.ttl, false, undefined, error => done(error)),
      failed: error => {
        request.log.error({
          idempotencyId: unused.id, err: loggable(error)
        }, 'idempotency: a claim that is not used could not be given back; it is tried again in the background')
        publish('store-error', request, unused, { error })
        return item
      }
    }
    return item
  }
}

/** That the request was answered, without the response. */
function bodiless ({ status, fingerprint }: StoreOutcome, sent: number | undefined): Ending {
  return { outcome: unreplayable(status, fingerprint), status: sent }
}

/** Redis has no memory left; what it refuses it may take later, whatever its size. */
function isFull (error: unknown): boolean {
  return String(error).includes('OOM')
}

function reportOutcome ({ holder }: Lease, { outcome }: Ending, error: unknown): void {
  const { request, id } = holder
  const what = outcome === undefined ? 'key could not be released' : 'response could not be kept'
  request.log.error(
    { idempotencyId: id, err: loggable(error) }, `idempotency: the ${what}; it is tried again in the background`
  )
  publish('store-error', request, holder, { error })
}
