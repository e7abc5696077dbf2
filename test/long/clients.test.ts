/** The clients of examples/client, against a real API behind a proxy that eats responses. */
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import formbody from '@fastify/formbody'
import axios from 'axios'
import axiosRetry from 'axios-retry'
import type { FastifyInstance, FastifyReply } from 'fastify'
import got from 'got'
import t, { type Test } from 'tap'
import { Agent, RetryAgent, request } from 'undici'
import { pay as payWithAxios } from '../../examples/client/axios.ts'
import { pay as payWithGot } from '../../examples/client/got.ts'
import { send, type SendError, type SendOptions } from '../../examples/client/send.ts'
import { answerAsStripe, client as stripeClient, pay as payWithStripe } from '../../examples/client/stripe.ts'
import { pay as payWithUndici } from '../../examples/client/undici.ts'
import type { FastifyIdempotencyOptions, IdempotencyEvent } from '../../lib/index.ts'
import { gate, start, type TestApp } from '../fixtures/app.ts'
import { startEater, type Cut } from '../fixtures/eater.ts'
import { loader } from '../fixtures/loader.ts'

interface Api extends TestApp {
  /** Of the handler. */
  runs: () => number
  url: string
  /** Behind a proxy that cuts these responses. */
  behind: (...cuts: Cut[]) => Promise<string>
}

/** What the handler does first, with the number of its run. */
type First = (run: number, reply: FastifyReply) => unknown

async function startApi (t: Test, first: First = () => {}, options: FastifyIdempotencyOptions = {}, before: (
  app: FastifyInstance
) => unknown = () => {}): Promise<Api> {
  let runs = 0
  const app = await start(t, 'memory', {
    options,
    before,
    routes: app => {
      for (const path of ['/pay', '/v1/charges']) {
        app.post(path, async (_request, reply) => {
          const run = ++runs
          const failure = await first(run, reply)
          return failure ?? await reply.code(201).send({ id: randomUUID(), run })
        })
      }
    }
  })
  return {
    ...app,
    runs: () => runs,
    url: `http://127.0.0.1:${app.port}/pay`,
    behind: async (...cuts) => `${await startEater(t, app.port, cuts)}/pay`
  }
}

/** What it rejects with. */
async function failure (promise: Promise<unknown>): Promise<unknown> {
  return await promise.then(() => { throw new Error('expected to fail') }, (error: unknown) => error)
}

/** Settles at the next event of this name for the key. */
async function event (name: string, key: string): Promise<void> {
  const channel = `fastify-idempotency:${name}`
  await new Promise<void>(resolve => {
    const heard = (message: unknown): void => {
      if ((message as IdempotencyEvent).key !== key) return
      unsubscribe(channel, heard)
      resolve()
    }
    subscribe(channel, heard)
  })
}

interface Seen { status: number, replayed: boolean, body: unknown }
type Pay = (url: string, order: unknown, key: string) => Promise<Seen>

const CLIENTS: Record<string, Pay> = {
  async fetch (url, order, key) {
    const { status, replayed, text } = await send(url, order, { key })
    return { status, replayed, body: JSON.parse(text) }
  },
  async got (url, order, key) {
    const { statusCode, headers, body } = await payWithGot(url, order, key)
    return { status: statusCode, replayed: headers['idempotent-replayed'] === 'true', body: JSON.parse(body) }
  },
  async 'axios-retry' (url, order, key) {
    const { status, headers, data } = await payWithAxios(url, order, key)
    return { status, replayed: headers['idempotent-replayed'] === 'true', body: data }
  },
  async RetryAgent (url, order, key) {
    const { status, headers, text } = await payWithUndici(url, order, key)
    return { status, replayed: headers['idempotent-replayed'] === 'true', body: JSON.parse(text) }
  }
}

for (const [name, pay] of Object.entries(CLIENTS)) {
  for (const cuts of [['before', 'before'], ['within']] as Cut[][]) {
    t.test(`${name}: one execution and its answer, though responses are lost (${cuts.join(', ')})`, async t => {
      const api = await startApi(t)
      const key = randomUUID()
      const answer = await pay(await api.behind(...cuts), { amount: 1 }, key)
      t.equal(api.runs(), 1)
      t.match(answer, { status: 201, replayed: true })
      t.same(answer.body, (await api.post(key, '{"amount":1}', { path: '/pay' })).json(), 'the kept response')
    })
  }

  t.test(`${name}: waits for a first attempt that still runs, and gets its answer`, async t => {
    const running = gate()
    const api = await startApi(t, async () => await running.promise)
    const key = randomUUID()
    const conflict = event('conflicted', key)
    // The first attempt's client has left; the handler goes on.
    const first = api.post(key, '{"amount":1}', { path: '/pay' })
    await startedFirst(api)
    const answer = pay(api.url, { amount: 1 }, key)
    await conflict
    running.open()
    t.match(await answer, { status: 201, replayed: true, body: (await first).json() })
    t.equal(api.runs(), 1)
  })

  t.test(`${name}: 503 and 429 are tried again, with the same key`, async t => {
    const api = await startApi(
      t, (run, reply) => run < 3 ? reply.code(run === 1 ? 503 : 429).send({ error: 'not now' }) : undefined
    )
    t.match(await pay(api.url, { amount: 1 }, randomUUID()), { status: 201, body: { run: 3 } })
  })

  t.test(`${name}: a mismatch is not tried again`, async t => {
    const api = await startApi(t)
    const key = randomUUID()
    await api.post(key, '{"amount":1}', { path: '/pay' })
    let refusals = 0
    const count = (message: unknown): void => { if ((message as IdempotencyEvent).key === key) refusals++ }
    subscribe('fastify-idempotency:mismatched', count)
    const outcome = await pay(api.url, { amount: 2 }, key).catch((error: unknown) => error)
    unsubscribe('fastify-idempotency:mismatched', count)
    t.equal(refusals, 1)
    t.match(outcome instanceof Error ? outcome.message : JSON.stringify(outcome), /409/)
    t.equal(api.runs(), 1)
  })
}

/** The handler of the first request has begun. */
async function startedFirst (api: Api): Promise<void> {
  while (api.runs() === 0) await new Promise(resolve => setImmediate(resolve))
}

/* What the libraries do by themselves. */

t.test('axios-retry by default sends a POST again after a network error: two executions without a key', async t => {
  const api = await startApi(t)
  const client = axios.create()
  axiosRetry(client)
  t.equal((await client.post(await api.behind('before'), { amount: 1 })).status, 201)
  t.equal(api.runs(), 2)
})

t.test('axios-retry by default does not send a POST again after a 503', async t => {
  const api = await startApi(t, (_run, reply) => reply.code(503).send({}))
  const client = axios.create()
  axiosRetry(client)
  await t.rejects(client.post(api.url, { amount: 1 }), { message: 'Request failed with status code 503' })
  t.equal(api.runs(), 1)
})

t.test('axios-retry: a key made in a request interceptor is another one for each attempt', async t => {
  const api = await startApi(t)
  const client = axios.create()
  client.interceptors.request.use(config => {
    config.headers.set('idempotency-key', randomUUID())
    return config
  })
  axiosRetry(client)
  t.equal((await client.post(await api.behind('before'), { amount: 1 })).headers['idempotent-replayed'], undefined)
  t.equal(api.runs(), 2)
})

t.test('got by default does not send a POST again', async t => {
  const api = await startApi(t)
  await t.rejects(got.post(await api.behind('before'), { json: { amount: 1 } }), { code: 'ECONNRESET' })
  t.equal(api.runs(), 1)
})

t.test('got: a key made in a beforeRequest hook is another one for each attempt', async t => {
  const api = await startApi(t)
  await got.post(await api.behind('before'), {
    json: { amount: 1 },
    retry: { methods: ['POST'] },
    hooks: { beforeRequest: [options => { options.headers['idempotency-key'] = randomUUID() }] }
  })
  t.equal(api.runs(), 2)
})

t.test('RetryAgent by default does not send a POST again', async t => {
  const api = await startApi(t)
  const dispatcher = new RetryAgent(new Agent())
  t.teardown(async () => await dispatcher.close())
  await t.rejects(request(await api.behind('before'), { method: 'POST', dispatcher }), { code: 'UND_ERR_SOCKET' })
  t.equal(api.runs(), 1)
})

t.test('RetryAgent: a response cut within its body is asked for by Range, in vain', async t => {
  const ranges: unknown[] = []
  const api = await startApi(t)
  const dispatcher = new RetryAgent(new Agent(), { methods: ['POST'], minTimeout: 1 })
  t.teardown(async () => await dispatcher.close())
  const key = randomUUID()
  const seen = (message: unknown): void => {
    const event = message as IdempotencyEvent
    if (event.key === key) ranges.push(event.request.headers['range'])
  }
  subscribe('fastify-idempotency:replayed', seen)
  t.teardown(() => unsubscribe('fastify-idempotency:replayed', seen))
  const response = await request(
    await api.behind('within'), { method: 'POST', headers: { 'idempotency-key': key }, dispatcher }
  )
  t.equal(response.statusCode, 201)
  await t.rejects(
    response.body.text(), { message: 'server does not support the range header and the payload was partially consumed' }
  )
  t.match(ranges, [/^bytes=\d+-/])
  t.equal(api.runs(), 1)
})

/* stripe-node. */

async function startStripe (
  t: Test, options: FastifyIdempotencyOptions = { errors: 'throw' }, first?: First
): Promise<Api> {
  return await startApi(t, first, options, app => {
    app.register(formbody)
    answerAsStripe(app)
  })
}

const form = {
  path: '/v1/charges',
  headers: {
    'content-type': 'application/x-www-form-urlencoded', authorization: 'Bearer sk_test_example'
  }
}

t.test('stripe-node: one execution and its answer, though responses are lost', async t => {
  const api = await startStripe(t)
  const { lastResponse } = await payWithStripe(stripeClient(await api.behind('before', 'before')), 1, randomUUID())
  t.match(lastResponse, { statusCode: 201, headers: { 'idempotent-replayed': 'true' } })
  t.equal(api.runs(), 1)
})

t.test('stripe-node: one execution without a key of yours too, but not when you make the call again', async t => {
  const api = await startStripe(t)
  const charge = { amount: 1, currency: 'eur' }
  t.match((await stripeClient(await api.behind('before')).charges.create(charge)).lastResponse.headers, {
    'idempotent-replayed': 'true'
  })
  t.equal(api.runs(), 1)
  const stripe = stripeClient(await api.behind('within'))
  t.match(await failure(stripe.charges.create(charge)), { type: 'StripeConnectionError' })
  t.equal(api.runs(), 2)
  await stripe.charges.create(charge)
  t.equal(api.runs(), 3)
})

t.test('stripe-node: a response cut within its body is an error; the same call with its key is answered', async t => {
  const api = await startStripe(t)
  const stripe = stripeClient(await api.behind('within'))
  const key = randomUUID()
  t.match(await failure(payWithStripe(stripe, 1, key)), { type: 'StripeConnectionError' })
  t.match((await payWithStripe(stripe, 1, key)).lastResponse.headers, { 'idempotent-replayed': 'true' })
  t.equal(api.runs(), 1)
})

t.test('stripe-node: waits for a first attempt that still runs, and gets its answer', async t => {
  const running = gate()
  const api = await startStripe(t, { errors: 'throw' }, async () => await running.promise)
  const key = randomUUID()
  const conflict = event('conflicted', key)
  const first = payWithStripe(stripeClient(api.url), 1, key)
  await startedFirst(api)
  const second = payWithStripe(stripeClient(api.url), 1, key)
  await conflict
  running.open()
  t.equal((await second).id, (await first).id)
  t.match((await second).lastResponse.headers, { 'idempotent-replayed': 'true' })
  t.equal(api.runs(), 1)
})

for (const errors of ['throw', 'envelope'] as const) {
  const outcome = errors === 'throw'
    ? 'an error, and not tried again'
    : 'tried again, and then taken for a success, unless it has a member `error`'
  t.test(`stripe-node: a mismatch is ${outcome}`, async t => {
    const api = await startStripe(t, { errors })
    const key = randomUUID()
    await api.post(key, 'amount=2', form)
    let refusals = 0
    const count = (message: unknown): void => { if ((message as IdempotencyEvent).key === key) refusals++ }
    subscribe('fastify-idempotency:mismatched', count)
    t.teardown(() => unsubscribe('fastify-idempotency:mismatched', count))
    const stripe = stripeClient(api.url)
    if (errors === 'throw') {
      t.match(await failure(payWithStripe(stripe, 1, key)), {
        type: 'StripeAPIError', rawType: 'idempotency_error', statusCode: 409, code: 'idempotency_key_mismatch'
      })
      t.equal(refusals, 1)
    } else {
      t.match(await stripe.charges.create({ amount: 1 }, { idempotencyKey: key, maxNetworkRetries: 1 }), {
        status: 'error', code: 'idempotency_key_mismatch'
      })
      t.equal(refusals, 2)
    }
    t.equal(api.runs(), 1)
  })
}

/* The fetch client, step by step: time and chance are the test's. */

type Script = { status: number, headers?: Record<string, string>, body?: string } | 'cut' | 'silence'

interface Scripted {
  url: string
  bodies: string[]
  keys: unknown[]
  /** What it waited. */
  delays: number[]
  options: SendOptions
}

/**
 * A server that answers as it is told, the last of it for ever. A silent attempt times out as soon as it has arrived.
 */
async function scripted (t: Test, ...script: Script[]): Promise<Scripted> {
  const bodies: string[] = []
  const keys: unknown[] = []
  const delays: number[] = []
  let now = Date.parse('2030-01-01T00:00:00Z')
  let timeout = new AbortController()
  const server = createServer((request: IncomingMessage, response: ServerResponse) => {
    keys.push(request.headers['idempotency-key'])
    const chunks: Buffer[] = []
    request.on('data', chunk => chunks.push(chunk as Buffer)).on('end', () => {
      bodies.push(String(Buffer.concat(chunks)))
      const step = script.length > 1 ? script.shift() as Script : script[0] as Script
      if (step === 'cut') response.destroy()
      else if (step === 'silence') timeout.abort(new DOMException('silence', 'TimeoutError'))
      else response.writeHead(step.status, step.headers).end(step.body)
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => { server.closeAllConnections(); server.close() })
  const clock = {
    now: () => now,
    random: () => 0.5,
    async sleep (ms: number) { delays.push(ms); now += ms },
    timeout () { timeout = new AbortController(); return timeout.signal }
  }
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, bodies, keys, delays, options: { clock } }
}

const ok = { status: 201, body: '{}' }
const refusal = (code: string): string => JSON.stringify({ status: 'error', code })
const IN_PROGRESS = { status: 409, body: refusal('idempotency_in_progress') }

t.test('fetch: one key and the same bytes for every attempt; a key for each operation', async t => {
  const { url, keys, bodies, options } = await scripted(t, 'cut', { status: 502 }, ok)
  let reads = 0
  const operation = { toJSON: () => ({ read: ++reads }) }
  t.equal((await send(url, operation, options)).attempts, 3)
  t.same(bodies, ['{"read":1}', '{"read":1}', '{"read":1}'])
  t.equal(new Set(keys).size, 1)
  await send(url, operation, options)
  t.equal(new Set(keys).size, 2)
  await send(url, operation, { ...options, key: 'stored' })
  t.equal(keys.at(-1), 'stored')
})

t.test('fetch: the backoff doubles up to its limit, with full jitter', async t => {
  const { url, delays, options } = await scripted(t, 'cut', 'cut', 'cut', 'cut', ok)
  await send(url, {}, { ...options, minDelay: 100, maxDelay: 350 })
  t.same(delays, [50, 100, 175, 175])
})

t.test('fetch: waits as long as Retry-After says, in seconds and as a date, and then its jitter', async t => {
  const { url, delays, options } = await scripted(t,
    { ...IN_PROGRESS, headers: { 'retry-after': '7' } },
    { status: 503, headers: { 'retry-after': 'Tue, 01 Jan 2030 00:00:20 GMT' } },
    { status: 503, headers: { 'retry-after': 'Mon, 31 Dec 2029 00:00:00 GMT' } },
    { status: 429, headers: { 'retry-after': 'soon' } }, ok)
  await send(url, {}, { ...options, minDelay: 200 })
  t.same(delays, [7_100, 20_000 - 7_100 + 200, 400, 800])
})

t.test('fetch: gives up rather than wait past its deadline', async t => {
  const { url, delays, options } = await scripted(t, 'cut', { status: 503, headers: { 'retry-after': '100' } })
  const error = await failure(send(url, {}, { ...options, deadline: 50_000, key: 'k' }))
  t.match(
    error,
    {
      name: 'SendError',
      effect: 'unknown',
      key: 'k',
      attempts: 2,
      message: 'Gave up after 503 (attempts: 2, key: k). It may have taken effect: send it again ' +
        'with the same key, or look.'
    }
  )
  t.same(delays, [100])
})

t.test('fetch: an attempt that is not answered in time is made again', async t => {
  const { url, options } = await scripted(t, 'silence', ok)
  const why: string[] = []
  t.equal((await send(url, {}, { ...options, onRetry: retry => why.push(retry.why) })).attempts, 2)
  t.same(why, ['timeout'])
})

for (const [form, body] of Object.entries({
  envelope: (code: string) => refusal(code),
  problem: (code: string) => JSON.stringify({ type: `urn:problem-type:${code}`, status: 409, code })
})) {
  t.test(`fetch: tells the refusals by their code (${form})`, async t => {
    const { url, options } = await scripted(t, { status: 409, body: body('idempotency_in_progress') }, ok)
    t.equal((await send(url, {}, options)).attempts, 2)
    for (const [code, effect] of [['key_mismatch', 'none'], ['key_invalid', 'none'], ['key_missing', 'none'], [
      'outcome_unknown', 'unknown'
    ], ['response_unavailable', 'done']]) {
      const refusing = await scripted(t, { status: 409, body: body(`idempotency_${code}`) })
      t.match(await failure(send(refusing.url, {}, refusing.options)), {
        name: 'SendError', effect, attempts: 1, message: new RegExp(`Refused with 409 idempotency_${code}`)
      })
    }
  })
}

t.test('fetch: an answer of the handler is an answer, whatever it says', async t => {
  for (const step of [{ status: 409, body: '{"code":"sold_out"}' }, { status: 422, body: 'no JSON' }, {
    status: 303, headers: { location: '/elsewhere' }
  }, { status: 409, body: 'null' }]) {
    const { url, options } = await scripted(t, step)
    t.match(await send(url, {}, options), { status: step.status, attempts: 1 })
  }
  const { url, options } = await scripted(t, { status: 500, headers: { 'idempotent-replayed': 'true' } })
  t.match(await send(url, {}, options), { status: 500, replayed: true, attempts: 1 }, 'a 5xx that was kept on purpose')
})

t.test('fetch: says whether the operation may have taken effect', async t => {
  const cases: Array<[Script[], string]> = [
    [[{ status: 429 }], 'none'],
    [[{ status: 503, body: refusal('idempotency_store_unavailable') }], 'none'],
    [[{ status: 503 }], 'unknown'],
    [['cut'], 'unknown'],
    [['silence'], 'unknown'],
    [[IN_PROGRESS], 'unknown'],
    [['cut', { status: 429 }], 'unknown'],
    [['cut', { status: 409, body: refusal('idempotency_key_mismatch') }], 'unknown'],
    [['cut', { status: 409, body: refusal('idempotency_response_unavailable') }], 'done']
  ]
  for (const [script, effect] of cases) {
    const { url, options } = await scripted(t, ...script)
    const error = await failure(send(url, {}, { ...options, deadline: 1_000 })) as SendError
    t.equal(error.effect, effect, JSON.stringify(script))
  }
  const gone = await scripted(t, ok)
  const closed = createServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  const { port } = closed.address() as AddressInfo
  closed.close()
  await once(closed, 'close')
  t.match(await failure(send(`http://127.0.0.1:${port}`, {}, { ...gone.options, deadline: 1_000 })), {
    effect: 'none', message: /Gave up after ECONNREFUSED/
  })
})

t.test('fetch: an abort ends it before, in and between attempts', async t => {
  const { url, keys, options } = await scripted(t, 'cut')
  const before = await send(url, {}, { ...options, signal: AbortSignal.abort(new Error('why')) }).catch(
    (error: unknown) => error
  )
  t.match(before, { effect: 'none', attempts: 0, message: /^Aborted/, cause: { message: 'why' } })
  t.equal(keys.length, 0)

  const between = new AbortController()
  const waiting = await failure(send(url, {}, { ...options, signal: between.signal, onRetry: () => between.abort() }))
  t.match(waiting, { effect: 'unknown', attempts: 1 })

  const within = new AbortController()
  const running = gate()
  const api = await startApi(t, async () => await running.promise)
  t.teardown(running.open)
  const sent = send(api.url, {}, { signal: within.signal }).catch((error: unknown) => error)
  await startedFirst(api)
  within.abort()
  t.match(await sent, { effect: 'unknown', attempts: 1, message: /^Aborted/ })
})

t.test('fetch: the real clock sleeps, and times out', async t => {
  const api = await startApi(t, (run, reply) => run === 1 ? reply.code(500).send({}) : undefined)
  t.equal((await send(api.url, {}, { minDelay: 1 })).attempts, 2)
  const running = gate()
  const stuck = await startApi(t, async () => await running.promise)
  t.teardown(running.open)
  t.match(await failure(send(stuck.url, {}, { attemptTimeout: 20, deadline: 20 })), {
    effect: 'unknown', message: /Gave up after timeout/
  })
})

t.test('the demo survives a lost response, a 503 and a crash', async t => {
  const demo = spawn(process.execPath, [...loader, 'examples/client/demo.ts'], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => demo.kill())
  const transcript = await text(demo.stdout)
  const [, lost = '', failed = '', crashed = ''] = transcript.split(/^(?=The )/m)
  const broken = String.raw`\n  attempt 1: UND_ERR_SOCKET.*\n  attempt 2: `
  t.match(lost, new RegExp(String.raw`A runs the handler, attempt 1 of this key${broken}201, replayed .*"attempt":1`))
  t.match(failed, /attempt 1: 503.*\n {2}A runs the handler, attempt 2 of this key\n {2}attempt 2: 201 .*"attempt":2/)
  t.match(crashed, new RegExp(
    String.raw`A is killed \(SIGKILL\)${broken}409 idempotency_in_progress.*\n(.*\n)*` +
    String.raw`  B runs the handler, attempt 2 of this key\n  attempt \d: 201 .*"attempt":2`
  ))
})

t.test("the lines in the docs are the examples' own", async t => {
  const section = await readFile('docs/clients.md', 'utf8')
  // Each belongs to the file that was linked last.
  const snippets = section.split('```ts excerpt\n').slice(1).map((part, i, parts) => [
    [...(i === 0 ? section : String(parts[i - 1])).split('```ts excerpt\n')[0]?.matchAll(
      /\]\(\.\.\/(examples\/client\/\w+\.ts)\)/g
    ) ?? []].at(-1)?.[1],
    part.split('```')[0]
  ])
  t.same(snippets.map(([file]) => file), ['send', 'got', 'axios', 'undici', 'stripe'].map(
    name => `examples/client/${name}.ts`
  ))
  for (const [file, snippet] of snippets as Array<[string, string]>) {
    const source = (await readFile(file, 'utf8')).split('\n').map(line => line.trim())
    for (const line of snippet.split('\n').map(line => line.trim()).filter(Boolean)) {
      t.ok(
        source.includes(line), `${file}: ${line}`
      )
    }
  }
})
