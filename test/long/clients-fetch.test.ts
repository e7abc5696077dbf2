/** The fetch client, step by step: time and chance are the test's. */
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { send, type SendError, type SendOptions } from '../../examples/client/send.ts'
import { gate } from '../fixtures/app.ts'
import { failure, startApi, startedFirst } from '../fixtures/client-api.ts'

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
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  const clock = {
    now: () => now,
    random: () => 0.5,
    async sleep (ms: number) {
      delays.push(ms)
      now += ms
    },
    timeout () {
      timeout = new AbortController()
      return timeout.signal
    }
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
    for (const [code, effect] of [
      ['key_mismatch', 'none'], ['key_invalid', 'none'], ['key_missing', 'none'], ['outcome_unknown', 'unknown'],
      ['response_unavailable', 'done']
    ]) {
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
