import { readFileSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import swagger, { type SwaggerTransform } from '@fastify/swagger'
import { Type } from '@fastify/type-provider-typebox'
import Fastify, { type FastifySchema } from 'fastify'
import t from 'tap'
import idempotency, { type FastifyIdempotencyOptions } from '../lib/index.ts'
import { documentRoute, transform } from '../lib/openapi.ts'
import { send } from './fixtures/app.ts'
import {
  FORMS, VERSIONS, documented, isTrue, keyOf, ok, type Json, type Operation
} from './fixtures/openapi.ts'

/** What a test says of the header, as all documents have it. */
const describedKey = (operation: Operation): Json => {
  const { schema, ...rest } = keyOf(operation) as Json
  return { ...rest, ...schema as Json }
}

t.test('a header that the route documents itself is kept, with what the plugin says of it', async t => {
  const shared = {
    $id: 'shared',
    type: 'object',
    required: ['x-tenant', 'idempotency-key'],
    properties: {
      'x-tenant': { type: 'string' }, 'idempotency-key': { type: 'string', format: 'uuid', description: 'Ours.' }
    }
  }
  const inner = { $id: 'inner', type: 'object', properties: { key: { type: 'string', minLength: 9 } } }
  const headers: Record<string, unknown> = {
    '/own': {
      type: 'object',
      required: ['idempotency-key'],
      properties: {
        'x-tenant': { type: 'string' },
        'idempotency-key': {
          type: 'string', minLength: 36, maxLength: 300, description: 'Ours.'
        }
      }
    },
    '/shorter': { type: 'object', properties: { 'idempotency-key': { type: 'string', maxLength: 36 } } },
    '/other': { type: 'object', properties: { 'x-tenant': { type: 'string' } } },
    '/typebox': Type.Object({ 'x-tenant': Type.Optional(Type.String()) }),
    '/shared': { $ref: 'shared#' },
    '/all': { allOf: [{ $ref: 'shared' }, { type: 'object', properties: { 'x-more': { type: 'string' } } }] },
    '/any': { anyOf: [{ type: 'object', properties: { 'x-more': { type: 'string' } } }] },
    '/property': { type: 'object', properties: { 'idempotency-key': { $ref: 'inner#/properties/key' } } },
    '/nowhere': {
      oneOf: [
        { type: 'object', properties: { 'x-more': { type: 'string' } } }, { $ref: '#/definitions/x' }
      ],
      definitions: { x: { type: 'object', properties: { 'x-local': { type: 'string' } } } }
    }
  }
  const before = structuredClone(headers)
  const { find, post } = await documented(t, {
    routes: app => {
      app.addSchema(shared)
      app.addSchema(inner)
      for (const [path, schema] of Object.entries(headers)) {
        // Neither Swagger 2.0 nor the resolver of references knows these two.
        app.post(path, { schema: { headers: schema, hide: path === '/nowhere' } }, ok)
      }
    },
    swagger: {
      transform: given => 'swaggerObject' in given && given.url === '/property'
        ? {
            schema: { hide: true }, url: given.url
          }
        : transform(given)
    }
  })
  t.same(headers, before, 'the schema that validates is untouched')
  for (const version of VERSIONS) {
    const names = (path: string): unknown[] => find(version, 'post', path).parameters?.map(
      ({ name, required }) => `${name}${required === true ? '!' : ''}`
    ).sort() ?? []
    t.same(names('/own'), ['idempotency-key!', 'x-tenant'])
    t.match(describedKey(find(version, 'post', '/own')), {
      minLength: 36, maxLength: 255, description: /^Ours\.\n\nMakes a retry safe/
    })
    t.match(describedKey(find(version, 'post', '/shorter')), { minLength: 1, maxLength: 36 })
    t.same(names('/other'), ['Idempotency-Key', 'x-tenant'])
    t.same(names('/typebox'), ['Idempotency-Key', 'x-tenant'])
    t.same(names('/shared'), ['idempotency-key!', 'x-tenant!'])
    t.match(describedKey(find(version, 'post', '/shared')), {
      format: 'uuid', maxLength: 255, description: /^Ours\.\n\nMakes/
    })
    t.same(names('/all'), ['idempotency-key!', 'x-more', 'x-tenant!'])
    t.same(names('/any'), ['Idempotency-Key', 'x-more'])
    if (version !== 'swagger20') {
      t.match(describedKey(find(version, 'post', '/property')), {
        allOf: [{ $ref: /^#/ }, { maxLength: 255 }], description: /^Makes/
      })
    }
  }
  t.equal((await post('k'.repeat(300), '{}', { path: '/other' })).status, 400)
  t.equal((await post('short', '{}', { path: '/own' })).json().code, 'FST_ERR_VALIDATION')
  t.equal((await post(undefined, '{}', { path: '/other' })).status, 200)
})

t.test('a status that the route documents itself is kept, beside the plugin\'s own answer', async t => {
  const mine = { type: 'object', required: ['oops'], properties: { oops: { type: 'string' } }, description: 'Mine.' }
  const shown = {
    ...mine,
    properties: {
      oops: { type: 'string', examples: ['a', 'b'] },
      examples: { type: 'array', items: { type: 'string', enum: ['a'] } }
    },
    examples: [{ oops: 'a' }]
  }
  const headers = { 'retry-after': { type: 'string', description: 'My own.' } }
  const responses: Record<string, Json> = {
    '/plain': { 200: { type: 'object' }, 400: mine, 409: { ...mine, headers } },
    '/shown': { 409: shown },
    '/told': { 409: { ...mine, 'x-response-description': 'Told.' } },
    '/range': { '2xx': { type: 'object' }, '4xx': mine, '5XX': mine },
    '/rest': { default: mine },
    '/fits': {
      409: { type: 'object', properties: { code: { type: 'string' }, oops: { type: 'string' } }, description: 'Mine.' }
    },
    '/shared': { 409: { $ref: 'oops#' } },
    '/pointed': { 409: { $ref: 'all#/properties/oops' } },
    '/empty': { 204: { type: 'null', description: 'Done' }, 409: { type: 'null', description: 'Mine.' } },
    '/content': {
      409: {
        description: 'Mine.',
        content: {
          'application/json': { schema: mine }, 'text/csv': { schema: { type: 'string' } }
        }
      }
    }
  }
  // Swagger 2.0 has neither.
  const MODERN = new Set(['/content', '/shown'])
  const before = structuredClone(responses)
  for (const errors of FORMS) {
    const { documents, find, post } = await documented(t, {
      options: { errors, docsUrl: 'https://docs.example.com/errors' },
      routes: app => {
        app.addSchema({ ...mine, $id: 'oops' })
        app.addSchema({ $id: 'all', type: 'object', properties: { oops: mine } })
        for (const [path, response] of Object.entries(responses)) {
          app.post(path, {
            schema: { response },
            config: {
              swaggerTransform: given => 'swaggerObject' in given && MODERN.has(path)
                ? {
                    schema: { hide: true }, url: path
                  }
                : transform(given)
            }
          }, (_request, reply) => {
            reply.code(path === '/empty' ? 204 : 200).send(path === '/empty' ? undefined : { oops: 'b' })
          })
        }
      }
    })
    t.same(responses, before, 'the schemas that serialize are untouched')
    for (const version of VERSIONS) {
      for (const path of Object.keys(responses)) {
        if (MODERN.has(path) && version === 'swagger20') continue
        const operation = find(version, 'post', path)
        const { description, headers, content = {}, ...rest } = operation.responses[409] ?? { description: '' }
        const name = `${version}, ${typeof errors === 'string' ? errors : 'a function'}, ${path}`
        t.match(
          description,
          path === '/told' ? /^Told\.\n\nidempotency_key_mismatch: / : /^Mine\.\n\nidempotency_key_mismatch: /, name
        )
        t.match(headers, path === '/plain' ? { 'retry-after': Object } : { 'Retry-After': Object }, name)
        t.match(headers, { 'Idempotent-Replayed': Object }, 'a 409 of the route\'s own is kept, too')
        if (path !== '/empty') t.match(JSON.stringify([content, rest]), /"oops"|def-/, `${name}: nothing is lost`)
        if (path === '/content') t.match(content['text/csv'], { schema: { type: 'string' } })
        if (path === '/range') {
          t.match(Object.keys(operation.responses), version === 'swagger20'
            ? [
                '200', '400', '409', '500', '503'
              ]
            : ['400', '409', '503', '2XX', '4XX', '5XX'])
        }
        if (path === '/range' || path === '/rest') {
          t.match(operation.responses[503]?.description, /^Mine\.\n\nidempotency_store_unavailable/)
        }
        if (path === '/range') {
          t.equal(operation.responses[503]?.headers?.['Idempotent-Replayed'], undefined, 'a 5xx is not kept')
        }
        // Where the route says what an error of Fastify's, or of its own function, looks like, that stands.
        const asTheRouteSays = typeof errors === 'function' || (errors === 'throw' && path !== '/fits')
        if (version === 'swagger20' || asTheRouteSays) continue
        const key = `${path}${String(errors)}${version}`
        await post(key, '{}', { path })
        const mismatch = await post(key, '{"b":1}', { path })
        t.equal(mismatch.status, 409)
        isTrue(t, version, operation, mismatch, documents[version])
      }
    }
    if (errors === 'problem') {
      t.match(find('openapi30', 'post', '/shown').responses[409]?.content, {
        'application/json': {
          schema: { example: { oops: 'a' }, properties: { oops: { example: 'a' }, examples: { type: 'array' } } }
        },
        'application/problem+json': {}
      })
      t.match(find('swagger20', 'post', '/plain').produces, ['application/json', 'application/problem+json'])
    }
    if (errors === 'envelope') {
      t.match(find('openapi31', 'post', '/shown').responses[409]?.content, {
        'application/json': { schema: { anyOf: [{ examples: [{ oops: 'a' }] }, { required: ['status'] }] } }
      })
    }
  }
})

t.test('media types that a route names are of its own responses; its limits hold for a key in quotes', async t => {
  const schema = {
    produces: ['application/json', 'application/xml'],
    headers: { type: 'object', properties: { 'idempotency-key': { type: 'string', maxLength: 50 } } },
    response: { 422: { type: 'object', properties: { oops: { type: 'string' } } } }
  }
  const { find } = await documented(t, { options: { profile: 'ietf' }, routes: app => app.post('/a', { schema }, ok) })
  for (const version of ['openapi30', 'openapi31'] as const) {
    t.same(Object.keys(find(version, 'post', '/a').responses[422]?.content ?? {}), [
      'application/json', 'application/xml', 'application/problem+json'
    ])
  }
  t.same(find('swagger20', 'post', '/a').produces, ['application/json', 'application/xml', 'application/problem+json'])
  for (const version of VERSIONS) {
    t.match(describedKey(find(version, 'post', '/a')), { maxLength: 50, format: 'sf-string', pattern: String })
  }
})

t.test('routes declared before the plugin was loaded are protected, but not documented', async t => {
  const app = Fastify()
  t.teardown(async () => await app.close())
  await app.register(swagger, { openapi: {}, transform })
  app.register(idempotency)
  app.post('/early', ok)
  app.register(async child => { child.post('/later', ok) })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  const { paths } = app.swagger() as unknown as { paths: Record<string, Record<string, Operation>> }
  t.same(['/early', '/later'].map(path => 'x-idempotency' in (paths[path]?.post as Operation)), [false, true])
  for (const path of ['/early', '/later']) {
    await send(port, { path, key: path, body: '{}' })
    t.equal((await send(port, { path, key: path, body: '{}' })).replayed, true)
  }
})

t.test('composed with a transform that makes JSON Schema of other schemas', async t => {
  /** As the type providers of such libraries have it. */
  const toJsonSchema: SwaggerTransform = ({ schema, url }) => (
    { url: `/v1${url}`, schema: { ...schema, headers: (schema.headers as { toJson: () => unknown }).toJson() } }
  )
  const headers = { toJson: () => ({ type: 'object', properties: { 'x-tenant': { type: 'string' } } }) }
  const { find } = await documented(t, {
    swagger: {
      transform: given => given.schema.hide === true ? given : transform({ ...given, ...toJsonSchema(given) })
    },
    routes: app => app.post('/a', { schema: { headers }, validatorCompiler: () => () => true }, ok)
  })
  for (const version of VERSIONS) {
    t.same(find(version, 'post', '/v1/a').parameters?.map(({ name }) => name), ['x-tenant', 'Idempotency-Key'])
  }
})

t.test('documentRoute does the same for a schema alone, for routes that the plugin has not seen', async t => {
  const schema: FastifySchema = { response: { 201: { type: 'object', properties: { id: { type: 'string' } } } } }
  const options: FastifyIdempotencyOptions = { required: true, profile: 'ietf' }
  const { find } = await documented(t, {
    options,
    swagger: {
      transform: given => given.url === '/b'
        ? {
            url: '/b',
            schema: documentRoute(given.schema, options, { version: 'swaggerObject' in given ? '2.0' : '3.1' })
          }
        : transform(given)
    },
    routes: app => {
      app.post('/a', { schema }, ok)
      app.post('/b', { schema, config: { idempotency: false } }, ok)
      app.post('/undeclared', ok)
    }
  })
  for (const version of VERSIONS) t.same(find(version, 'post', '/b'), find(version, 'post', '/a'))
  t.same(Object.keys(documentRoute(undefined).response as object), ['200', '400', '409', '503'])
})

t.test('a route\'s own x-idempotency stands; a document in YAML has no aliases', async t => {
  const { app, find } = await documented(t, {
    routes: app => {
      app.post('/a', { schema: { 'x-idempotency': 'mine' } as FastifySchema }, ok)
      app.post('/b', ok)
    }
  })
  for (const version of VERSIONS) {
    t.equal(find(version, 'post', '/a')['x-idempotency'], 'mine')
    t.notMatch((app as unknown as Record<string, (options: object) => string>)[version]?.({ yaml: true }), /: &a\d/)
  }
})

t.test('the docs show what comes out', async t => {
  const section = readFileSync(new URL('../docs/openapi.md', import.meta.url), 'utf8')
  const shown = JSON.parse(section.split('```json')[1]?.split('```')[0] ?? '') as Json
  const { find } = await documented(t, {
    routes: app => app.post('/payments', {
      schema: { response: { 201: { description: 'Paid', type: 'object', properties: { id: { type: 'string' } } } } }
    }, ok)
  })
  const { parameters, 'x-idempotency': machine, responses } = find('openapi30', 'post', '/payments')
  t.same({ parameters, 'x-idempotency': machine, responses: { 201: responses[201], 409: responses[409] } }, shown)
  t.same(Object.keys(responses), ['201', '400', '409', '503'])
})
