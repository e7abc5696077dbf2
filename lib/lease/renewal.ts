import { loggable, publish } from '../events.ts'
import { LinkedList } from '../util/linked-list.ts'
import type { Lease } from './lease.ts'
import type { StoreCalls } from './store-calls.ts'

/** A request that is over by then, or within a third of its lease, costs the store no renewal. */
const TELL_MS = 500

/**
 * Renews every lease that is held for long, from one shared timer: soon once, which tells
 * other instances the fingerprint, and then at every third of the lease. Time is the
 * monotonic clock's, so that a clock that is set does not matter.
 */
export class Renewals {
  readonly #calls: StoreCalls
  readonly #onTurn: (lease: Lease, now: number) => void
  /** The leases that are not over, in the order of their claims. */
  readonly #leases = new LinkedList<Lease>()
  #timer: NodeJS.Timeout | undefined
  #period = Infinity
  readonly #idle: Array<() => void> = []

  /** `onTurn` is called with each lease, again and again, until it is over. */
  constructor (calls: StoreCalls, onTurn: (lease: Lease, now: number) => void) {
    this.#calls = calls
    this.#onTurn = onTurn
  }

  add (lease: Lease): void {
    this.#leases.add(lease)
    const period = Math.max(1, Math.min(lease.holder.route.lease / 3, TELL_MS) / 2)
    if (this.#timer === undefined || period < this.#period) this.#start(period)
  }

  #start (period: number): void {
    clearInterval(this.#timer)
    this.#period = period
    this.#timer = setInterval(() => this.#turn(), period).unref()
  }

  delete (lease: Lease): void {
    if (!this.#leases.delete(lease)) return
    if (this.#leases.first === undefined) for (const resolve of this.#idle.splice(0)) resolve()
  }

  /** The fingerprint of the request that holds a key in this process, where it is known; else ''. */
  fingerprintOf (storeKey: string): string {
    // The last to claim it: the key of an earlier one was forgotten, which that one has not heard yet.
    for (let lease = this.#leases.last; lease !== undefined; lease = lease.previous) {
      // One whose lease must have passed may not be who the store says holds the key.
      const holds = lease.holder.storeKey === storeKey && !lease.lost && !lease.isOverdue()
      if (holds) return lease.holder.knownFingerprint()
    }
    return ''
  }

  /** Settles once every lease is over. The process stays alive until then. */
  async idle (): Promise<void> {
    this.#timer?.ref()
    if (this.#leases.first !== undefined) await new Promise<void>(resolve => { this.#idle.push(resolve) })
  }

  /** The leases that are not over, in the order of their claims. */
  all (): Lease[] {
    const leases: Lease[] = []
    for (let lease = this.#leases.first; lease !== undefined; lease = lease.next) leases.push(lease)
    return leases
  }

  stop (): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#period = Infinity
  }

  #turn (): void {
    if (this.#leases.first === undefined) return this.stop()
    const now = performance.now()
    for (const lease of this.all()) {
      this.#onTurn(lease, now)
      if (lease.isOver) continue
      const { holder: { route }, fingerprintSent, renewedAt } = lease
      if (lease.state !== 'committing' && lease.isOverdue(now)) lease.lose()
      const soon = !fingerprintSent && lease.holder.knownFingerprint() !== ''
      if (now - renewedAt >= Math.min(route.lease / 3, soon ? TELL_MS : Infinity)) this.#renewDue(lease, now)
    }
  }

  /** Sends one renewal, which also tells the fingerprint. One that succeeds late counts from when it was sent. */
  renew (lease: Lease, now: number, done: (error: unknown, renewed?: boolean) => void): void {
    const { storeKey, token, route } = lease.holder
    const fingerprint = lease.holder.knownFingerprint()
    const { binds } = lease.holder
    const succeeded = (): void => {
      lease.failures = 0
      lease.confirmedAt = Math.max(lease.confirmedAt, now)
      if (fingerprint !== '' && binds === lease.holder.binds) lease.fingerprintSent = true
    }
    lease.renewedAt = now
    this.#calls.renew(storeKey, token, route.lease, route.ttl, fingerprint, binds, (error, renewed) => {
      if (renewed === true) succeeded()
      done(error, renewed)
    }, (_error, renewed) => {
      if (renewed === true) succeeded()
    })
  }

  #renewDue (lease: Lease, now: number): void {
    this.renew(lease, now, (error, renewed) => {
      if (error !== null) {
        lease.failures++
        // Again at the next turn: an outage shorter than a lease must not cost the key.
        lease.renewedAt = Math.min(lease.renewedAt, lease.confirmedAt)
      }
      // The answer to the outcome decides, not a renewal's that was under way.
      if (lease.isOver || lease.state === 'committing' || lease.lost) return
      const { request, id } = lease.holder
      if (error !== null) {
        if (lease.failures > 1) return
        request.log.error(
          { idempotencyId: id, err: loggable(error) }, 'idempotency: the lease could not be renewed; it is tried again'
        )
        publish('store-error', request, lease.holder, { error })
      } else if (renewed !== true && lease.state !== 'backlogged') {
        // Refused while its outcome waits, the store may have taken that late: the next try to write it tells.
        lease.lose()
      }
    })
  }
}
