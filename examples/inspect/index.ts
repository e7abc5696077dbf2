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

interface Form { scope?: string, key: string, confirm?: string }

// Referrer-Policy: with no-referrer a browser says "Origin: null" of the page's own forms. A referrer here tells a
// path, no more.
const HEADERS = {
  'cache-control': 'no-store',
  'content-security-policy': "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; " +
    "frame-ancestors 'none'; base-uri 'none'",
  'referrer-policy': 'same-origin'
}

/** @throws {TypeError} without `authenticate`: whoever sees this page can have a request executed again. */
export async function inspect (instance: FastifyInstance, { authenticate }: InspectOptions): Promise<void> {
  if (typeof authenticate !== 'function') {
    throw new TypeError('inspect: option "authenticate" must be an onRequest hook that lets only operators through')
  }
  if (!instance.hasContentTypeParser('application/x-www-form-urlencoded')) {
    instance.addContentTypeParser(
      'application/x-www-form-urlencoded',
      { parseAs: 'string' },
      (_request, body, done) => done(null, Object.fromEntries(new URLSearchParams(String(body))))
    )
  }
  instance.addHook('onRequest', (_request, reply, done) => {
    // First, so that whatever refuses has them too.
    reply.headers(HEADERS)
    done()
  })
  instance.addHook('onRequest', authenticate)
  instance.addHook('onRequest', refuseOtherSites)
  const route = { config: { idempotency: false } }
  const { prefix } = instance

  const keyOf = ({ scope = '', key }: Form) => ({ key, ...(scope === '' ? {} : { scope }) })
  const look = async (form: Form): Promise<Found> =>
    ({ scope: form.scope ?? '', key: form.key, entry: await instance.idempotency.inspect(keyOf(form)) })

  instance.get('/', route, async (_request, reply) => await send(reply, ask(prefix)))
  instance.post('/', route, async (request, reply) => {
    const body = formOf(request.body)
    if (body === undefined) return await send(reply.code(400), ask(prefix, 'Type a key.'))
    return await send(reply, show(prefix, await look(body)))
  })
  instance.post('/free', route, async (request, reply) => {
    const body = formOf(request.body)
    if (body === undefined) return await send(reply.code(400), ask(prefix, 'Type a key.'))
    const found = await look(body)
    // Only what was seen is freed: by now somebody else may hold the key.
    if (found.entry === undefined || body.confirm !== stateOf(found.entry)) {
      return await send(
        reply.code(409),
        show(prefix, found, 'The key has changed meanwhile. This is what it is now; nothing was freed.')
      )
    }
    await instance.idempotency.forget(keyOf(body))
    request.log.warn(
      { state: found.entry.state, attempt: found.entry.attempt }, 'idempotency: an operator has freed a key'
    )
    return await send(reply, freed(prefix, found))
  })
}

/** A body as the page's own forms send it: whatever parser the app has, a key and texts only. */
function formOf (body: unknown): Form | undefined {
  if (typeof body !== 'object' || body === null) return undefined
  const { scope = '', key, confirm = '' } = body as Record<string, unknown>
  if (typeof key !== 'string' || key === '' || typeof scope !== 'string' || typeof confirm !== 'string') {
    return undefined
  }
  return { scope, key, confirm }
}

/** A form on another site must not free keys with an operator's cookie. */
function refuseOtherSites (request: FastifyRequest, reply: FastifyReply, done: () => void): void {
  if (request.method === 'POST' && !isOwn(request)) reply.code(403).send('This form must be sent from this page.')
  else done()
}

/** By Fetch Metadata; over plain HTTP, where browsers send none, by Origin. What sends neither is no browser. */
function isOwn ({ headers, host }: FastifyRequest): boolean {
  const { 'sec-fetch-site': site, origin } = headers
  if (site !== undefined) return site === 'same-origin'
  return origin === undefined || (URL.canParse(origin) && new URL(origin).host === host)
}

async function send (reply: FastifyReply, html: string): Promise<FastifyReply> {
  return await reply.type('text/html; charset=utf-8').send(html)
}
