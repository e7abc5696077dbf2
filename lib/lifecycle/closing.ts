import type { FastifyInstance } from 'fastify'
import { loggable } from '../events.ts'
import type { Core } from './core.ts'

/** Ends what an instance has under way when it closes, within `closeTimeout` from the call of `app.close()` on. */
export function addCloseHooks (core: Core, instance: FastifyInstance): void {
  const { waiters, renewals, backlog, calls, config: { closeTimeout } } = core
  let deadline = 0
  const left = (): number => Math.max(deadline - performance.now(), MIN_MS)
  // Fastify waits for requests before its onClose hooks: what waits for a holder must not hold that up.
  instance.addHook('preClose', done => {
    deadline = performance.now() + closeTimeout
    waiters.sendAway()
    done()
  })
  instance.addHook('onClose', async () => {
    await within(left(), idle(core))
    const leases = renewals.all()
    const ids = [...leases.map(({ holder }) => holder.id), ...backlog.stop()]
    if (ids.length > 0) {
      const keys = ids.length === 1 ? 'key is' : 'keys are'
      instance.log.warn({ ids }, `app.close(): ${ids.length} idempotency ${keys} left ` +
        `after ${closeTimeout} ms, and free when their leases end: ${ids.join(', ')}`)
    }
    for (const lease of leases) {
      lease.giveUp()
      renewals.delete(lease)
    }
    renewals.stop()
    await within(left(), new Promise<void>(resolve => {
      calls.close(error => {
        if (error !== null) instance.log.error({ err: loggable(error) }, 'idempotency: the store could not be closed')
        resolve()
      })
    }))
  })
}

/** Settles once nothing is under way. A claim that is answered may be granted, and its key be released then. */
async function idle ({ renewals, backlog, calls }: Core): Promise<void> {
  for (;;) {
    await renewals.idle()
    await backlog.idle()
    if (calls.isIdle) return
    await calls.idle()
  }
}

/** What is left is waited for this long at least: Fastify may have taken all of the time. */
const MIN_MS = 100

/** Settles with `promise`, or after `ms` without it. The process stays alive until then. */
async function within (ms: number, promise: Promise<unknown>): Promise<void> {
  let timer
  await Promise.race([promise, new Promise(resolve => { timer = setTimeout(resolve, ms) })])
  clearTimeout(timer)
}
