import type { FastifyInstance, FastifyPluginAsync } from 'fastify'
import fp from 'fastify-plugin'
import { chooseStore } from './config/choose-store.ts'
import { parseOptions } from './config/config.ts'
import type { FastifyIdempotencyOptions, IdempotencyRouteOptions } from './config/options.ts'
import { Backlog } from './lease/backlog.ts'
import { Renewals } from './lease/renewal.ts'
import { StoreCalls } from './lease/store-calls.ts'
import { checkOver } from './lifecycle/after-close.ts'
import { addCloseHooks } from './lifecycle/closing.ts'
import type { Core } from './lifecycle/core.ts'
import { addInstanceHooks } from './lifecycle/instance-hooks.ts'
import { addRouteHooks } from './lifecycle/route-hooks.ts'
import { StartupWarnings } from './lifecycle/startup-warnings.ts'
import { viewOf, type RequestIdempotency } from './lifecycle/view.ts'
import { Waiters } from './lifecycle/wait.ts'
import { createOperator, type IdempotencyOperator } from './operator.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** `false` opts the route out, `true` opts it in, an object tunes it. */
    idempotency?: boolean | IdempotencyRouteOptions
  }
  interface FastifyRequest {
    readonly idempotency: RequestIdempotency
  }
  interface FastifyInstance {
    idempotency: IdempotencyOperator
  }
}

/**
 * Registers the plugin. @throws {TypeError} naming a wrong or unknown option. @throws {Error} where it is registered
 * already.
 */
async function plugin (instance: FastifyInstance, options: FastifyIdempotencyOptions): Promise<void> {
  if (instance.hasDecorator('idempotency')) {
    throw new Error(
      'fastify-idempotency is registered already, on this instance or on one around it; register it once, ' +
        'and tune single routes by config.idempotency'
    )
  }
  const config = parseOptions(options, instance.supportedMethods)
  const { store, fellBack } = chooseStore(instance, config)
  const calls = new StoreCalls(store, config.storeTimeout)
  const renewals = new Renewals(calls, checkOver)
  const backlog = new Backlog({ calls, renewals })
  const warnings = new StartupWarnings(instance)
  const core: Core = {
    config,
    calls,
    renewals,
    backlog,
    warnings,
    waiters: new Waiters(),
    compressed: instance.hasPlugin('@fastify/compress')
  }

  instance.decorate('idempotency', createOperator(calls, config.keyPrefix))
  instance.decorateRequest('idempotency', { getter () { return viewOf(this) }, setter () {} })
  instance.addHook('onRoute', function (route) { addRouteHooks(core, this, route) })
  addInstanceHooks(core, instance)
  instance.addHook('onReady', done => {
    warnings.tell(fellBack)
    done()
  })
  addCloseHooks(core, instance)
}

export const fastifyIdempotency: FastifyPluginAsync<FastifyIdempotencyOptions> = fp(
  plugin, { fastify: '5.x', name: 'fastify-idempotency' }
)
export default fastifyIdempotency

export type { FastifyIdempotencyOptions, IdempotencyRouteOptions, IdempotencyStage } from './config/options.ts'
export { IDEMPOTENCY_EVENTS, type IdempotencyEventName, type IdempotencyEvent } from './events.ts'
export type { IdempotencyStep, IdempotencyStepContext, IdempotencyStepOptions } from './lifecycle/steps.ts'
export type { RequestIdempotency } from './lifecycle/view.ts'
export type { IdempotencyInspection, IdempotencyKeyRef, IdempotencyOperator } from './operator.ts'
export { IdempotencyError, type IdempotencyErrorForm, type IdempotencyErrorCode } from './protocol/errors.ts'
export type { Jsonified } from './protocol/step-result.ts'
export type {
  StoreAnswer, StoreBinding, StoreClaim, StoreClaimRequest, StoreEntry, StoreOutcome, StoreRecording, StoreStep,
  IdempotencyStore
} from './stores/contract.ts'
export { MemoryStore, type MemoryStoreOptions } from './stores/memory/store.ts'
export { decodeOutcome, encodeOutcome, UnreadableRecordError } from './stores/record.ts'
export { RedisStore, type RedisStoreClient, type RedisStoreOptions } from './stores/redis/store.ts'
