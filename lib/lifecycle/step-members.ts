import { randomUUID } from 'node:crypto'
import type { FastifyRequest } from 'fastify'
import { derivedKey, randomKey } from '../protocol/derived-key.ts'
import { sharedMembers } from '../util/shared-members.ts'
import { mayGetKey } from './before-key.ts'
import { exchangeOf, type Exchange } from './exchange.ts'
import { checkCall } from './step-call.ts'
import { heard, runUnrecorded, StepNames, Steps, type IdempotencyStep, type IdempotencyStepContext } from './steps.ts'

/** The members `step` and `keyFor` of `request.idempotency`. */
export interface StepMembers {
  readonly step: IdempotencyStep
  readonly keyFor: (name: string) => string
}

/** Its members are made when they are asked for: most steps ask for one of them, or none. */
class StepContext {
  static readonly #members = sharedMembers<StepContext>({
    key: { enumerable: true, get () { return this.#keyFor(this.#name) } },
    signal: { enumerable: true, get () { return this.#request.idempotency.signal } }
  })

  readonly #request: FastifyRequest
  readonly #name: string
  readonly #keyFor: StepMembers['keyFor']

  constructor (request: FastifyRequest, name: string, keyFor: StepMembers['keyFor']) {
    this.#request = request
    this.#name = name
    this.#keyFor = keyFor
    StepContext.#members(this)
  }
}

type WithSteps = Exchange & { steps: Steps }

/** To be made when one of them is asked for. */
export function stepMembers (request: FastifyRequest): StepMembers {
  /** Where the request has no key. */
  let names: StepNames | undefined
  let seed: string | undefined

  function randomKeyFor (name: string): string {
    seed ??= randomUUID()
    return randomKey(seed, name)
  }

  function keyFor (name: string): string {
    if (typeof name !== 'string') throw new TypeError(`The name of a derived key must be a string, got ${typeof name}`)
    const exchange = withSteps(request, 'keyFor')
    if (exchange === undefined) return randomKeyFor(name)
    return derivedKey(exchange.core.config.keyPrefix, exchange.scope, exchange.key, name)
  }

  const run: IdempotencyStep = async (name, work, options) => {
    checkCall(name, work, options)
    const exchange = withSteps(request, 'step')
    const context = new StepContext(request, name, keyFor) as unknown as IdempotencyStepContext
    if (exchange === undefined) {
      names ??= new StepNames()
      return await names.enter(name, async () => await runUnrecorded(name, work, context))
    }
    return await exchange.steps.run(name, work, context, options)
  }
  const step: IdempotencyStep = (name, work, options) => heard(run(name, work, options))

  return { step, keyFor }
}

/** The state of a request with a key, which is bound to the request from now on; `undefined` without one. */
function withSteps (request: FastifyRequest, what: string): WithSteps | undefined {
  const exchange = exchangeOf(request)
  if (exchange === undefined && !mayGetKey(request)) return undefined
  if (exchange === undefined || exchange.id === '') {
    throw new Error(
      `fastify-idempotency: request.idempotency.${what} was used before the key is known; see the option "hook"`
    )
  }
  exchange.steps ??= new Steps(exchange)
  return exchange as WithSteps
}
