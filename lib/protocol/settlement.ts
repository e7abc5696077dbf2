import type { StoreOutcome } from '../stores/contract.ts'

/**
 * What becomes of a key, as two decisions over plain facts: when a reply is on its way, and when a response is over.
 * Each has its table: the first row that fits decides, and an empty cell fits everything.
 */

/** `pending`: hooks before the parser have their say. `refused`: a parser gave up before the body's end. */
export type Admission = 'pending' | 'admitted' | 'refused'

export interface ReplyFacts {
  /** Fastify answers in the place of a handler that may still run. */
  answeredFor: boolean
  /** The status, or the handler's own word, says that this reply is an outcome. */
  cacheable: boolean
  admission: Admission
  /** Every byte of the request's body has arrived. */
  bodyWhole: boolean
  /** The handler has begun. */
  started: boolean
}

/** `leave`: the handler's end decides. `read`: it depends on whether the rest of the body arrives. */
export type ReplyDecision = 'leave' | 'release' | 'complete' | 'read'

/**
 * What becomes of the key when a reply is on its way (G4, G8, G9):
 *
 * | answeredFor | cacheable | admission        | bodyWhole | started | decision |
 * |-------------|-----------|------------------|-----------|---------|----------|
 * | yes         |           |                  |           |         | leave    |
 * | no          | no        |                  |           |         | release  |
 * | no          | yes       | pending, refused |           |         | release  |
 * | no          | yes       | admitted         | yes       |         | complete |
 * | no          | yes       | admitted         | no        | no      | release  |
 * | no          | yes       | admitted         | no        | yes     | read     |
 */
export function whenReplying (facts: ReplyFacts): ReplyDecision {
  if (facts.answeredFor) return 'leave'
  if (!facts.cacheable || facts.admission !== 'admitted') return 'release'
  if (facts.bodyWhole) return 'complete'
  return facts.started ? 'read' : 'release'
}

/**
 * How far the handler is: `none` has not begun; `callback` will call `reply.send` or nothing; `promise` will tell its
 * end; `delegated` has given its reply to somebody who may send it later; `silent` did so, and nothing was sent for a
 * lease after the response was over; `empty` has ended with nothing to send; `ended` has ended otherwise.
 */
export type HandlerProgress = 'none' | 'callback' | 'promise' | 'delegated' | 'silent' | 'empty' | 'ended'

export interface OverFacts {
  handler: HandlerProgress
  /** Fastify has answered in the handler's place. */
  answeredFor: boolean
  /** `reply.send` was called by the handler. */
  replied: boolean
  /** Fastify counts the reply as sent: ended, or hijacked. */
  sent: boolean
  /** The response has left whole. */
  finished: boolean
  admission: Admission
  bodyWhole: boolean
}

/**
 * `wait`: somebody else decides, or the handler may still run. `refuse`: nothing may run without the key.
 * `unseen`: the request was answered, though nobody saw with what. `empty`: it ended with nothing to send.
 */
export type OverDecision = 'wait' | 'refuse' | 'unseen' | 'empty'

/**
 * What becomes of a key whose response is over, sent or not, where no hook will decide (G6, G7, G9):
 *
 * | handler             | answeredFor | replied | sent | finished | admission | bodyWhole | decision |
 * |---------------------|-------------|---------|------|----------|-----------|-----------|----------|
 * | none                |             |         | no   |          |           | yes       | wait     |
 * | none                | no          |         | yes  |          | admitted  | yes       | unseen   |
 * | none                |             |         |      |          |           |           | refuse   |
 * | silent              |             |         |      |          |           |           | unseen   |
 * | ended, empty        | yes         |         |      |          |           |           | unseen   |
 * | callback, delegated | yes         | yes     |      |          |           |           | unseen   |
 * |                     | yes         |         |      |          |           |           | wait     |
 * | promise             | no          |         | yes  | no       |           |           | wait     |
 * |                     | no          |         | yes  |          |           |           | unseen   |
 * | empty               | no          | no      | no   |          |           |           | empty    |
 * |                     | no          |         | no   |          |           |           | wait     |
 */
export function whenOver (facts: OverFacts): OverDecision {
  const { handler, answeredFor, replied, sent, finished, admission, bodyWhole } = facts
  if (handler === 'none') {
    // Fastify goes on without its client: the handler, or the reply of a hook, decides.
    if (!sent && bodyWhole) return 'wait'
    return sent && !answeredFor && admission === 'admitted' && bodyWhole ? 'unseen' : 'refuse'
  }
  if (handler === 'silent') return 'unseen'
  if (answeredFor) {
    if (handler === 'ended' || handler === 'empty') return 'unseen'
    return replied && handler !== 'promise' ? 'unseen' : 'wait'
  }
  // Past Fastify: hijacked, raw, or its last resort. Cut off, the handler may still run.
  if (sent) return handler === 'promise' && !finished ? 'wait' : 'unseen'
  return handler === 'empty' && !replied ? 'empty' : 'wait'
}

/** The fact alone that the request was answered, where the response cannot be kept. */
export function unreplayable (status: number, fingerprint: string): StoreOutcome {
  return { fingerprint, status: Math.trunc(status), replayable: false, headers: [], body: '', text: false }
}
