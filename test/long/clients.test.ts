/** The clients of examples/client, against a real API behind a proxy that eats responses. */
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { readFile } from 'node:fs/promises'
import { text } from 'node:stream/consumers'
import axios from 'axios'
import axiosRetry from 'axios-retry'
import got from 'got'
import t from 'tap'
import { Agent, RetryAgent, request } from 'undici'
import { pay as payWithAxios } from '../../examples/client/axios.ts'
import { pay as payWithGot } from '../../examples/client/got.ts'
import { send } from '../../examples/client/send.ts'
import { pay as payWithUndici } from '../../examples/client/undici.ts'
import type { IdempotencyEvent } from '../../lib/index.ts'
import { gate } from '../fixtures/app.ts'
import { event, startApi, startedFirst } from '../fixtures/client-api.ts'
import type { Cut } from '../fixtures/eater.ts'
import { loader } from '../fixtures/loader.ts'

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
      t.ok(source.includes(line), `${file}: ${line}`)
    }
  }
})
