import type { FastifyRequest } from 'fastify'
import { sharedMembers } from '../util/shared-members.ts'
import { exchangeOf, type Exchange } from './exchange.ts'
import { stepMembers, type StepMembers } from './step-members.ts'
import type { IdempotencyStep } from './steps.ts'

interface Members {
  /** True in hooks that run on a replay. */
  readonly replayed: boolean
  /** 1 for the first execution of this key, 2 after a takeover or a freed failure, … */
  readonly attempt: number
  /** Aborted when the lease is lost: another request may hold the key now. */
  readonly signal: AbortSignal
  /** Keep this reply though its status says no. */
  readonly keep: () => void
  /** Do not keep this reply though its status says yes; the key is free again. */
  readonly release: () => void
  /**
   * Runs `work`, and records its result under the key before it resolves: in a later execution of the key (a takeover,
   * or a retry after a failure) the recorded result is given, and `work` does not run. The result is what
   * `JSON.stringify` and `JSON.parse` make of it, in every execution. Without a key `work` runs.
   *
   * Rejects with what `work` throws, which is not recorded; with an `IdempotencyError` where the store does not answer,
   * the lease is lost, or it is not known what came of the step: not caught, it is answered as any refusal of the
   * plugin; with a `TypeError` for a name that was used before in this execution, unless that step has rejected, and
   * for a result that JSON has no form for.
   */
  readonly step: IdempotencyStep
  /**
   * A UUID (version 8) that stands for one use of the key, to be passed on to a provider in its place: the same on
   * every attempt and every instance, and another for every other key prefix, scope, key and name. Without a key it is
   * random for each request.
   * @throws {TypeError} when `name` is not a string.
   */
  readonly keyFor: (name: string) => string
}

/**
 * What a handler sees as `request.idempotency`: always an object, also where the plugin does nothing for the request.
 */
export type RequestIdempotency = Members & (
  | {
    /** The idempotency key, as the client sent it. */
    readonly key: string
    /** Names scope and key, hashed: letters and digits, the same on every instance. */
    readonly id: string
  }
  | { readonly key: null, readonly id: null }
)

const kView = Symbol('fastify-idempotency view')

/**
 * The public side of a request's state: made when it is asked for, and live, since hooks may ask before the key is
 * claimed.
 */
export function viewOf (request: FastifyRequest): RequestIdempotency {
  const slot = request as { [kView]?: View }
  slot[kView] ??= new View(request)
  return slot[kView] as unknown as RequestIdempotency
}

class View {
  /** A logger and JSON.stringify see what is enumerable. */
  static readonly #members = sharedMembers<View>({
    id: { enumerable: true, get () { return this.#claimed()?.id ?? null } },
    attempt: { enumerable: true, get () { return this.#claimed()?.attempt || 1 } },
    replayed: { enumerable: true, get () { return this.#claimed()?.replay !== undefined } },
    key: { get () { return this.#claimed()?.key ?? null } },
    signal: { get () { return this.#claimed()?.lease?.signal ?? neverAborted() } },
    keep: { get () { return () => this.#decide('keep') } },
    release: { get () { return () => this.#decide('release') } },
    step: { get () { return this.#forSteps().step } },
    keyFor: { get () { return this.#forSteps().keyFor } }
  })

  readonly #request: FastifyRequest
  #stepMembers: StepMembers | undefined

  constructor (request: FastifyRequest) {
    this.#request = request
    View.#members(this)
  }

  #claimed (): Exchange | undefined {
    const exchange = exchangeOf(this.#request)
    return exchange === undefined || exchange.id === '' ? undefined : exchange
  }

  #decide (override: 'keep' | 'release'): void {
    const exchange = this.#claimed()
    if (exchange !== undefined) exchange.override = override
  }

  #forSteps (): StepMembers {
    this.#stepMembers ??= stepMembers(this.#request)
    return this.#stepMembers
  }
}

/** A new one each time: listeners on a shared one would pile up. */
function neverAborted (): AbortSignal {
  return new AbortController().signal
}
