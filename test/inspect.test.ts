import formbody from '@fastify/formbody'
import type { FastifyInstance, onRequestHookHandler } from 'fastify'
import t from 'tap'
import { inspect } from '../examples/inspect/index.ts'
import { gate, start, stopRedis, STORES, type TestApp } from './fixtures/app.ts'

t.teardown(stopRedis)

const authenticate: onRequestHookHandler = (request, reply, done) => {
  if (request.headers.authorization === 'Basic operator') done()
  else reply.code(401).send('operators only')
}
const forms = (app: TestApp) => ({
  /** Sends a form as a browser does from the page itself. */
  post: async (path: string, fields: Record<string, string>, headers = {}) => await app.call({
    path,
    body: String(new URLSearchParams(fields)),
    headers: {
      'content-type': 'application/x-www-form-urlencoded',
      authorization: 'Basic operator',
      'sec-fetch-site': 'same-origin',
      ...headers
    }
  }),
  get: async (path: string, headers = {}) => await app.call(
    { method: 'GET', path, headers: { authorization: 'Basic operator', ...headers } }
  )
})
const confirmOf = (html: string): string => /name="confirm" value="([^"]*)"/.exec(html)?.[1] ?? ''
const textOf = (html: string): string => html.replace(
  /<style>.*<\/style>/s, ''
).replace(/<[^>]*>/g, ' ').replace(/\s+/g, ' ')

for (const mode of STORES) {
  t.test(`an operator sees a key's state, and frees it after a confirmation (${mode})`, async t => {
    const [started, finish] = [gate(), gate()]
    let runs = 0
    const app = await start(t, mode, {
      routes: async app => {
        await app.register(inspect, { prefix: '/admin/keys', authenticate })
        app.post('/', async (_request, reply) => {
          runs++
          if (runs === 1) throw new Error('first')
          started.open()
          await finish.promise
          return await reply.code(201).send({ secret: 'body' })
        })
      }
    })
    const { post, get } = forms(app)
    const fields = { scope: 'Bearer me', key: 'order-1' }
    const pay = async () => await app.post('order-1', '{}', {
      headers: { 'content-type': 'application/json', 'idempotency-key': 'order-1', authorization: 'Bearer me' }
    })

    t.match((await get('/admin/keys')).text, /<label for="key">Key<\/label>/)
    t.match(textOf((await post('/admin/keys', fields)).text), /Nothing is known of this key/)
    await pay()
    t.match(textOf((await post('/admin/keys', fields)).text), /State freed Executions so far 1 /)
    const paying = pay()
    await started.promise
    const held = await post('/admin/keys', fields)
    t.match(textOf(held.text), /Key order-1 State held Executions so far 2 .*Lease ends, unless renewed /)
    t.match(textOf(held.text), /Lease ends, unless renewed .*its handler still runs, it loses its lease/)
    finish.open()
    t.equal((await paying).status, 201)

    const late = await post('/admin/keys/free', { ...fields, confirm: confirmOf(held.text) })
    t.equal(late.status, 409)
    t.match(
      textOf(late.text),
      /changed meanwhile.*State completed Executions so far 2 .*Forgotten .* Status of the response 201/
    )
    t.notMatch(late.text, /secret/)
    t.equal((await pay()).replayed, true, 'nothing was freed')

    const freed = await post('/admin/keys/free', { ...fields, confirm: confirmOf(late.text) })
    t.match(textOf(freed.text), /The key is free It was completed/)
    t.equal((await pay()).replayed, false)
    t.equal(runs, 3)
    t.equal((
      await post('/admin/keys/free', { scope: '', key: 'order-1', confirm: '' })
    ).status, 409, 'another scope is another key')
  })
}

t.test('nobody else gets in: not without the app\'s own authentication, not from another site', async t => {
  const app = await start(t, 'memory', {
    routes: async app => {
      await app.register(inspect, { prefix: '/keys', authenticate })
      app.post('/', async () => ({}))
    }
  })
  const { post, get } = forms(app)
  await app.post('k', '{}')
  const fields = { scope: '', key: 'k' }
  t.equal((await get('/keys', { authorization: 'Bearer me' })).status, 401)
  t.equal((await post('/keys/free', fields, { authorization: 'Bearer me' })).status, 401)
  for (const site of ['cross-site', 'same-site', 'none']) {
    t.equal((await post('/keys/free', fields, { 'sec-fetch-site': site })).status, 403)
  }
  const { headers } = await post('/keys', fields)
  t.equal(headers['cache-control'], 'no-store')
  t.match(headers['content-security-policy'], /default-src 'none'/)
  await t.rejects(start(t, 'memory', {
    routes: async app => { await app.register(inspect, {} as { authenticate: typeof authenticate }) }
  }), /option "authenticate" must be an onRequest hook/)
})

t.test('what was typed is shown as text, an empty key is asked for again, an own form parser is used', async t => {
  const app = await start(t, 'memory', {
    before: async app => { await app.register(formbody) },
    routes: async app => { await app.register(inspect, { prefix: '/keys', authenticate }) }
  })
  const { post } = forms(app)
  const odd = await post('/keys', { scope: '"><script>alert(1)</script>', key: "'><img src=x>" })
  t.equal(odd.status, 200)
  t.notMatch(odd.text, /<script|<img/)
  t.match(odd.text, /value="&#34;&#62;&#60;script&#62;/)
  const empty = await post('/keys', { scope: '', key: '' })
  t.equal(empty.status, 400)
  t.match(textOf(empty.text), /Type a key\./)
})

t.test('a response that could not be kept is told as such', async t => {
  const app = await start(t, 'memory', {
    options: { maxResponseBytes: 1 },
    routes: async (app: FastifyInstance) => {
      await app.register(inspect, { prefix: '/keys', authenticate })
      app.post('/', async () => 'too large')
    }
  })
  await app.post('k', '{}')
  t.match(textOf((
    await forms(app).post('/keys', { scope: '', key: 'k' })
  ).text), /Status of the response 200 \(could not be kept\)/)
})

t.test('a form of another site is refused by its Origin where the browser sends no Sec-Fetch-Site', async t => {
  const app = await start(t, 'memory', {
    routes: async app => {
      await app.register(inspect, { prefix: '/keys', authenticate })
      app.post('/', async () => ({}))
    }
  })
  await app.post('k', '{}')
  const post = async (headers: Record<string, string>) => await app.call({
    path: '/keys/free',
    body: 'scope=&key=k&confirm=',
    headers: {
      'content-type': 'application/x-www-form-urlencoded',
      authorization: 'Basic operator',
      host: 'api.test:8080',
      ...headers
    }
  })
  for (const origin of ['http://evil.test', 'http://api.test', 'http://api.test:80801', 'null', 'no URL']) {
    t.equal((await post({ origin })).status, 403, origin)
  }
  t.equal((await post({ origin: 'http://api.test:8080' })).status, 409, 'the page itself: a state was not confirmed')
  t.equal((await post({})).status, 409, 'not a browser')
  const { headers } = await forms(app).get('/keys')
  t.equal(
    headers['referrer-policy'], 'same-origin',
    'no-referrer would make a browser send "Origin: null" from the page itself'
  )
})

t.test('a body that is no such form is a 400, and frees nothing', async t => {
  const app = await start(t, 'memory', {
    before: async app => { await app.register(formbody) },
    routes: async app => {
      await app.register(inspect, { prefix: '/keys', authenticate })
      app.post('/', async () => ({}))
    }
  })
  await app.post('k', '{}')
  const bodies: Array<[type: string | undefined, body: string]> = [
    ['application/json', 'null'], ['application/json', '[]'], ['application/json', '{"key":{}}'],
    ['application/json', '"k"'], ['application/json', '{"key":"k","scope":1}'],
    ['application/json', '{"key":"k","confirm":["freed"]}'], ['application/json', '{'],
    ['application/x-www-form-urlencoded', 'key=k&key=k'], ['application/x-www-form-urlencoded', ''], [undefined, '']
  ]
  for (const path of ['/keys', '/keys/free']) {
    for (const [type, body] of bodies) {
      const headers = { authorization: 'Basic operator', ...(type === undefined ? {} : { 'content-type': type }) }
      t.equal((await app.call({ path, body, headers })).status, 400, `${path} ${type} ${body}`)
    }
  }
  t.equal((await app.post('k', '{}')).replayed, true)
})

t.test('refusals have the security headers too', async t => {
  const app = await start(t, 'memory', {
    routes: async app => { await app.register(inspect, { prefix: '/keys', authenticate }) }
  })
  const { post, get } = forms(app)
  const fields = { scope: '', key: 'k' }
  const refusals = {
    401: await get('/keys', { authorization: '' }),
    403: await post('/keys', fields, { 'sec-fetch-site': 'cross-site' }),
    400: await post('/keys', { scope: '', key: '' }),
    409: await post('/keys/free', { ...fields, confirm: 'held' }),
    415: await post('/keys', fields, { 'content-type': 'text/xml' })
  }
  for (const [status, { status: got, headers }] of Object.entries(refusals)) {
    t.equal(got, Number(status))
    t.match(headers, { 'cache-control': 'no-store', 'referrer-policy': 'same-origin' }, status)
    t.match(headers['content-security-policy'], /default-src 'none'.*frame-ancestors 'none'/, status)
  }
})
