import type { FastifyRequest } from 'fastify'
import { publish, type Subject } from '../events.ts'
import type { Wording } from '../protocol/verdict.ts'
import type { Linked } from '../util/linked-list.ts'
import type { StoreBinding } from '../stores/contract.ts'

/**
 * `held`: the handler, or whoever replies, decides. `collecting`: the rest of the request's body, or a response's
 * stream, decides. `committing`: the outcome is on its way to the store. `backlogged`: it waits for the store.
 * Over: `completed` and `released`, until a later onSend hook fails and the reply is another; `superseded` (another
 * request has the key) and `given-up` for good.
 */
export type LeaseState =
  | 'held' | 'collecting' | 'committing' | 'backlogged' | 'completed' | 'released' | 'superseded' | 'given-up'

/** What may follow each state. */
export const TRANSITIONS: Readonly<Record<LeaseState, readonly LeaseState[]>> = {
  held: ['collecting', 'committing', 'given-up'],
  collecting: ['held', 'collecting', 'committing', 'given-up'],
  committing: ['collecting', 'committing', 'backlogged', 'completed', 'released', 'superseded', 'given-up'],
  backlogged: ['collecting', 'committing', 'given-up'],
  completed: ['collecting', 'committing'],
  released: ['collecting', 'committing'],
  superseded: [],
  'given-up': []
}

/** What a lease needs to know of the request that holds it. */
export interface Holder extends Subject {
  readonly request: FastifyRequest
  readonly storeKey: string
  readonly token: string
  readonly route: Wording & { readonly lease: number, readonly ttl: number }
  /** The handler has begun. */
  readonly started: boolean
  /** Bytes of the request's body. */
  readonly bodyLength: number
  /** The fingerprint of the request that the key was bound to when it was claimed; '' where it was to none. */
  readonly boundTo: string
  /** Steps or derived keys are in use: the key is bound to this request. */
  readonly binds: boolean
  /** The fingerprint once the body is whole; '' before. */
  knownFingerprint (): string
  /** What a release binds the key to; `withSteps`: the store may have dropped what was recorded. */
  binding (withSteps: boolean): StoreBinding | undefined
}

/** A key that a request of this process holds. Times are the monotonic clock's, in ms. */
export class Lease implements Linked<Lease> {
  readonly holder: Holder
  /** When the claim was sent that took the key. */
  readonly claimedAt: number
  /** When the claim or a renewal was last sent. */
  renewedAt: number
  /** When the one was sent that the store last agreed to: the lease lasts from then, at least. */
  confirmedAt: number
  /** A renewal has carried the fingerprint. */
  fingerprintSent = false
  /** The handler has been told that another request may hold the key now. */
  lost = false
  /** Renewals that have failed since the last one that did not. */
  failures = 0
  /** The commits so far; the last one decides. */
  commits = 0
  /** A commit is with the store; one that was overruled may be, in any state. */
  writing = false
  #waiting: Array<() => void> | undefined
  /** Neighbours in the order of the claims. */
  previous: Lease | undefined
  next: Lease | undefined
  #state: LeaseState = 'held'
  #abort: AbortController | undefined

  constructor (holder: Holder, claimedAt: number) {
    this.holder = holder
    this.claimedAt = this.renewedAt = this.confirmedAt = claimedAt
  }

  get state (): LeaseState {
    return this.#state
  }

  /** @throws {Error} when the transition is not in the table: a bug that must not go unnoticed. */
  to (state: LeaseState): void {
    if (!TRANSITIONS[this.#state].includes(state)) throw new Error(`A lease cannot go from ${this.#state} to ${state}`)
    this.#state = state
  }

  /** This request no longer decides about the key. */
  get isFinal (): boolean {
    return this.#state === 'superseded' || this.#state === 'given-up'
  }

  /** The store has the outcome, or nobody waits for it any more. */
  get isOver (): boolean {
    return this.isFinal || this.#state === 'completed' || this.#state === 'released'
  }

  /** The store has not confirmed the lease for as long as it lasts: another request may hold the key by now. */
  isOverdue (now = performance.now()): boolean {
    return now - this.confirmedAt >= this.holder.route.lease
  }

  /**
   * Nothing more is tried: the key is free when the lease ends. An answer that is still to come changes nothing. The
   * caller has told the log.
   */
  giveUp (): void {
    this.to('given-up')
    this.commits++
    if (!this.lost) this.#abandon()
  }

  /** Calls `next` once no commit is with the store: at once, as a rule. */
  whenIdle (next: () => void): void {
    if (this.writing) (this.#waiting ??= []).push(next)
    else next()
  }

  /** A commit has been answered: the next one may go. */
  idle (): void {
    const waiting = this.#waiting
    if (waiting === undefined || this.writing) return
    this.#waiting = undefined
    for (const next of waiting) this.whenIdle(next)
  }

  /** Aborted when the lease is lost. */
  get signal (): AbortSignal {
    this.#abort ??= new AbortController()
    if (this.lost && !this.#abort.signal.aborted) this.#abort.abort(leaseLost())
    return this.#abort.signal
  }

  /** Another request may hold the key now: tells the handler, the log and the operator, once. */
  lose (): void {
    if (this.lost) return
    const { request, id } = this.holder
    request.log.warn({ idempotencyId: id }, 'idempotency: the lease was lost before the outcome was stored')
    this.#abandon()
  }

  #abandon (): void {
    this.lost = true
    this.#abort?.abort(leaseLost())
    publish('lease-lost', this.holder.request, this.holder)
  }
}

function leaseLost (): Error {
  return new Error('The lease of the idempotency key was lost: another request may hold it now')
}
