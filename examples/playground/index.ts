/** The playground: a page at `/`, the events that it draws, and the requests that it asks for. */
import { once } from 'node:events'
import { readFileSync, readdirSync } from 'node:fs'
import type { ServerResponse } from 'node:http'
import type { FastifyInstance } from 'fastify'
import type { Happening, Order } from './events.ts'
import { Stage } from './stage.ts'

// The page needs no compiler: it is served from the sources, from where this file was compiled, too.
const folder = new URL('page/', import.meta.url.replace('/.build/', '/'))
const TYPES: Record<string, string> = {
  html: 'text/html', css: 'text/css', js: 'text/javascript', svg: 'image/svg+xml'
}
const SAFE = { 'content-security-policy': "default-src 'self'", 'cache-control': 'no-cache' }

const ORDER = {
  type: 'object',
  required: ['order', 'to', 'body'],
  properties: {
    order: { type: 'string' },
    to: { enum: ['a', 'b'] },
    key: { type: 'string' },
    body: { type: 'string' },
    fault: { enum: ['lose', 'fail', 'die-before', 'die-after'] },
    ask: { type: 'boolean' },
    step: { type: 'boolean' }
  }
}

export async function playground (app: FastifyInstance): Promise<void> {
  const stage = new Stage(app.idempotency.store)
  const watching = new Set<ServerResponse>()

  for (const file of readdirSync(folder)) {
    const type = TYPES[file.slice(file.lastIndexOf('.') + 1)]
    if (type === undefined) continue
    const content = readFileSync(new URL(file, folder))
    app.get(
      file === 'index.html' ? '/' : `/playground/${file}`,
      async (_request, reply) => await reply.headers(SAFE).type(`${type}; charset=utf-8`).send(content)
    )
  }

  app.get('/playground/events', async (_request, reply) => {
    reply.hijack()
    // Closed with its stream: a connection that is kept alive would keep the server from closing.
    const headers = { 'content-type': 'text/event-stream', 'cache-control': 'no-store', connection: 'close' }
    reply.raw.writeHead(200, headers).flushHeaders()
    watching.add(reply.raw)
    const tell = (happening: Happening): void => { reply.raw.write(`data: ${JSON.stringify(happening)}\n\n`) }
    stage.on('happening', tell)
    stage.open().then(() => reply.raw.write('event: ready\ndata:\n\n'), error => app.log.error(error))
    await once(reply.raw, 'close')
    stage.off('happening', tell)
    watching.delete(reply.raw)
  })

  const route = { schema: { body: ORDER }, config: { idempotency: false as const } }
  app.post<{ Body: Order }>('/playground/requests', route, async request => (
    await stage.send(request.body) ?? { status: 0 }
  ))

  // Streams would keep the server from closing.
  app.addHook('preClose', async () => { for (const response of watching) response.end() })
  app.addHook('onClose', async () => await stage.close())
}
