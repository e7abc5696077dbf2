import type { FastifyInstance } from 'fastify'
import type { Core } from './core.ts'

/** Ends what an instance has under way when it closes, within `closeTimeout` in all. */
export function addCloseHooks (core: Core, instance: FastifyInstance): void {
  const { waiters, renewals, backlog, calls, config: { closeTimeout } } = core
  // Fastify waits for requests before its onClose hooks: what waits for a holder must not hold that up.
  instance.addHook('preClose', done => {
    for (const waiter of waiters) waiter.sendAway()
    done()
  })
  instance.addHook('onClose', async () => {
    const deadline = performance.now() + closeTimeout
    await within(closeTimeout, Promise.all([renewals.idle(), backlog.idle()]))
    const leases = renewals.all()
    const ids = [...leases.map(({ holder }) => holder.id), ...backlog.stop()]
    if (ids.length > 0) {
      instance.log.warn({ ids }, `app.close(): ${ids.length} idempotency ${ids.length === 1 ? 'key is' : 'keys are'} left ` +
        `after ${closeTimeout} ms, and free when their leases end: ${ids.join(', ')}`)
    }
    for (const lease of leases) {
      lease.giveUp()
      renewals.delete(lease)
    }
    renewals.stop()
    const left = Math.max(deadline - performance.now(), MIN_CLOSE_MS)
    await within(left, new Promise<void>(resolve => { calls.close(() => resolve()) }))
  })
}

/** A store is given this long to close, whatever time is left. */
const MIN_CLOSE_MS = 100

/** Settles with `promise`, or after `ms` without it. The process stays alive until then. */
async function within (ms: number, promise: Promise<unknown>): Promise<void> {
  let timer
  await Promise.race([promise, new Promise(resolve => { timer = setTimeout(resolve, ms) })])
  clearTimeout(timer)
}
