import assert from 'node:assert/strict'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import idempotency, { type IdempotencyRouteOptions, type RequestIdempotency } from '../index.ts'
import type { IdempotencyStore } from '../stores/contract.ts'
import type { StoreTestOptions } from './kit.ts'

interface App {
  app: FastifyInstance
  post: (key: string, body?: unknown) => Promise<Answer>
  /** The attempts of the handler's executions, in their order. */
  runs: number[]
  /** With `pause`: sends the first request, whose handler now runs until `go`. */
  begin: (key: string) => Promise<{ first: Promise<Answer> }>
  go: () => void
}
interface Answer { status: number, replayed: boolean, body: Buffer, several: string | null, code: string | undefined }
interface Setup {
  store: IdempotencyStore
  storeTimeout?: number
  pause?: boolean
  route?: IdempotencyRouteOptions
  handler?: (request: FastifyRequest, reply: FastifyReply) => unknown
}

const BYTES = Buffer.from(Array.from({ length: 100_000 }, (_, i) => i % 256))
const succeed: NonNullable<Setup['handler']> = (_request, reply) => reply.code(201).header(
  'x-several', ['a', 'b']
).send(BYTES)

/** Runs the plugin on a store behind a real app: what clients see, also where the store fails. */
export function storeAppTests ({ createStore, test, outage, storeTimeout = 1_000 }: StoreTestOptions): void {
  const check = (name: string, run: (store: IdempotencyStore) => Promise<void>): void => {
    test(`with the plugin: ${name}`, async () => await run(await createStore()))
  }

  check('the first request runs, its retry is a replay byte for byte, and another body is refused', async store => {
    await withApp({ store }, async ({ post, runs }) => {
      const first = await post('k')
      assert.deepEqual(pick(first), [201, false, 'a, b'])
      const retry = await post('k')
      assert.deepEqual(pick(retry), [201, true, 'a, b'])
      assert.ok(first.body.equals(BYTES) && retry.body.equals(BYTES))
      assert.deepEqual(codeOf(await post('k', { other: true })), [409, 'idempotency_key_mismatch'])
      assert.deepEqual(pick(await post('another')), [201, false, 'a, b'])
      assert.deepEqual(runs, [1, 1])
    })
  })

  check('while the first runs, duplicates are told so', async store => {
    await withApp({ store, pause: true }, async ({ begin, post, runs, go }) => {
      const { first } = await begin('k')
      for (const { status, code } of await Promise.all(Array.from({ length: 10 }, async () => await post('k')))) {
        assert.deepEqual([status, code], [409, 'idempotency_in_progress'])
      }
      go()
      assert.deepEqual(pick(await first), [201, false, 'a, b'])
      assert.deepEqual(pick(await post('k')), [201, true, 'a, b'])
      assert.deepEqual(runs, [1])
    })
  })

  check('duplicates that wait for the first get its response', async store => {
    await withApp({ store, pause: true, route: { inFlight: { wait: 20_000 } } }, async ({ begin, post, runs, go }) => {
      const { first } = await begin('k')
      const others = Promise.all(Array.from({ length: 5 }, async () => await post('k')))
      go()
      assert.deepEqual(pick(await first), [201, false, 'a, b'])
      for (const other of await others) assert.deepEqual(pick(other), [201, true, 'a, b'])
      assert.deepEqual(runs, [1])
    })
  })

  check('a failure frees the key, and the retry is the next attempt', async store => {
    await withApp({
      store,
      handler (request, reply) {
        if (request.idempotency?.attempt === 1) throw new Error('on purpose')
        return succeed(request, reply)
      }
    }, async ({ post, runs }) => {
      assert.equal((await post('k')).status, 500)
      assert.deepEqual(pick(await post('k')), [201, false, 'a, b'])
      assert.deepEqual(pick(await post('k')), [201, true, 'a, b'])
      assert.deepEqual(runs, [1, 2])
    })
  })

  check('the operator sees a key, and can have it forgotten', async store => {
    await withApp({ store }, async ({ app, post, runs }) => {
      await post('k')
      const seen = await app.idempotency.inspect({ key: 'k' })
      assert.deepEqual([seen?.state, seen?.attempt, seen?.status], ['completed', 1, 201])
      assert.equal(await app.idempotency.forget({ key: 'k' }), true)
      assert.equal(await app.idempotency.inspect({ key: 'k' }), undefined)
      assert.deepEqual(pick(await post('k')), [201, false, 'a, b'])
      assert.deepEqual(runs, [1, 1])
    })
  })

  for (const when of ['before', 'after'] as const) {
    const what = when === 'before' ? 'fails' : 'was done, but its answer is lost'

    check(`a claim that ${what} is a 503, and the retry the first attempt`, async store => {
      await withApp({ store: failingOnce(store, 'claim', when) }, async ({ post, runs }) => {
        assert.deepEqual(codeOf(await post('k')), [503, 'idempotency_store_unavailable'])
        assert.deepEqual(runs, [])
        assert.equal((await replayOf(post)).status, 201)
        assert.deepEqual(runs, [1])
      })
    })

    check(`a response whose keeping ${what} is sent, and kept afterwards`, async store => {
      await withApp({ store: failingOnce(store, 'complete', when) }, async ({ post, runs }) => {
        assert.deepEqual(pick(await post('k')), [201, false, 'a, b'])
        assert.ok((await replayOf(post)).body.equals(BYTES))
        assert.deepEqual(runs, [1])
      })
    })
  }

  if (outage === undefined) return
  check('cut off, a first request is a 503; a response is sent, and kept once the store is back', async store => {
    await withApp({ store, storeTimeout, pause: true }, async ({ begin, post, runs, go }) => {
      const { first } = await begin('k')
      await outage.begin()
      try {
        go()
        assert.deepEqual(pick(await first), [201, false, 'a, b'])
        assert.deepEqual(codeOf(await post('k')), [503, 'idempotency_store_unavailable'])
        assert.deepEqual(codeOf(await post('new')), [503, 'idempotency_store_unavailable'])
      } finally {
        await outage.end()
      }
      assert.ok((await replayOf(post)).body.equals(BYTES))
      assert.deepEqual(runs, [1])
    })
  })
}

/** An app on a real socket with one route, for as long as `run` takes; the store is closed with it. */
async function withApp (
  { store, storeTimeout = 10_000, pause = false, route = {}, handler = succeed }: Setup,
  run: (app: App) => Promise<void>
): Promise<void> {
  const runs: number[] = []
  const [started, paused] = [gate(), gate()]
  const app = Fastify()
  await app.register(idempotency, { store, storeTimeout })
  app.post('/', { config: { idempotency: route } }, async (request, reply) => {
    if (runs.push((request.idempotency as RequestIdempotency).attempt) === 1 && pause) {
      started.resolve()
      await paused.promise
    }
    return await handler(request, reply)
  })
  try {
    await app.listen({ port: 0, host: '127.0.0.1' })
    const { port } = app.server.address() as AddressInfo
    const post: App['post'] = async (key, body = { amount: 1 }) => {
      const response = await fetch(`http://127.0.0.1:${port}/`, {
        method: 'POST',
        headers: {
          'content-type': 'application/json', 'idempotency-key': key
        },
        body: JSON.stringify(body)
      })
      const bytes = Buffer.from(await response.arrayBuffer())
      const isError = response.headers.get('content-type')?.startsWith('application/json') === true
      return {
        status: response.status,
        replayed: response.headers.get('idempotent-replayed') === 'true',
        body: bytes,
        several: response.headers.get('x-several'),
        code: isError ? (JSON.parse(String(bytes)) as { code?: string }).code : undefined
      }
    }
    const begin: App['begin'] = async key => {
      const first = post(key)
      await Promise.race([started.promise, first])
      return { first }
    }
    await run({ app, runs, post, begin, go: paused.resolve })
  } finally {
    paused.resolve()
    await app.close()
  }
}

/** The replay that a client gets if it keeps sending. */
async function replayOf (post: App['post']): Promise<Answer> {
  for (let i = 0; i < 300; i++) {
    const answer = await post('k')
    if (answer.replayed) return answer
    await sleep(10)
  }
  throw new assert.AssertionError({ message: 'the response was never kept' })
}

/** The store, whose `method` fails the first time, before it was done or after. */
function failingOnce (
  store: IdempotencyStore, method: 'claim' | 'complete', when: 'before' | 'after'
): IdempotencyStore {
  let failed = false
  return new Proxy(store, {
    get (target, name) {
      const found: unknown = Reflect.get(target, name)
      if (typeof found !== 'function') return found
      return (...args: unknown[]): unknown => {
        const run = (): unknown => Reflect.apply(found, target, args)
        if (failed || name !== method) return run()
        failed = true
        return (async () => {
          if (when === 'after') await run()
          throw new Error(`the store's ${method} fails on purpose`)
        })()
      }
    }
  })
}

const pick = ({ status, replayed, several }: Answer): unknown[] => [status, replayed, several]
const codeOf = ({ status, code }: Answer): unknown[] => [status, code]

function gate (): { promise: Promise<void>, resolve: () => void } {
  let resolve!: () => void
  const promise = new Promise<void>(_resolve => { resolve = _resolve })
  return { promise, resolve }
}
