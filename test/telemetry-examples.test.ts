import { randomUUID } from 'node:crypto'
import { FastifyOtelInstrumentation } from '@fastify/otel'
import { context } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import {
  BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor, type ReadableSpan
} from '@opentelemetry/sdk-trace-base'
import { Registry } from 'prom-client'
import t, { type Test } from 'tap'
import { registerMetrics, serveMetrics } from '../examples/metrics.ts'
import { registerTracing } from '../examples/tracing.ts'
import { MemoryStore, type IdempotencyStore } from '../lib/index.ts'
import {
  gate, start, STORES, stopRedis, until, type Gate, type TestApp
} from './fixtures/app.ts'
import { breakable, dieHolding, routes } from './fixtures/events.ts'

t.teardown(stopRedis)

/** All that can happen to a key, on one app: each with its own key, but for retries. */
async function everything (api: TestApp, store: IdempotencyStore, prefix: string, fail: (
  name: keyof IdempotencyStore | undefined
) => void, entered: Gate, finish: Gate): Promise<void> {
  const { post } = api
  await post('secret-k', '{}')
  await post('secret-k', '{}')
  await post('secret-k', '[]')
  await post('secret-i', '{}', { path: '/items/1?secret=2' })
  await post(' ', '{}', { path: '/items/2' })
  const slow = post('secret-s', '{}', { path: '/slow' })
  await entered.promise
  await post('secret-s', '{}', { path: '/slow' })
  finish.open()
  await slow
  await post('secret-f', '{}', { path: '/fail' })
  await post('secret-l', '{}', { path: '/large' })
  fail('claim')
  await post('secret-c', '{}')
  fail(undefined)
  await dieHolding(api, store, prefix, 'secret-d')
  await post('secret-d', '{}')
}

for (const mode of STORES) {
  t.test(`examples/metrics.ts: counts and durations of all apps, without URLs and keys (${mode})`, async t => {
    const registry = new Registry()
    const stop = registerMetrics(registry)
    t.teardown(stop)
    const { store, fail } = await breakable(mode)
    const [entered, finish] = [gate(), gate()]
    const prefix = `${randomUUID()}:`
    const api = await start(t, 'memory', {
      options: { store, keyPrefix: prefix, maxResponseBytes: 500 },
      routes: app => {
        routes(app, entered, finish)
        serveMetrics(app, registry)
      }
    })
    const other = await start(t, 'memory', { routes })
    const metrics = async (): Promise<string[]> => (
      await api.call({ method: 'GET', path: '/metrics' })
    ).text.split('\n')
    const starting = (await metrics()).filter(line => line.startsWith('idempotency_'))
    t.same(starting, [
      'store-error', 'lease-lost', 'abandoned', 'unreplayable'
    ].map(fault => `idempotency_faults_total{fault="${fault}"} 0`), 'alerts see the first fault')

    await everything(api, store, prefix, fail, entered, finish)
    await other.post('secret-k', '{}')
    const lines = await metrics()
    const counted = (name: string): string[] => lines.filter(line => line.startsWith(`idempotency_${name}`)).sort()
    t.same(counted('events_total'), [
      ['abandoned', '/', '', 1], ['conflicted', '/slow', 409, 1], ['executed', '/', 201, 3],
      ['executed', '/items/:id', 200, 1], ['executed', '/slow', 200, 1], ['invalid', '/items/:id', 400, 1],
      ['mismatched', '/', 409, 1], ['released', '/fail', 500, 1], ['replayed', '/', 201, 1],
      ['store-error', '/', 503, 1], ['unreplayable', '/large', 200, 1]
    ].map(([event, route, status, count]) =>
      `idempotency_events_total{event="${event}",method="POST",route="${route}",status="${status}"} ${count}`))
    t.same(counted('faults_total'), [['abandoned', 1], ['lease-lost', 0], ['store-error', 1], ['unreplayable', 1]].map(
      ([fault, count]) => `idempotency_faults_total{fault="${fault}"} ${count}`
    ))
    t.same(counted('held_seconds_count'), [
      ['executed', '/', 3], ['executed', '/items/:id', 1], ['executed', '/slow', 1], ['released', '/fail', 1],
      ['unreplayable', '/large', 1]
    ].map(([event, route, count]) =>
      `idempotency_held_seconds_count{event="${event}",method="POST",route="${route}"} ${count}`))
    await api.post('secret-l', '{}', { path: '/large' })
    t.ok((await metrics()).includes(
      'idempotency_held_seconds_count{event="unreplayable",method="POST",route="/large"} 1'
    ), 'a refused retry has held nothing')
    t.notMatch(lines.join(), 'secret')

    stop()
    const last = await metrics()
    await api.post('secret-z', '{}')
    t.same(await metrics(), last, 'nobody listens any more')
  })

  t.test(`examples/metrics.ts and examples/tracing.ts: steps that were recorded and reused (${mode})`, async t => {
    const { spans, instrumentation } = tracer(t)
    const registry = new Registry()
    t.teardown(registerMetrics(registry))
    const api = await start(t, mode, {
      routes: async app => {
        await app.register(instrumentation.plugin())
        app.post('/steps', async (request, reply) => {
          const { step, attempt } = request.idempotency
          await step('charge', () => 'secret result')
          return await reply.code(attempt === 1 ? 500 : 201).send()
        })
      }
    })
    for (const status of [500, 201]) t.equal((await api.post('secret-k', '{}', { path: '/steps' })).status, status)
    const text = await registry.metrics()
    t.same(text.split('\n').filter(line => line.startsWith('idempotency_steps_total')), ['step-recorded', 'step-reused']
      .map(event => `idempotency_steps_total{event="${event}",method="POST",route="/steps",step="charge"} 1`))
    const requests = spans.getFinishedSpans().filter(({ name }) => name === 'request')
    t.same(requests.map(({ attributes, events }) => [attributes['idempotency.step'], events.map(({ name }) => name)]), [
      ['charge', ['idempotency.step-recorded', 'idempotency.released']],
      ['charge', ['idempotency.step-reused', 'idempotency.executed']]
    ])
    t.notMatch(text + JSON.stringify(requests.map(({ attributes, events }) => [attributes, events])), /secret/)
  })

  t.test(`examples/tracing.ts: what happened is on the span of the request (${mode})`, async t => {
    const { spans, instrumentation } = tracer(t)
    const { store, fail } = await breakable(mode)
    const [entered, finish] = [gate(), gate()]
    const prefix = `${randomUUID()}:`
    const api = await start(t, 'memory', {
      options: { store, keyPrefix: prefix, maxResponseBytes: 500 },
      routes: async app => {
        await app.register(instrumentation.plugin())
        routes(app, entered, finish)
      }
    })
    await everything(api, store, prefix, fail, entered, finish)
    const requests = spans.getFinishedSpans().filter(({ name }) => name === 'request')
    const told = requests.map(({ attributes, events }) => [
      attributes['http.response.status_code'], attributes['idempotency.event'],
      attributes['idempotency.replayed'], attributes['idempotency.attempt'],
      attributes['idempotency.status_code'], attributes['idempotency.error.code'], events.filter(
        ({ name }) => name.startsWith('idempotency.')
      ).length
    ])
    const none = undefined
    t.same(told.sort(byText), [
      [201, 'executed', false, 1, 201, none, 1],
      [201, 'replayed', true, 1, 201, none, 1],
      [409, 'mismatched', false, 1, 409, 'idempotency_key_mismatch', 1],
      [200, 'executed', false, 1, 200, none, 1],
      [400, 'invalid', false, none, 400, 'idempotency_key_invalid', 1],
      [409, 'conflicted', false, 1, 409, 'idempotency_in_progress', 1],
      [200, 'executed', false, 1, 200, none, 1],
      [500, 'released', false, 1, 500, none, 1],
      [200, 'unreplayable', false, 1, 200, none, 1],
      [503, 'store-error', false, none, 503, 'idempotency_store_unavailable', 1],
      [201, 'executed', false, 2, 201, none, 2]
    ].sort(byText))
    t.equal(spans.getFinishedSpans().some(({ name }) => name.startsWith('idempotency ')), false)
    const [first, retry] = requests.map(({ attributes }) => attributes['idempotency.key.hash'])
    t.match(first, /^[0-9a-f]{16}$/)
    t.equal(retry, first, 'retries are found by their key')
    t.match(requests.find(({ attributes }) => attributes['idempotency.event'] === 'store-error')?.events.find(
      ({ name }) => name === 'exception'
    )?.attributes, { 'exception.message': 'the store is down' })
    for (const { attributes, events } of requests) {
      t.notMatch(JSON.stringify([{ ...attributes, 'url.path': '' }, events]), 'secret')
    }
  })
}

t.test('examples/tracing.ts: what the ended span of the request cannot take is a child of it', async t => {
  const { spans, instrumentation } = tracer(t)
  const { store, fail } = await breakable('memory')
  const { post } = await start(t, 'memory', {
    options: { store },
    before: async app => await app.register(instrumentation.plugin()),
    routes: app => {
      routes(app)
      app.post('/untraced', { config: { otel: false } }, async () => 'ok')
    }
  })
  const children = (): ReadableSpan[] => spans.getFinishedSpans().filter(({ name }) => name.startsWith('idempotency '))
  const parentsOf = (found: ReadableSpan[]): Array<string | undefined> => found.map((
    { parentSpanContext }
  ) => spans.getFinishedSpans().find(span => span.spanContext().spanId === parentSpanContext?.spanId)?.name)
  await post('k', '{}')
  await post('k', '{}')
  t.same(children().map(({ name, attributes }) => [name, attributes['idempotency.attempt']]), [
    ['idempotency executed', 1]
  ], 'the outcome, where @fastify/otel was registered first; a replay not')
  spans.reset()

  fail('complete', 1)
  await post('late', '{}')
  await until(() => children().length > 1, 'the response is kept')
  const found = children()
  t.same(found.map(({ name }) => name), ['idempotency store-error', 'idempotency executed'])
  t.same(parentsOf(found), ['request', 'request'])

  await post('u', '{}', { path: '/untraced' })
  t.equal(children().length, 2, 'a route that is not traced')
})

t.test('examples/tracing.ts: what a timer or another request finds out is on the span it is about', async t => {
  const { spans, instrumentation } = tracer(t)
  const entered = { a: gate(), b: gate() }
  const [finish, waits] = [gate(), gate()]
  class WatchedStore extends MemoryStore {
    override watch (key: string, wake: () => void): () => void {
      waits.open()
      return super.watch(key, wake)
    }
  }
  const { app, post } = await start(t, 'memory', {
    options: { store: new WatchedStore(), lease: 120, inFlight: { wait: 60_000 } },
    routes: async app => {
      await app.register(instrumentation.plugin())
      app.post<{ Params: { id: 'a' | 'b' } }>('/:id', async ({ params: { id }, idempotency }) => {
        const lost = new Promise(resolve => { idempotency?.signal.addEventListener('abort', resolve) })
        entered[id].open()
        await (id === 'a' ? finish.promise : lost)
        return 'ok'
      })
    }
  })
  // The one timer of the leases is started in the context of the first.
  const first = post('a', '{}', { path: '/a' })
  await entered.a.promise
  const loser = post('b', '{}', { path: '/b' })
  await entered.b.promise
  await app.idempotency.forget({ key: 'b' })
  await loser
  // Woken by the first's end, in its context.
  const waiter = post('a', '{}', { path: '/a' })
  await waits.promise
  finish.open()
  await Promise.all([first, waiter])
  const told = spans.getFinishedSpans().filter(({ name }) => name === 'request').map(
    ({ attributes, events }) => [attributes['url.path'], ...events.map(({ name }) => name)]
  )
  t.same(told.sort(byText), [
    ['/a', 'idempotency.executed'], ['/a', 'idempotency.replayed'],
    ['/b', 'idempotency.lease-lost', 'idempotency.executed']
  ])
})

t.test('examples/tracing.ts: without @fastify/otel nothing is traced, and nothing fails', async t => {
  const { spans } = tracer(t)
  const { post } = await start(t, 'memory', { routes })
  t.equal((await post('k', '{}')).status, 201)
  t.same(spans.getFinishedSpans(), [])
})

const byText = (a: unknown, b: unknown): number => JSON.stringify(a) < JSON.stringify(b) ? -1 : 1

/** Tracing as an app would set it up, and the recipe, until the test ends. */
function tracer (t: Test): { spans: InMemorySpanExporter, instrumentation: FastifyOtelInstrumentation } {
  const spans = new InMemorySpanExporter()
  const instrumentation = new FastifyOtelInstrumentation()
  instrumentation.setTracerProvider(new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(spans)] }))
  context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable())
  const stop = registerTracing()
  t.teardown(() => {
    stop()
    context.disable()
  })
  return { spans, instrumentation }
}
