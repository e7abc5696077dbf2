import type { Socket } from 'node:net'
import type { FastifyReply } from 'fastify'
import type { Lease } from '../lease/lease.ts'
import { settle } from '../lease/settle.ts'
import { unreplayable, whenOver } from '../protocol/settlement.ts'
import { capture, WITHOUT_CONTENT } from '../response/outcome.ts'
import { headersOf } from '../response/reply-headers.ts'
import type { StoreOutcome } from '../stores/contract.ts'
import { errorFrom } from '../util/promise.ts'
import { hasClosed, holdsKey, type Exchange, type Holding } from './exchange.ts'
import { progressOf } from './handler-run.ts'
import { hasEnded } from './outgoing.ts'

const kExchange = Symbol('fastify-idempotency exchange of a response')
type Watched = FastifyReply['raw'] & { [kExchange]?: Exchange }

/** The response's 'close' tells where no hook runs: hijacked, raw, cut off. */
export function watchClose (exchange: Exchange): void {
  const raw: Watched = exchange.reply.raw
  raw[kExchange] = exchange
  raw.on('close', onClose)
  if (raw.socket === null) watchConnection(raw, exchange.request.raw.socket)
}

/** The listener is shared by all requests: each response knows its exchange. */
function onClose (this: Watched): void {
  const exchange = this[kExchange] as Exchange
  const now = performance.now()
  exchange.closedAt = Math.min(exchange.closedAt, now)
  afterClose(exchange, now)
}

/** A response that waits for another one on its connection has no socket yet: Node.js emits no 'close' for it. */
function watchConnection (raw: FastifyReply['raw'], socket: Socket): void {
  const closed = (): void => {
    if (raw.socket !== null) return
    raw.destroy()
    raw.emit('close')
  }
  socket.once('close', closed)
  raw.once('close', () => socket.off('close', closed))
}

/**
 * Called at each turn of the renewals: no event tells what is done past Fastify for a client that has left, or that
 * does not read what it was sent.
 */
export function checkOver ({ holder }: Lease, now: number): void {
  const exchange = holder as Exchange
  const closed = hasClosed(exchange)
  if (closed) exchange.closedAt = Math.min(exchange.closedAt, now)
  if (closed || exchange.reply.raw.writableEnded) afterClose(exchange, now)
}

/**
 * Settles a key whose response is over, sent or not, where no hook will. `failed`: the handler has
 * failed.
 */
export function afterClose (exchange: Exchange, now: number, failed = false): void {
  if (!holdsKey(exchange) || exchange.lease.state !== 'held') return
  const { reply, answeredFor, run, admission, body } = exchange
  if (failed && answeredFor) return settleWith(exchange, undefined)
  run?.watch(value => handlerEnded(exchange, value), () => handlerFailed(exchange))
  const facts = {
    handler: progressOf(exchange, now),
    answeredFor,
    replied: run?.replied === true,
    sent: hasEnded(reply),
    finished: reply.raw.writableFinished,
    admission,
    bodyWhole: body.whole
  }
  switch (whenOver(facts)) {
    case 'wait': return
    case 'refuse':
      reply.hijack()
      return settleWith(exchange, undefined)
    case 'unseen': return settleUnseen(exchange)
    case 'empty': return settleEmpty(exchange)
  }
}

/** Called when an async handler has settled, with what it resolved to. */
export function handlerEnded (exchange: Exchange, value: unknown): void {
  const { run } = exchange
  if (run === undefined) return
  run.end(value)
  if (exchange.answeredFor || hasClosed(exchange)) afterClose(exchange, performance.now())
}

/** Called when a handler has failed. Fastify tells, unless the reply is over. */
export function handlerFailed (exchange: Exchange): void {
  const { run, reply } = exchange
  if (run === undefined) return
  run.to('ended')
  if (exchange.answeredFor || (hasEnded(reply) && hasClosed(exchange))) afterClose(exchange, performance.now(), true)
}

function settleUnseen (exchange: Holding): void {
  const { statusCode } = exchange.reply.raw
  if (!exchange.answeredFor && !mayBeKept(exchange, statusCode)) return settleWith(exchange, undefined)
  whenWhole(exchange, () => settleWith(exchange, unreplayable(statusCode, exchange.knownFingerprint())))
}

/** Only a status that has no content can be replayed: nobody knows what else would have been sent. */
function settleEmpty (exchange: Holding): void {
  const { reply, route } = exchange
  whenWhole(exchange, () => {
    if (!mayBeKept(exchange, reply.statusCode)) return settleWith(exchange, undefined)
    let outcome = unreplayable(reply.statusCode, exchange.knownFingerprint())
    try {
      if (WITHOUT_CONTENT.has(reply.statusCode)) {
        outcome = capture(reply, headersOf(reply), exchange.fingerprint, route.replayHeaders)
      }
    } catch (error) {
      logFailure(exchange, error)
    }
    settleWith(exchange, outcome)
  })
}

/** Where the route's own function fails, the safe answer: what has been answered does not run again. */
function mayBeKept (exchange: Exchange, status: number): boolean {
  try {
    return exchange.isCacheable(status)
  } catch (error) {
    logFailure(exchange, error)
    return true
  }
}

function logFailure ({ request, id }: Exchange, thrown: unknown): void {
  request.log.error({ idempotencyId: id, err: errorFrom(thrown) }, 'idempotency: a function among the options ' +
    'has failed')
}

/** A key settles only for a whole body; one that was cut off frees it. */
function whenWhole (exchange: Holding, done: () => void): void {
  const { lease, body } = exchange
  if (body.whole) return done()
  lease.to('collecting')
  exchange.readRest('answered', error => error === undefined ? done() : settleWith(exchange, undefined))
}

function settleWith ({ core, lease, reply }: Holding, outcome: StoreOutcome | undefined): void {
  const status = reply.raw.headersSent ? reply.statusCode : undefined
  settle(core, lease, { outcome, status }, () => {})
}

/** To be called when a claim has come too late: the response is over, and nothing has run. */
export function releaseUnused ({ core, lease }: Holding, done: () => void): void {
  settle(core, lease, { outcome: undefined, status: undefined }, done)
}
