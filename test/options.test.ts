import Fastify from 'fastify'
import t from 'tap'
import idempotency, { MemoryStore, type FastifyIdempotencyOptions } from '../lib/index.ts'

const handler = async (): Promise<string> => 'ok'

/** What registering with `options` fails with. */
async function complaint (options: unknown): Promise<string> {
  const app = Fastify()
  try {
    await app.register(idempotency, options as FastifyIdempotencyOptions)
  } catch (error) {
    return (error as Error).message
  } finally {
    await app.close()
  }
  return ''
}

t.test('a wrong or unknown option fails at start-up with an error that names it', async t => {
  const wrong: Array<[unknown, RegExp]> = [
    [{ tll: 5 }, /unknown option "tll"; did you mean "ttl"\?$/],
    [{ frobnicate: 5 }, /unknown option "frobnicate"; the options here are .*ttl/],
    [{ ttl: 0 }, /option "ttl" must be whole milliseconds from 1 to \d+, or text with a unit.*got 0/],
    [{ ttl: '10' }, /option "ttl".*got '10'/],
    [{ ttl: '5 parsecs' }, /option "ttl".*got '5 parsecs'/],
    [{ ttl: '-5s' }, /option "ttl".*got '-5s'/],
    [{ ttl: '0.5ms' }, /option "ttl".*got '0.5ms'/],
    [{ ttl: '' }, /option "ttl".*got ''/],
    [{ ttl: '300y' }, /option "ttl".*got '300y'/],
    [{ ttl: 2 ** 44 }, /option "ttl" must be whole milliseconds from 1 to 8796093022208/],
    [{ ttl: 1.5 }, /option "ttl"/],
    [{ lease: 2 ** 31 }, /option "lease" must be whole milliseconds from 100 to 2147483647/],
    [{ lease: 99 }, /option "lease".*got 99/],
    [{ lease: '25d' }, /option "lease".*got '25d'/],
    [{ keyPrefix: 5 }, /option "keyPrefix" must be a string/],
    [{ keyPrefix: 'x'.repeat(1_001) }, /at most 1,000 characters/],
    [{ keyPrefix: '\ud800:' }, /without half a surrogate pair/],
    [{ global: 'yes' }, /option "global" must be true or false/],
    [{ methods: 'POST' }, /option "methods" must be an array of HTTP methods/],
    [{ methods: [] }, /option "methods"/],
    [{ headerName: 'a b' }, /option "headerName" must be the name of a header field.*got 'a b'$/],
    [{ replayedHeaderName: '' }, /option "replayedHeaderName".*got ''$/],
    [{ key: 'id' }, /option "key" must be a function/],
    [{ maxKeyLength: -1 }, /option "maxKeyLength" must be a whole number of characters/],
    [{ required: 1 }, /option "required" must be true or false/],
    [{ scope: 'tenant' }, /option "scope" must be a function, 'credentials' or false, got 'tenant'/],
    [{ scope: true }, /option "scope".*got true/],
    [{ fingerprint: {} }, /option "fingerprint" must be a function that answers at once, got {}/],
    [{
      fingerprint: async () => 'x'
    }, /option "fingerprint" must be a function that answers at once, got an async function/],
    [{ errors: async () => 'x' }, /option "errors" must be .* or a function that answers at once/],
    [{ inFlight: { wait: 5n } }, /option "inFlight" must be .*, got { wait: 5n }/],
    [{ methods: ['POST', 'PSOT'] }, /option "methods" has 'PSOT', which this Fastify instance does not support/],
    [{ hook: 'onSend' }, /option "hook" must be one of 'onRequest', 'preParsing', 'preValidation', 'preHandler'/],
    [{ abandoned: 'ignore' }, /option "abandoned" must be one of 'retry', 'reject'/],
    [{ inFlight: 'wait' }, /option "inFlight" must be 'reject' or { wait/],
    [{ inFlight: { wait: 0 } }, /option "inFlight"/],
    [{ inFlight: { wait: 'soon' } }, /option "inFlight".*got { wait: 'soon' }/],
    [{ inFlight: { wait: 5, more: 1 } }, /option "inFlight"/],
    [{ inFlight: null }, /option "inFlight".*got null/],
    [{ retryAfter: 0.5 }, /option "retryAfter" must be whole milliseconds/],
    [{ cacheable: [200] }, /option "cacheable" must be a function/],
    [{ maxResponseBytes: -1 }, /option "maxResponseBytes" must be a whole number of bytes/],
    [{ replayHeaders: 'x' }, /option "replayHeaders" must be a list of header names, or a function/],
    [{ replayHeaders: ['a b'] }, /option "replayHeaders"/],
    [{ replayHeaders: async () => true }, /option "replayHeaders".*got an async function/],
    [{ onStoreError: 'crash' }, /option "onStoreError" must be one of 'reject', 'bypass'/],
    [{ storeTimeout: Infinity }, /option "storeTimeout"/],
    [{ closeTimeout: '1 fortnight' }, /option "closeTimeout".*got '1 fortnight'/],
    [{ errors: 'xml' }, /option "errors" must be one of 'envelope', 'problem', 'throw', or a function/],
    [{ docsUrl: '/errors' }, /option "docsUrl" must be an absolute URL without a fragment.*got '\/errors'/],
    [{ docsUrl: 'https://docs.example.com/errors#' }, /option "docsUrl" must be .* without a fragment/],
    [{ docsUrl: async () => '' }, /option "docsUrl".*got an async function/],
    [{ profile: 'rfc' }, /option "profile" must be one of 'default', 'ietf'/],
    [{ store: {} }, /option "store".*has no method "claim"/],
    [{ store: null }, /option "store"/],
    [{ store: new MemoryStore(), redis: {} }, /options "store" and "redis" exclude each other/],
    [{ store: new MemoryStore(), minReplicas: 1 }, /"minReplicas" belongs to the option "redis"/],
    [{ minReplicas: 1 }, /"minReplicas" needs Redis/],
    [{ minReplicas: -1 }, /"minReplicas" must be a whole number of replicas/],
    [{ redis: { callBuffer () {} }, minReplicas: 1 }, /"minReplicas" needs a client with the method "pipeline"/],
    [{ redis: 'redis://x' }, /option "redis" must be an ioredis client/],
    [{ redis: { set () {} } }, /option "redis" must be an ioredis client.*callBuffer/],
    [{ redis: () => {} }, /option "redis" must be an ioredis client/],
    [{ cacheable: () => true, ttl: () => 5 }, /option "ttl".*got a function/]
  ]
  for (const [options, message] of wrong) {
    const app = Fastify()
    await t.rejects(async () => await app.register(idempotency, options as FastifyIdempotencyOptions), message)
  }
  for (const options of [
    { ttl: undefined, more: undefined }, { maxResponseBytes: 0 }, { profile: 'default' as const }
  ]) {
    const app = Fastify()
    await app.register(idempotency, options as FastifyIdempotencyOptions)
    await app.close()
  }
})

t.test('a header field that is not the plugin\'s alone is refused: why, and what to choose instead', async t => {
  const taken: Record<string, RegExp> = {
    'Transfer-Encoding': /, which belongs to the connection$/,
    connection: /connection$/,
    'keep-alive': /connection$/,
    upgrade: /connection$/,
    trailer: /connection$/,
    te: /connection$/,
    host: /connection$/,
    'proxy-authorization': /connection$/,
    'Content-Length': /, which describes the content or its length$/,
    'content-type': /content or its length$/,
    'content-encoding': /content or its length$/,
    etag: /content or its length$/,
    date: /, which is for times and caches$/,
    'retry-after': /caches$/,
    'set-cookie': /, which is for credentials and sessions$/,
    authorization: /sessions$/,
    location: /, which means something else to clients and servers$/,
    accept: /servers$/,
    'access-control-allow-origin': /servers$/,
    'if-match': /servers$/
  }
  const usual = { headerName: 'Idempotency-Key', replayedHeaderName: 'Idempotent-Replayed' }
  for (const [option, name] of Object.entries(usual)) {
    for (const [field, why] of Object.entries(taken)) {
      const message = await complaint({ [option]: field })
      t.ok(message.startsWith(`fastify-idempotency: option "${option}" must be the name of a header field of its ` +
        `own, such as '${name}' or 'X-${name}', got '${field}', which `), message)
      t.match(message, why)
    }
    for (const field of [name, `X-${name}`, 'X-Request-Id', 'contented', 'gate']) {
      t.equal(await complaint({ [option]: field }), '', field)
    }
  }
})

t.test('a wrong route option names the route', async t => {
  const app = Fastify()
  await app.register(idempotency)
  const declare = (config: unknown, method = 'POST', url = '/x') => () => {
    app.route({ method, url, config: { idempotency: config as boolean }, handler })
  }
  t.throws(declare({ ttl: -1 }), /config\.idempotency of POST \/x: option "ttl"/)
  t.throws(declare({ tll: 1 }), /POST \/x: unknown option "tll"; did you mean "ttl"\?/)
  t.throws(
    declare({ prefix: 'p' }), /POST \/x: unknown option "prefix"; did you mean "keyPrefix"\? It cannot be set per route/
  )
  t.throws(declare({ frobnicate: 1 }), /POST \/x: unknown option "frobnicate"; the options here are key, /)
  t.throws(declare({ store: {} }), /POST \/x: option "store" cannot be set per route/)
  t.throws(declare('yes'), /POST \/x: must be true, false or an object of options, got 'yes'/)
  t.throws(declare([]), /must be true, false/)
  t.throws(declare(null), /must be true, false/)
  t.doesNotThrow(declare(true, 'PUT', '/y'))
  t.throws(declare({}, 'GET', '/w'), /GET \/w has no effect: GET, HEAD, OPTIONS, TRACE never take part/)
  t.doesNotThrow(declare(false, 'GET', '/g'))
  await app.close()
})

t.test('an unknown name is answered with the one that was meant', async t => {
  const meant = {
    keyGenerator: 'key',
    nameSpace: 'keyPrefix',
    namespace: 'keyPrefix',
    prefix: 'keyPrefix',
    skipOnError: 'onStoreError',
    errorResponseBuilder: 'errors',
    enableDraftSpec: 'profile',
    lockTtl: 'lease',
    processingTtl: 'lease',
    storeIf: 'cacheable',
    keyprefix: 'keyPrefix',
    TTL: 'ttl',
    method: 'methods',
    replayheader: 'replayHeaders',
    storeTimout: 'storeTimeout',
    require: 'required'
  }
  for (const [name, ours] of Object.entries(meant)) {
    t.equal(await complaint({ [name]: 1 }), `fastify-idempotency: unknown option "${name}"; did you mean "${ours}"?`)
  }
  for (const name of ['__proto__x', 'constructor', 'toString', 'logLevel']) {
    t.match(await complaint({ [name]: 1 }), `unknown option "${name}"; the options here are key, `)
  }
})

t.test('a store or client that is undefined fails at start-up, and says what to do instead', async t => {
  t.match(await complaint(
    { redis: undefined }
  ), 'option "redis" is undefined: it was not there yet when the plugin was ' +
    'registered; create the client first; with @fastify/redis, register it before and leave "redis" out')
  t.match(await complaint(
    { store: undefined }
  ), 'option "store" is undefined: it was not there yet when the plugin was ' +
    'registered; create the store first; where the in-process one is meant, say so: store: new MemoryStore()')
})

t.test('without a shared store the log says so, in production as a warning, unless a MemoryStore is given', async t => {
  const { NODE_ENV } = process.env
  t.teardown(() => {
    if (NODE_ENV === undefined) delete process.env.NODE_ENV
    else process.env.NODE_ENV = NODE_ENV
  })
  const levels = async (environment: string, options: FastifyIdempotencyOptions): Promise<number[]> => {
    process.env.NODE_ENV = environment
    const lines: Array<{ level: number, msg: string }> = []
    const stream = { write: (line: string) => { lines.push(JSON.parse(line) as typeof lines[number]) } }
    const app = Fastify({ logger: { stream } })
    await app.register(idempotency, options)
    await app.close()
    return lines.filter(({ msg }) => msg.includes('keys are kept in this process only')).map(({ level }) => level)
  }
  t.same(await levels('development', {}), [30])
  t.same(await levels('production', {}), [40])
  t.same(await levels('production', { store: new MemoryStore() }), [])
})
