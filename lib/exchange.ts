import { randomUUID } from 'node:crypto'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { RequestBody } from './body.ts'
import { digestOf, fingerprintOf } from './fingerprint.ts'
import type { RouteConfig } from './options.ts'
import type { Claim, Outcome } from './store.ts'

/** What a handler sees as `request.idempotency`. */
export interface RequestIdempotency {
  /** The idempotency key, as the client sent it. */
  readonly key: string
  /** True in hooks that run on a replay. */
  readonly replayed: boolean
  /** 1 for the first execution of this key, 2 after a takeover or a freed failure, … */
  readonly attempt: number
  /** Aborted when the lease is lost: another request may hold the key now. */
  readonly signal: AbortSignal
  /** Keep this reply though its status says no. */
  keep (): void
  /** Do not keep this reply though its status says yes; the key is free again. */
  release (): void
}

/** One request and its reply on their way through the plugin; the only per-request state. */
export class Exchange implements RequestIdempotency {
  key = ''
  replayed = false
  attempt = 0

  readonly request: FastifyRequest
  readonly reply: FastifyReply
  readonly route: RouteConfig
  readonly body: RequestBody
  /** Found by the instance's hooks rather than its route's own, see attach.ts. */
  readonly unseen: boolean
  /** Of the request as the key was taken; a handler may rewrite it. */
  readonly url: string
  /** The instance of the plugin that it belongs to. */
  readonly owner: object
  readonly token = randomUUID()
  storeKey = ''
  next: Exchange | undefined
  /** Rises with each key that this process takes. */
  order = 0
  claim: Claim | undefined
  /** A claim was asked for: the key has been read and is valid. */
  taken = false
  /** The key is ours and no outcome has been decided. */
  holding = false
  /** An outcome is on its way to the store; the answer to that step decides, not a renewal's. */
  settling = false
  /** The outcome has been kept, freed, or lost. */
  settled = false
  /** … freed, that is. */
  freed = false
  lost = false
  /** Its outcome waits in the backlog. */
  retrying = false
  /** All hooks up to the parser have let the request pass. */
  letThrough = false
  /** The parser gave up before the body's end, whatever arrives later. */
  refusedBody = false
  handler: 'none' | 'running' | 'ended' = 'none'
  /** A promise will tell the handler's end. */
  promised = false
  /** The handler gave its reply to somebody who calls `reply.send` later. */
  delegated = false
  sendCalled = false
  /** The reply's own methods, while ours stand in their place. */
  send!: FastifyReply['send']
  then!: FastifyReply['then']
  /** A reply is in our onSend and has not left it. */
  passing = false
  /** Nobody but Fastify sees the reply's payload after our onSend. */
  final = false
  /** The headers of the reply that is on its way. */
  leaving: Record<string, unknown> | undefined
  /** How that reply stood when it began to wait in our onSend. */
  waiting: { status: number, headers: Record<string, unknown> } | undefined
  /** Another reply came meanwhile. */
  dropped = false
  /** A reply is in onSend, or is being streamed: its end decides. */
  sending = false
  /** Fastify answered in the place of a handler that may still run. */
  timedOut = false
  override: 'keep' | 'release' | undefined
  /** The kept outcome that answers this request. */
  replay: Outcome | undefined
  replayPayload: string | Buffer | null = null
  /** What stood on the reply before the handler, for a reply that must be withheld. */
  headersBefore!: Record<string, unknown>
  /** When the claim that took the key was sent. */
  takenAt = 0
  /** When the claim or a renewal was last sent. */
  renewedAt = 0
  /** When the one was sent that the store last agreed to: the lease lasts from then, at least. */
  confirmedAt = 0
  /** A renewal has carried the fingerprint. */
  told = false
  /** When waiting for the holder ends, and the turns so far. */
  waitUntil = 0
  turns = 0
  #fingerprint = ''
  #abort: AbortController | undefined

  constructor (owner: object, request: FastifyRequest, reply: FastifyReply, route: RouteConfig, body: RequestBody, unseen: boolean) {
    this.owner = owner
    this.request = request
    this.url = request.url
    this.reply = reply
    this.route = route
    this.body = body
    this.unseen = unseen
  }

  get signal (): AbortSignal {
    this.#abort ??= new AbortController()
    if (this.lost && !this.#abort.signal.aborted) this.#abort.abort(leaseLost())
    return this.#abort.signal
  }

  keep (): void {
    this.override = 'keep'
  }

  release (): void {
    this.override = 'release'
  }

  /** Marks the lease as lost and tells the handler. */
  lose (): void {
    this.lost = true
    this.#abort?.abort(leaseLost())
  }

  /** Only once the body is whole. */
  get fingerprint (): string {
    if (this.#fingerprint === '') {
      const { request, route, body } = this
      if (route.fingerprint === undefined) {
        this.#fingerprint = fingerprintOf(this.key, request.method, this.url, salt => body.digest(salt))
      } else {
        // The route still counts: the same narrow fingerprint on two routes is two requests.
        const narrowed = body.tooLarge ? randomUUID() : route.fingerprint(request, body.bytes())
        this.#fingerprint = fingerprintOf(this.key, request.method, String(request.routeOptions.url), salt => digestOf(narrowed, salt))
      }
    }
    return this.#fingerprint
  }
}

/** The store has not confirmed the lease for as long as it lasts: another request may hold the key by now. */
export function isOverdue ({ confirmedAt, route }: Exchange, now = performance.now()): boolean {
  return now - confirmedAt >= route.lease
}

/** The fingerprint where it is known by now, else ''; what a route's own function throws comes up elsewhere. */
export function knownFingerprint (exchange: Exchange): string {
  try {
    return exchange.body.whole ? exchange.fingerprint : ''
  } catch {
    return ''
  }
}

/** Whether the response is over, sent or not. HTTP/2's tells by its stream. */
export function hasLeft ({ reply }: Exchange): boolean {
  const raw = reply.raw as { destroyed?: boolean, stream?: { destroyed: boolean } | null }
  return raw.destroyed === true || raw.stream?.destroyed === true
}

function leaseLost (): Error {
  return new Error('The lease of the idempotency key was lost: another request may hold it now')
}
