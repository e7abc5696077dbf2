/**
 * A page for one idempotency key: its state, attempt, times and status, and a way to free it.
 *
 *     await app.register(inspect, { prefix: '/admin/idempotency', authenticate: requireOperator })
 *
 * Plain forms, no script. Scope and key travel in bodies only, so that no log, history or
 * referrer gets to see them.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest, onRequestHookHandler } from 'fastify'
import { ask, freed, show, stateOf, type Found } from './page.ts'

export interface InspectOptions {
  /** Lets operators through, and nobody else: the app's own. */
  authenticate: onRequestHookHandler
}

interface Form { scope?: string, key?: string, confirm?: string }

/** @throws {TypeError} without `authenticate`: whoever sees this page can have a request executed again. */
export async function inspect (instance: FastifyInstance, { authenticate }: InspectOptions): Promise<void> {
  if (typeof authenticate !== 'function') throw new TypeError('inspect: option "authenticate" must be an onRequest hook that lets only operators through')
  if (!instance.hasContentTypeParser('application/x-www-form-urlencoded')) {
    instance.addContentTypeParser('application/x-www-form-urlencoded', { parseAs: 'string' }, (_request, body, done) => done(null, Object.fromEntries(new URLSearchParams(String(body)))))
  }
  instance.addHook('onRequest', authenticate)
  instance.addHook('onRequest', refuseOtherSites)
  const route = { config: { idempotency: false } }
  const { prefix } = instance

  const keyOf = ({ scope = '', key = '' }: Form) => ({ key, ...(scope === '' ? {} : { scope }) })
  const look = async (form: Form): Promise<Found> => ({ scope: form.scope ?? '', key: form.key ?? '', entry: await instance.idempotency.inspect(keyOf(form)) })

  instance.get('/', route, async (_request, reply) => await send(reply, ask(prefix)))
  instance.post<{ Body: Form }>('/', route, async ({ body }, reply) => {
    if (!body.key) return await send(reply.code(400), ask(prefix, 'Type a key.'))
    return await send(reply, show(prefix, await look(body)))
  })
  instance.post<{ Body: Form }>('/free', route, async (request, reply) => {
    const { body } = request
    const found = await look(body)
    // Only what was seen is freed: by now somebody else may hold the key.
    if (found.entry === undefined || body.confirm !== stateOf(found.entry)) return await send(reply.code(409), show(prefix, found, 'The key has changed meanwhile. This is what it is now; nothing was freed.'))
    await instance.idempotency.forget(keyOf(body))
    request.log.warn({ state: found.entry.state, attempt: found.entry.attempt }, 'idempotency: an operator has freed a key')
    return await send(reply, freed(prefix, found))
  })
}

/** A form on another site must not free keys with an operator's cookie (Fetch Metadata; every browser since 2023). */
function refuseOtherSites (request: FastifyRequest, reply: FastifyReply, done: () => void): void {
  const site = request.headers['sec-fetch-site']
  if (request.method === 'POST' && site !== undefined && site !== 'same-origin') reply.code(403).send('This form must be sent from this page.')
  else done()
}

async function send (reply: FastifyReply, html: string): Promise<FastifyReply> {
  return await reply.headers({
    'content-type': 'text/html; charset=utf-8',
    'cache-control': 'no-store',
    'content-security-policy': "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    'referrer-policy': 'no-referrer'
  }).send(html)
}
