import t from 'tap'
import { type StoreClaim } from '../lib/index.ts'
import { gate } from './fixtures/app.ts'
import { fails, faulty, type Faults } from './fixtures/faulty.ts'
import {
  FORMS, VERSIONS, ajv, documented, isTrue, keyOf, ok, type Json, type Operation
} from './fixtures/openapi.ts'

for (const profile of ['default', 'ietf'] as const) {
  for (const errors of FORMS) {
    t.test(`answers are as documented (${profile}, ${typeof errors === 'string' ? errors : 'a function'})`, async t => {
      const faults: Faults = {}
      const store = faulty(faults)
      const { claim } = store
      let abandoned: StoreClaim | undefined
      store.claim = async (...args) => abandoned ?? await claim(...args)
      const running = gate()
      const go = gate()
      const schema = {
        response: { 201: { description: 'Paid', type: 'object', properties: { id: { type: 'string' } } } }
      }
      const { find, post } = await documented(t, {
        options: {
          store,
          errors,
          profile,
          docsUrl: 'https://docs.example.com/errors',
          required: true,
          abandoned: 'reject',
          retryAfter: '7s',
          maxKeyLength: 40
        },
        routes: app => {
          app.post('/pay', { schema }, async (_request, reply) => await reply.code(201).send({ id: 'p1' }))
          app.post('/slow', { schema }, async (_request, reply) => {
            running.open()
            await go.promise
            return await reply.code(201).send({ id: 'p2' })
          })
          app.post('/large', {
            schema, config: { idempotency: { maxResponseBytes: 0 } }
          }, async (_request, reply) => await reply.code(201).send({ id: 'p3' }))
        }
      })
      const quoted = (key: string): string => profile === 'ietf' ? JSON.stringify(key) : key
      const at = { path: '/pay' }
      const answers = [
        await post(undefined, '{}', at),
        await post('', '{}', at),
        await post(quoted('x'.repeat(41)), '{}', at),
        await post(quoted('x'.repeat(40)), '{}', at),
        await post(quoted('a'), '{}', at),
        await post(quoted('a'), '{}', at),
        await post(quoted('a'), '{"b":1}', at)
      ]
      t.same(answers.map(({ status, replayed }) => replayed ? 'replay' : status), [
        400, 400, 400, 201, 201, 'replay', profile === 'ietf' ? 422 : 409
      ])
      const slow = post(quoted('s'), '{}', { path: '/slow' })
      await running.promise
      answers.push(await post(quoted('s'), '{}', { path: '/slow' }))
      t.equal(answers.at(-1)?.headers['retry-after'], '7')
      go.open()
      answers.push(await slow)
      await post(quoted('l'), '{}', { path: '/large' })
      answers.push(await post(quoted('l'), '{}', { path: '/large' }))
      abandoned = { outcome: 'abandoned', attempt: 1, fingerprint: '' }
      answers.push(await post(quoted('d'), '{}', at))
      abandoned = undefined
      faults.claim = fails
      answers.push(await post(quoted('f'), '{}', at))
      t.equal(answers.at(-1)?.headers['retry-after'], '7')
      t.same(answers.slice(-4).map(({ status }) => status), [201, 409, 409, 503])

      for (const version of VERSIONS) {
        const operation = find(version, 'post', '/pay')
        for (const answer of answers) isTrue(t, version, operation, answer)
        t.same(Object.keys(operation.responses).map(Number), [
          ...new Set(answers.map(({ status }) => status))
        ].sort(), 'no status is told that does not come')
        const codes = answers.filter(({ status }) => status >= 400).map(
          answer => answer.json().mine ?? answer.json().code
        )
        t.same(Object.values(operation.responses).flatMap(
          ({ description }) => description.match(/^idempotency_\w+/gm) ?? []
        ).sort(), [...new Set(codes)].sort(), 'nor a code')
        const { required, ...parameter } = keyOf(operation) as Json
        const value = (parameter.schema ?? parameter) as Json
        t.equal(required, true)
        for (const key of ['a', 'x'.repeat(40), 'a "quoted" \\ one']) t.ok(ajv.validate(value, quoted(key)), key)
        for (const key of ['', 'x'.repeat(41)]) t.notOk(ajv.validate(value, key === '' ? '' : quoted(key)), key)
        if (profile === 'ietf') {
          t.equal(value.format, 'sf-string')
          t.notOk(ajv.validate(value, 'bare'))
          t.ok(ajv.validate(value, '"a";b=1'))
        }
      }
    })
  }
}

for (const last of [false, true]) {
  t.test(`only the routes that take part are documented (set up ${last ? 'after' : 'before'} the plugin)`, async t => {
    const marked: string[] = []
    const { documents, find } = await documented(t, {
      last,
      options: { methods: ['POST', 'PUT'], headerName: 'X-Once', replayedHeaderName: 'X-Again' },
      swagger: { exposeHeadRoutes: true },
      routes: app => {
        app.get('/a', ok)
        app.post('/a', ok)
        app.put('/a', ok)
        app.patch('/a', ok)
        app.post('/out', { config: { idempotency: false } }, ok)
        app.post('/in/:id', { config: { idempotency: { ttl: 7 * 86_400_000, required: true } } }, ok)
        app.post('/hidden', { schema: { hide: true } }, ok)
        app.post('/elsewhere', { config: { idempotency: { key: () => 'k', required: true } } }, ok)
        app.route(
          { method: ['GET', 'POST', 'PUT'], url: '/several', handler: ok, config: { idempotency: { required: true } } }
        )
        app.register(async child => { child.post('/', ok) }, { prefix: '/child' })
      }
    })
    for (const version of VERSIONS) {
      const paths = documents[version]?.paths as Record<string, Record<string, Operation>>
      marked.length = 0
      for (const [path, methods] of Object.entries(paths)) {
        for (const [method, operation] of Object.entries(methods)) {
          if ('x-idempotency' in operation) marked.push(`${method} ${path}`)
          else {
            t.notOk(operation.parameters?.some(
              ({ name }) => name === 'X-Once'
            ) === true || '409' in operation.responses, `${method} ${path}`)
          }
        }
      }
      t.same(
        marked.sort(),
        [
          'get /several', 'post /a', 'post /child/', 'post /elsewhere', 'post /in/{id}', 'post /several', 'put /a',
          'put /several'
        ]
      )
      t.match(find(version, 'post', '/a'), {
        'x-idempotency': { ttl: 86_400_000, required: false },
        parameters: [
          { in: 'header', name: 'X-Once', required: false, description: /kept for 24 hours/ }
        ]
      })
      t.match(Object.keys(find(version, 'post', '/a').responses[200]?.headers ?? {}), ['X-Again'])
      const tuned = find(version, 'post', '/in/{id}')
      t.match(tuned['x-idempotency'], { ttl: 604_800_000, required: true })
      t.match(
        tuned.parameters?.find(({ name }) => name === 'X-Once'), { required: true, description: /kept for 7 days/ }
      )
      t.match(Object.keys(find(version, 'post', '/elsewhere').responses), ['200', '400', '409', '503'])
      t.equal(find(version, 'post', '/elsewhere').parameters, undefined, 'no header where the key comes from elsewhere')
      const several = find(version, 'get', '/several')
      t.match(several['x-idempotency'], {
        methods: ['POST', 'PUT']
      }, '@fastify/swagger has one description for all methods of a route')
      t.match(several.parameters, [{ name: 'X-Once', required: false, description: /With POST and PUT only\.$/ }])
    }
  })
}

t.test('global: false documents the routes that opted in; a store that may be bypassed has no 503', async t => {
  const { find } = await documented(t, {
    options: { global: false, onStoreError: 'bypass', ttl: 1_500 },
    routes: app => {
      app.post('/a', ok)
      app.post('/c', { config: { idempotency: { ttl: 1 } } }, ok)
      app.post('/b', { config: { idempotency: true } }, ok)
    }
  })
  for (const version of VERSIONS) {
    t.same(Object.keys(find(version, 'post', '/a').responses), ['200'])
    t.same(Object.keys(find(version, 'post', '/b').responses), ['200', '400', '409'])
    t.match(keyOf(find(version, 'post', '/b'))?.description, /kept for 1,500 milliseconds,/)
    t.match(keyOf(find(version, 'post', '/c'))?.description, /kept for 1 millisecond,/)
  }
})

t.test('an unknown outcome stands on every route that takes part: any handler may use steps', async t => {
  const { find } = await documented(
    t, { routes: app => app.post('/', async request => await request.idempotency.step('one', () => 1)) }
  )
  for (const version of VERSIONS) {
    t.match(JSON.stringify(find(version, 'post', '/').responses['409']), /idempotency_outcome_unknown/, version)
  }
})
