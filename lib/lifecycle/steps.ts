import { loggable, publish } from '../events.ts'
import type { Lease } from '../lease/lease.ts'
import type { Answer } from '../lease/store-calls.ts'
import { IdempotencyError } from '../protocol/errors.ts'
import {
  decodeResult, encodeResult, MAX_STEP_BYTES, MAX_STEPS, NOT_KEPT, type Jsonified
} from '../protocol/step-result.ts'
import type { StoreRecording, StoreStep } from '../stores/contract.ts'
import { foreign } from './binding.ts'
import type { Exchange } from './exchange.ts'

/** What a step's `work` gets. */
export interface IdempotencyStepContext {
  /** `keyFor(name)`: to be passed on to the provider in the place of the client's own key. */
  readonly key: string
  /** `request.idempotency.signal` */
  readonly signal: AbortSignal
}

export interface IdempotencyStepOptions<T> {
  /**
   * Called in the place of `work` where an earlier execution has begun the step, and nobody knows whether it took
   * effect: it was killed, or `work` threw. Its result is recorded as the step's; ask the provider, or throw. With it,
   * a step costs a second round trip, before `work`.
   */
  interrupted?: ((context: IdempotencyStepContext) => T) | undefined
}

type Work<T> = (context: IdempotencyStepContext) => T

/** Runs one step, see `request.idempotency.step`. */
export type IdempotencyStep = <T>(
  name: string, work: (context: IdempotencyStepContext) => T, options?: IdempotencyStepOptions<T>
) => Promise<Jsonified<Awaited<T>>>

/** The names of one execution: each step runs once, unless it has failed. */
export class StepNames {
  readonly #used = new Set<string>()

  /** @throws {TypeError} for a name that is used again. */
  async enter<T> (name: string, run: () => Promise<T>): Promise<T> {
    if (this.#used.has(name)) {
      throw new TypeError(`The step "${name}" was used before in this execution; each needs a name of its own`)
    }
    this.#used.add(name)
    try {
      return await run()
    } catch (error) {
      this.#used.delete(name)
      throw error
    }
  }
}

/** Runs `work`, and gives its result the shape that a recorded one would have. */
export async function runUnrecorded<T> (
  name: string, work: Work<T>, context: IdempotencyStepContext
): Promise<Jsonified<Awaited<T>>> {
  return decodeResult(encodeResult('step', name, await work(context))) as Jsonified<Awaited<T>>
}

/** Errors that come when a client leaves, or an outcome is stored: nobody chooses when. */
const UNTIMELY = new WeakSet<Error>()

/**
 * The same promise, but for rejections that nobody may be there to hear yet, as where a handler reads the body beside
 * a step: they must not end the process. What `work` throws, and a wrong call, are as with any promise.
 */
export function heard<T> (promise: Promise<T>): Promise<T> {
  const returned = new Promise<T>((resolve, reject) => {
    promise.then(resolve, (error: Error) => {
      reject(error)
      if (error instanceof IdempotencyError || UNTIMELY.has(error)) returned.catch(() => {})
    })
  })
  return returned
}

function untimely (error: Error): Error {
  UNTIMELY.add(error)
  return error
}

/** What is known of a step that has begun. */
type Begun = 'now' | 'before' | { result: string }

/** The steps of a request that has a key; made for the first one, or for the first derived key. */
export class Steps {
  readonly #exchange: Exchange
  readonly #names = new StepNames()
  /** What is recorded, as far as this execution knows: results, and what has begun (`undefined`). */
  readonly #known = new Map<string, string | undefined>()
  /** Bytes that each name takes with its result, from the moment it is sent. */
  readonly #sizes = new Map<string, number>()
  #bytes = 0
  /** An earlier execution has run steps whose names there was no room for. */
  #hasUnknown = false
  #ready: Promise<void> | undefined
  #warned = false

  constructor (exchange: Exchange) {
    this.#exchange = exchange
    // The next renewal binds the key to this request.
    if (exchange.lease !== undefined) exchange.lease.fingerprintSent = false
  }

  /** What is recorded, as far as this execution knows. */
  records (): StoreStep[] {
    return Array.from(this.#known, ([name, result]) => ({ name, result }))
  }

  async run<T> (
    name: string, work: Work<T>, context: IdempotencyStepContext, options: IdempotencyStepOptions<T> = {}
  ): Promise<Jsonified<Awaited<T>>> {
    return await this.#names.enter(name, async () => {
      const { claim, lease } = this.#exchange
      if (claim === 'bypassed') {
        this.#warn()
        return await runUnrecorded(name, work, context)
      }
      if (lease === undefined) {
        throw new Error(`The step "${name}" needs the idempotency key, which this request does not hold`)
      }
      return decodeResult(await this.#step(lease, name, work, context, options)) as Jsonified<Awaited<T>>
    })
  }

  /** The text of the step's result. */
  async #step<T> (
    lease: Lease, name: string, work: Work<T>, context: IdempotencyStepContext,
    { interrupted }: IdempotencyStepOptions<T>
  ): Promise<string> {
    this.#assertHeld(lease, name)
    await this.#prepare()
    const known = this.#known.get(name)
    if (known !== undefined) return this.#reused(name, known)
    if (this.#hasUnknown) throw outcomeUnknown(name)
    if (lease.isOverdue()) await this.#confirm(lease, name)
    const begun = interrupted === undefined ? 'now' : await this.#begin(lease, name)
    if (typeof begun === 'object') return this.#reused(name, begun.result)
    this.#assertHeld(lease, name)
    const run = begun === 'before' && interrupted !== undefined ? interrupted : work
    return await this.#record(lease, name, encodeResult('step', name, await run(context)))
  }

  /** Before the first step: the key is bound to this request, and what earlier executions have recorded is known. */
  async #prepare (): Promise<void> {
    const ready = this.#ready ??= this.#learn()
    try {
      await ready
    } catch (error) {
      if (this.#ready === ready) this.#ready = undefined
      throw error
    }
  }

  async #learn (): Promise<void> {
    const { core: { calls }, body, attempt, boundTo, storeKey } = this.#exchange
    if (!calls.recordsSteps) {
      throw new Error(
        'fastify-idempotency: request.idempotency.step needs a store with the methods "record" and "recorded"; ' +
          'this one has not both'
      )
    }
    await new Promise<void>((resolve, reject) => {
      body.arrive(error => error === undefined ? resolve() : reject(untimely(error)))
    })
    const refusal = foreign(this.#exchange)
    if (refusal !== undefined) throw refusal
    if (attempt === 1 && boundTo === '') return
    const records = await this.#ask<StoreStep[]>('read', done => calls.recorded(storeKey, done))
    for (const { name, result } of records) {
      if (name === '') {
        this.#hasUnknown = true
      } else {
        this.#known.set(name, result)
        this.#reserve(name, result ?? '')
      }
    }
  }

  /** A lease that nobody has confirmed for as long as it lasts may be another's: nothing new is begun on it. */
  async #confirm (lease: Lease, name: string): Promise<void> {
    const { core: { renewals } } = this.#exchange
    const renewed = await this.#ask<boolean>('renewed for', done => renewals.renew(lease, performance.now(), done))
    if (renewed) return
    lease.lose()
    this.#assertHeld(lease, name)
  }

  async #begin (lease: Lease, name: string): Promise<Begun> {
    if (this.#known.has(name)) return 'before'
    if (!this.#reserve(name, '')) {
      // Whether it takes effect cannot be told later.
      await this.#write(lease, '', NOT_KEPT)
      return 'now'
    }
    const recording = await this.#write(lease, name, undefined)
    if (recording.outcome === 'recorded') return 'now'
    return recording.result === undefined ? 'before' : { result: recording.result }
  }

  /** Records a result; the text of the one that stands. */
  async #record (lease: Lease, name: string, text: string): Promise<string> {
    const fits = this.#reserve(name, text)
    const named = fits || this.#reserve(name, NOT_KEPT)
    const recording = await this.#write(lease, named ? name : '', fits ? text : NOT_KEPT)
    if (named && recording.outcome === 'known' && recording.result !== undefined) {
      return this.#reused(name, recording.result)
    }
    const { request, id } = this.#exchange
    if (!fits) {
      request.log.warn({
        idempotencyId: id, step: name
      }, 'idempotency: there is no room for the result of a step; a later execution gets idempotency_outcome_unknown')
    }
    publish('step-recorded', request, this.#exchange, { step: name })
    return text
  }

  #reused (name: string, text: string): string {
    if (text === NOT_KEPT) throw outcomeUnknown(name)
    const { request, id } = this.#exchange
    request.log.debug({ idempotencyId: id, step: name }, 'idempotency: the recorded result of a step is used')
    publish('step-reused', request, this.#exchange, { step: name })
    return text
  }

  /** Writes to the store what becomes of a step; what stands there then. */
  async #write (
    lease: Lease, name: string, result: string | undefined
  ): Promise<Exclude<StoreRecording, { outcome: 'lost' }>> {
    const { core: { calls }, storeKey, token, fingerprint } = this.#exchange
    const note = (recording: StoreRecording | undefined): void => {
      if (recording === undefined || recording.outcome === 'lost') return
      this.#known.set(name, recording.outcome === 'recorded' ? result : recording.result)
    }
    const recording = await this.#ask<StoreRecording>('recorded', done => {
      calls.record(storeKey, token, fingerprint, name, result, (error, recording) => {
        note(recording)
        done(error, recording)
      }, (_error, late) => note(late))
    })
    if (recording.outcome !== 'lost') return recording
    if (!lease.isOver && lease.state !== 'committing') lease.lose()
    throw this.#lost(lease)
  }

  async #ask<T> (what: string, operation: (done: Answer<T>) => void): Promise<T> {
    return await new Promise((resolve, reject) => {
      operation((error, value) => {
        if (error === null) return resolve(value as T)
        const { request, id, route: { retryAfter } } = this.#exchange
        request.log.error({ idempotencyId: id, err: loggable(error) }, `idempotency: a step could not be ${what}`)
        reject(new IdempotencyError('idempotency_store_unavailable',
          'The idempotency store cannot be reached; the request was interrupted. Retry later.', {
            retryAfter, cause: error
          }))
      })
    })
  }

  /** Whether there is room for a result, with its name; it is taken from now on. */
  #reserve (name: string, text: string): boolean {
    const size = Buffer.byteLength(name) + Buffer.byteLength(text)
    const before = this.#sizes.get(name)
    const bytes = this.#bytes - (before ?? 0) + size
    if (bytes > MAX_STEP_BYTES || (before === undefined && this.#sizes.size >= MAX_STEPS)) return false
    this.#sizes.set(name, size)
    this.#bytes = bytes
    return true
  }

  #assertHeld (lease: Lease, name: string): void {
    if (lease.lost) throw this.#lost(lease)
    if (lease.isOver) {
      throw untimely(new Error(`The step "${name}" came when the outcome of its request was stored already`))
    }
  }

  #lost ({ signal }: Lease): IdempotencyError {
    const { retryAfter } = this.#exchange.route
    return new IdempotencyError('idempotency_in_progress',
      'The lease of this Idempotency-Key was lost; another request may be running. Retry later.', {
        retryAfter, cause: signal.reason
      })
  }

  #warn (): void {
    if (this.#warned) return
    this.#warned = true
    const { request, id } = this.#exchange
    request.log.warn(
      { idempotencyId: id }, 'idempotency: the steps of a request that runs unprotected are not recorded'
    )
  }
}

function outcomeUnknown (name: string): IdempotencyError {
  return new IdempotencyError('idempotency_outcome_unknown',
    `The step "${name}" has run for this Idempotency-Key, but its result is not known. ` +
    'Look before you send the request again with a fresh key.')
}
