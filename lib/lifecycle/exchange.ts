import { randomUUID } from 'node:crypto'
import { inspect } from 'node:util'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { RouteContext } from '../config/config.ts'
import type { Holder, Lease } from '../lease/lease.ts'
import { digestOf, fingerprintOf, saltOf, stored } from '../protocol/fingerprint.ts'
import type { Admission } from '../protocol/settlement.ts'
import type { RequestBody } from '../request/body.ts'
import type { StoreBinding, StoreClaim, StoreOutcome } from '../stores/contract.ts'
import { newToken } from '../util/token.ts'
import { errorFrom, isThenable, promiseOf } from '../util/promise.ts'
import type { Core } from './core.ts'
import type { HandlerRun } from './handler-run.ts'
import type { OutgoingReply } from './outgoing.ts'
import type { Steps } from './steps.ts'
import type { Waiter } from './wait.ts'

const kExchange = Symbol('fastify-idempotency exchange')
/** `null`: the plugin has stepped aside. */
type Slot = { [kExchange]?: Exchange | null }

/** The plugin's state of a request; `undefined` where it does nothing for it. */
export function exchangeOf (request: FastifyRequest): Exchange | undefined {
  return (request as Slot)[kExchange] ?? undefined
}

/** Whether the plugin has done nothing for a request so far: it never will, or its first hook has not run. */
export function isWithoutState (request: FastifyRequest): boolean {
  return (request as Slot)[kExchange] === undefined
}

/** One that was granted its key. */
export type Holding = Exchange & { lease: Lease }

export function holdsKey (exchange: Exchange): exchange is Holding {
  return exchange.lease !== undefined
}

/** One request that may carry a key, and its reply, on their way through the plugin. */
export class Exchange implements Holder {
  readonly core: Core
  readonly request: FastifyRequest
  readonly reply: FastifyReply
  readonly route: RouteContext
  /** Its route was declared before the plugin was loaded, see instance-hooks.ts. */
  readonly declaredEarly: boolean
  readonly token = newToken()
  readonly #url: string
  body: RequestBody
  key = ''
  /** What the route's `scope` returned; derived keys need it. */
  scope: string | undefined
  id = ''
  /** The key's name in the store: made once, since V8 copies a concatenated string where it is looked up. */
  storeKey = ''
  /** What the store has answered; `bypassed` where it did not, and the request runs unprotected. */
  claim: StoreClaim | 'bypassed' | undefined
  /** Waits for the holder of the key. */
  waiter: Waiter | undefined
  /** The lease, where the key was granted. */
  lease: Lease | undefined
  /** What stood on the reply when the key was granted, for a reply that must be withheld. */
  headersBefore: Record<string, unknown> | undefined
  /** The handler's run, once it has begun. */
  run: HandlerRun | undefined
  /** Its steps and derived keys, where it has any. */
  steps: Steps | undefined
  /** Fastify has answered in the place of a handler that may still run, or may not start any more. */
  answeredFor = false
  /** Fastify has told of an error, or `send` has thrown: an error handler may reply in the place of the handler. */
  hasFailed = false
  /** The reply that is in our onSend hook. */
  outgoing: OutgoingReply | undefined
  /** How many replies have come to our onSend hook. */
  passes = 0
  /** The handler's own word on whether its reply is an outcome. */
  override: 'keep' | 'release' | undefined
  /** The kept outcome that answers this request, and its payload as hooks see it. */
  replay: { outcome: StoreOutcome, payload: string | Buffer | null } | undefined
  /** When the response was over, by the monotonic clock; `Infinity` until then. */
  closedAt = Infinity
  #admission: Admission = 'pending'
  #fingerprint = ''

  constructor (
    core: Core, request: FastifyRequest, reply: FastifyReply, route: RouteContext, body: RequestBody,
    declaredEarly: boolean
  ) {
    this.core = core
    this.request = request
    this.#url = request.originalUrl
    this.reply = reply
    this.route = route
    this.body = body
    this.declaredEarly = declaredEarly
    const slot = request as Slot
    slot[kExchange] = this
  }

  /** From here on the plugin does nothing for this request, except let a body pass that nobody reads. */
  stepAside (): void {
    const slot = this.request as Slot
    slot[kExchange] = null
    this.reply.raw.once('close', () => this.body.discard())
  }

  /** What console.log of a request shows of it: a kept response, or a credential, may be among the rest. */
  [inspect.custom] (): unknown {
    return { id: this.id, attempt: this.attempt, replayed: this.replay !== undefined }
  }

  get admission (): Admission {
    return this.#admission
  }

  /** All hooks before the parser have run. A body that was refused stays so. */
  admit (): void {
    if (this.#admission === 'pending') this.#admission = 'admitted'
  }

  /** The body was given up, or cannot be told from others, or nobody is there: no reply is an outcome. */
  refuseBody (): void {
    this.#admission = 'refused'
  }

  get attempt (): number {
    const { claim } = this
    return typeof claim === 'object' ? claim.attempt : 0
  }

  get boundTo (): string {
    const { claim } = this
    return typeof claim === 'object' && claim.outcome === 'acquired' ? claim.fingerprint ?? '' : ''
  }

  get binds (): boolean {
    return this.steps !== undefined
  }

  binding (withSteps: boolean): StoreBinding | undefined {
    const { steps } = this
    if (steps === undefined) return undefined
    const fingerprint = this.knownFingerprint()
    return fingerprint === '' ? undefined : { fingerprint, steps: withSteps ? steps.records() : [] }
  }

  get heldSince (): number {
    return this.lease?.claimedAt ?? 0
  }

  get started (): boolean {
    return this.run !== undefined
  }

  get bodyLength (): number {
    return this.body.length
  }

  /** Reads the rest of a body that a handler may still read as well. */
  readRest (purpose: 'keep' | 'answered', done: (error?: Error) => void): void {
    this.body.drain(purpose, done, Infinity, () => {
      this.request.log.warn({
        idempotencyId: this.id
      }, 'idempotency: the reader of the request body has stopped; the rest of the body is only compared')
    })
  }

  /** Whether a reply with this status is an outcome: the handler's word counts before the route's. */
  isCacheable (status: number): boolean {
    return this.override === undefined ? this.route.cacheable(status) : this.override === 'keep'
  }

  /** Only once the body is whole. @throws what the route's own function throws. */
  get fingerprint (): string {
    if (this.#fingerprint === '') this.#fingerprint = stored(this.#compute(), this.body.length > this.route.bodyLimit)
    return this.#fingerprint
  }

  /** @throws what the route's own function throws. */
  ensureFingerprint (): void {
    this.#fingerprint ||= this.fingerprint
  }

  knownFingerprint (): string {
    try {
      return this.body.whole ? this.fingerprint : ''
    } catch {
      // What a route's own function throws is raised where the request is answered.
      return ''
    }
  }

  #compute (): string {
    const { request, route, body, key } = this
    const { method } = request
    const constraints = route.constraints === undefined ? '' : route.constraints(request)
    const own = route.fingerprint
    const target = (own === undefined ? this.#url : pathOf(this.#url)) + constraints
    const salt = saltOf(key, method, target)
    const digest = own === undefined
      ? body.digest(salt)
      : digestOf(body.tooLarge ? randomUUID() : this.#narrow(own), salt)
    return fingerprintOf(key, method, target, digest)
  }

  #narrow (fingerprint: NonNullable<RouteContext['fingerprint']>): string | Buffer {
    try {
      const narrowed = fingerprint(this.request, this.body.bytes())
      // Refused for its type: nobody would hear that it fails as well.
      if (isThenable(narrowed)) promiseOf(narrowed).catch(() => {})
      return narrowed
    } catch (thrown) {
      throw errorFrom(thrown)
    }
  }
}

/**
 * Whether the response is over, sent or not. HTTP/2's tells by its stream; one that waits behind another on its
 * connection has no socket yet, and tells by the connection.
 */
export function hasClosed ({ reply, request }: Exchange): boolean {
  const raw = reply.raw as { destroyed?: boolean, socket: unknown, stream?: { destroyed: boolean } | null }
  if (raw.destroyed === true || raw.stream?.destroyed === true) return true
  return raw.socket === null && request.raw.socket.destroyed
}

function pathOf (url: string): string {
  const query = url.indexOf('?')
  return query === -1 ? url : url.slice(0, query)
}
