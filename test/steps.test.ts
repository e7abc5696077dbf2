import type { Readable } from 'node:stream'
import type { FastifyReply, FastifyRequest } from 'fastify'
import t from 'tap'
import { type Answer, gate, MODES, start, STORES, stopRedis, until } from './fixtures/app.ts'
import { listen } from './fixtures/faulty.ts'

t.teardown(stopRedis)

for (const mode of MODES) {
  t.test(`G16: a recorded step does not run again after a freed failure: same result (${mode})`, async t => {
    const ran: string[] = []
    const results: unknown[] = []
    const { post, app } = await start(t, mode, {
      routes: app => app.post('/', async (request, reply) => {
        const { step, attempt, keyFor } = request.idempotency
        const one = await step('one', async ({ key, signal }) => {
          ran.push(`one ${key === keyFor('one')} ${signal.aborted}`)
          return { at: new Date(0), none: undefined, attempt }
        })
        const two = await step('two', () => { ran.push('two') })
        results.push([one, two])
        if (attempt < 3) return await reply.code(503).send({ attempt })
        const three = await step('three', async () => attempt)
        return { one, three }
      })
    })
    const recorded = listen(t, 'step-recorded')
    const reused = listen(t, 'step-reused')
    for (const status of [503, 503]) t.equal((await post('k', '{}')).status, status)
    const freed = await app.idempotency.inspect({ key: 'k' })
    t.same([freed?.state, freed?.attempt, freed?.steps.sort()], ['freed', 2, ['one', 'two']])
    t.same((await post('k', '{}')).json(), { one: { at: '1970-01-01T00:00:00.000Z', attempt: 1 }, three: 3 })
    t.same(ran, ['one true false', 'two'])
    t.same(results, Array(3).fill([
      { at: '1970-01-01T00:00:00.000Z', attempt: 1 }, undefined
    ]), 'each execution sees what JSON has made of it')
    t.same(recorded.map(({ step, attempt }) => [step, attempt]), [['one', 1], ['two', 1], ['three', 3]])
    t.same(reused.map(({ step, attempt }) => [step, attempt]), [['one', 2], ['two', 2], ['one', 3], ['two', 3]])
    t.match(await app.idempotency.inspect({ key: 'k' }), { state: 'completed', steps: [] })
    t.equal((await post('k', '{}')).replayed, true)
  })

  t.test(`a key whose step or derived key was used is bound to its request: 409 to another body (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      routes: app => {
        const schema = { body: { type: 'object', properties: { refused: { const: false } } } }
        const failing = (use: (request: FastifyRequest) => unknown) => async (
          request: FastifyRequest, reply: FastifyReply
        ) => {
          runs++
          await use(request)
          return await reply.code(500).send({ code: 'failed' })
        }
        app.post('/step', { schema }, failing(async ({ idempotency }) => await idempotency.step('one', () => 1)))
        app.post('/failed', failing(
          async ({ idempotency }) => { await idempotency.step('one', () => { throw new Error('no') }).catch(() => {}) }
        ))
        app.post('/key', failing(({ idempotency }) => idempotency.keyFor('one')))
        app.post('/neither', failing(() => {}))
        app.post('/late', {
          config: { idempotency: { hook: mode.endsWith('first') ? 'preValidation' : 'preHandler' } }
        }, failing(async ({ idempotency }) => await idempotency.step('one', () => 1)))
        app.post('/throw', { config: { idempotency: { errors: 'throw' } } }, failing(
          async ({ idempotency }) => await idempotency.step('one', () => 1)
        ))
      }
    })
    const paths = ['/step', '/failed', '/key', '/late', '/throw']
    for (const path of paths) t.equal((await post(path, '{}', { path })).status, 500)
    t.equal(runs, paths.length)
    for (const path of paths) {
      for (const body of ['{"other":1}', '{"refused":true}']) {
        if (body.includes('refused') && path !== '/step') continue
        const other = await post(path, body, { path })
        t.same([other.status, other.json()['code']], [409, 'idempotency_key_mismatch'], path)
      }
      t.equal((await post(path, '{}', { path: `${path}?query` })).json()['code'], 'idempotency_key_mismatch')
    }
    t.equal(runs, paths.length)
    for (const path of paths) t.equal((await post(path, '{}', { path })).status, 500)
    t.equal(runs, 2 * paths.length)
    for (const body of ['{}', '{"other":1}']) t.equal((await post('neither', body, { path: '/neither' })).status, 500)
    t.equal(runs, 2 * paths.length + 2)
  })

  t.test(`where the handler reads the body itself, the first step waits for it and compares it (${mode})`, async t => {
    let charged = 0
    const { post } = await start(t, mode, {
      before: app => app.addContentTypeParser(
        'application/octet-stream', (_request, payload, done) => { done(null, payload) }
      ),
      routes: app => {
        app.post('/', async (request, reply) => {
          const read = (request.body as Readable).toArray()
          const charge = await request.idempotency.step('charge', () => ++charged)
          await read
          return await reply.code(request.idempotency.attempt < 3 ? 500 : 200).send({ charge })
        })
        app.post('/unread', async request => await request.idempotency.step('charge', () => ++charged))
        app.post('/reads', async (request, reply) => {
          request.idempotency.keyFor('x')
          let bytes = 0
          for await (const chunk of request.body as AsyncIterable<Buffer>) bytes += chunk.length
          return await reply.code(request.idempotency.attempt < 2 ? 500 : 200).send({ bytes })
        })
      }
    })
    const headers = { 'content-type': 'application/octet-stream' }
    const send = async (letter: string, path = '/') => await post(
      'k', [letter.repeat(70_000), letter.repeat(70_000)], { path, headers: { ...headers, 'idempotency-key': path } }
    )
    t.equal((await send('a')).status, 500)
    t.equal((await send('b')).json()['code'], 'idempotency_key_mismatch')
    t.same((await send('a')).json(), { charge: 1 })
    t.equal(charged, 1)
    t.match((await send('a', '/unread')).json(), { statusCode: 500, message: /Nobody reads the request body/ })
    t.equal(charged, 1)
    t.equal((await send('a', '/reads')).status, 500)
    t.equal((
      await send('b', '/reads')
    ).json()['code'], 'idempotency_key_mismatch', 'what such a handler answers is neither kept nor seen')
    t.same((await send('a', '/reads')).json(), { bytes: 140_000 })
  })
}

for (const mode of STORES) {
  t.test(`a step: names, failures, and results that JSON has no form for (${mode})`, async t => {
    const { post } = await start(t, mode, {
      routes: app => app.post('/', async request => {
        const { step } = request.idempotency
        const told = async (run: () => Promise<unknown>) => await run().then(
          value => ({ value }), (error: Error) => ({ error: error.name, message: error.message })
        )
        const again: unknown[] = []
        const loop: Record<string, unknown> = {}
        loop['loop'] = loop
        again.push(await told(async () => await step('fails', () => { throw new RangeError('work') })))
        again.push(await told(async () => await step('fails', async () => 'then it works')))
        again.push(await told(async () => await step('fails', async () => 'no more')))
        const [first, second] = await Promise.all(
          [told(async () => await step('twice', async () => 1)), told(async () => await step('twice', async () => 2))]
        )
        again.push(first, second)
        for (const name of ['', 1, undefined, 'half \ud800']) {
          again.push(await told(async () => await step(name as string, () => 1)))
        }
        again.push(
          await told(async () => await step('big', () => 1n)), await told(async () => await step('loop', () => loop))
        )
        again.push(await told(async () => await step('big', () => '1')))
        again.push(await told(async () => await step('function', () => () => 1)), await told(
          async () => await step('nan', () => [NaN, undefined, { a: undefined }])
        ))
        return again
      })
    })
    for (const key of ['k', undefined]) {
      const told = (await post(key, '{}')).json()
      t.match(told, [
        { error: 'RangeError', message: 'work' }, { value: 'then it works' }, {
          error: 'TypeError', message: /"fails" was used before/
        },
        { value: 1 }, { error: 'TypeError', message: /"twice" was used before/ },
        ...Array(4).fill({ error: 'TypeError', message: /name of a step must be/ }),
        { error: 'TypeError', message: /"big" cannot be recorded/ }, {
          error: 'TypeError', message: /"loop" cannot be recorded/
        },
        { value: '1' }, {}, { value: [null, null, {}] }
      ], String(key))
    }
  })

  t.test(`steps may run at once, and their results are those of their names (${mode})`, async t => {
    const ran: string[] = []
    const { post } = await start(t, mode, {
      routes: app => app.post('/', async (request, reply) => {
        const { step, attempt } = request.idempotency
        const names = attempt === 1 ? ['a', 'b', 'c'] : ['c', 'd', 'b', 'a']
        const results = await Promise.all(names.map(async name => await step(name, async () => {
          ran.push(name)
          return `${name}${attempt}`
        })))
        return await reply.code(attempt === 1 ? 500 : 200).send(results)
      })
    })
    t.same((await post('k', '{}')).json(), ['a1', 'b1', 'c1'])
    t.same((await post('k', '{}')).json(), ['c1', 'd2', 'b1', 'a1'])
    t.same(ran.sort(), ['a', 'b', 'c', 'd'])
  })

  t.test(`interrupted: a step that has begun and not ended is not begun again (${mode})`, async t => {
    const calls: string[] = []
    const { post } = await start(t, mode, {
      routes: app => app.post('/', async (request, reply) => {
        const { step, attempt, keyFor } = request.idempotency
        const work = (): string => {
          calls.push(`work ${attempt}`)
          if (attempt === 1) throw new Error('the answer was lost')
          return 'worked'
        }
        const asks = ({ key }: { key: string }): string => {
          calls.push(`asked ${attempt} ${key === keyFor('charge')}`)
          if (attempt === 2) throw new Error('does not know yet')
          return 'found'
        }
        const result = await step('charge', work, { interrupted: asks })
        return await reply.code(attempt === 3 ? 500 : 200).send({ result })
      })
    })
    for (const status of [500, 500, 500]) t.equal((await post('k', '{}')).status, status)
    t.same((await post('k', '{}')).json(), { result: 'found' })
    t.same(calls, ['work 1', 'asked 2 true', 'asked 3 true'])
  })

  t.test(`interrupted is not asked before the step began, but again after it failed (${mode})`, async t => {
    const calls: string[] = []
    const { post } = await start(t, mode, {
      routes: app => app.post('/', async (request, reply) => {
        const { step, attempt } = request.idempotency
        if (attempt === 1) return await reply.code(500).send()
        const work = (): never => {
          calls.push('work')
          throw new Error('lost')
        }
        const interrupted = (): never => {
          calls.push('asked')
          return 'found' as never
        }
        await step('a', work, { interrupted }).catch(() => {})
        return { found: await step('a', work, { interrupted }) }
      })
    })
    t.equal((await post('k', '{}')).status, 500)
    t.same((await post('k', '{}')).json(), { found: 'found' })
    t.same(calls, ['work', 'asked'])
  })

  t.test(`beyond 64 KiB or 256 steps a result is used once, then 409 outcome_unknown (${mode})`, async t => {
    const { post, app } = await start(t, mode, {
      routes: app => {
        const large = async (request: FastifyRequest, reply: FastifyReply) => {
          const { step, attempt } = request.idempotency
          const a = await step('a', () => 'x'.repeat(40_000))
          if (attempt === 3) return { rest: await step('c', () => 'ran') }
          const b = await step('b', () => 'y'.repeat(40_000))
          return await reply.code(500).send({ lengths: [a.length, b.length] })
        }
        app.post('/large', large)
        app.post('/many', async (request, reply) => {
          const { step, attempt } = request.idempotency
          for (let i = 0; i < 256; i++) await step(`step ${i}`, () => i)
          const more = await step('one more', () => attempt)
          return await reply.code(500).send({ more })
        })
        app.post('/long', async (request, reply) => {
          const { step, attempt } = request.idempotency
          const long = await step('n'.repeat(70_000), () => attempt, { interrupted: () => 0 })
          return await reply.code(500).send({ long })
        })
      }
    })
    t.same((await post('large', '{}', { path: '/large' })).json(), { lengths: [40_000, 40_000] })
    t.match((await post('large', '{}', { path: '/large' })).json(), {
      code: 'idempotency_outcome_unknown', message: /"b" has run/
    })
    t.same((await post('large', '{}', { path: '/large' })).json(), { rest: 'ran' }, 'of other steps all is known')
    t.same((await post('many', '{}', { path: '/many' })).json(), { more: 1 })
    t.match((await post('many', '{}', { path: '/many' })).json(), {
      code: 'idempotency_outcome_unknown', message: /"one more" has run/
    })
    t.equal((await app.idempotency.inspect({ key: 'many' }))?.steps.length, 256)
    t.same((await post('long', '{}', { path: '/long' })).json(), { long: 1 })
    t.equal((await post('long', '{}', { path: '/long' })).json()['code'], 'idempotency_outcome_unknown')
  })

  t.test(`of a late execution and the winner, both get the result that was recorded first (${mode})`, async t => {
    for (const first of ['late', 'winner']) {
      const inWork = gate()
      const thawed = gate()
      const letLate = gate()
      const recorded = gate()
      const results: string[] = []
      const aborted: unknown[] = []
      const { post, app } = await start(t, mode, {
        options: { lease: 100 },
        routes: app => app.post('/', async (request, reply) => {
          const { step, attempt } = request.idempotency
          await step('before', () => 1)
          results.push(await step('charge', async () => {
            if (attempt === 2) await thawed.promise
            if (attempt === 1) {
              inWork.open()
              await letLate.promise
            } else if (first === 'late') {
              letLate.open()
              await recorded.promise
            }
            return `charge ${attempt}`
          }))
          if (attempt === 1) {
            recorded.open()
            await step('next', () => 'must not run').catch((error: { code: string }) => aborted.push(error.code))
          } else if (first === 'winner') {
            letLate.open()
            await recorded.promise
          }
          return await reply.send({ attempt })
        })
      })
      const { store } = app.idempotency
      const { renew } = store
      const late = post('k', '{}')
      await inWork.promise
      // The first execution is as if it were frozen: nothing of it reaches the store.
      store.renew = async () => { throw new Error('frozen') }
      let won: Answer | undefined
      const winner = until(async () => (won = await post('k', '{}')).status !== 409, 'the end of the lease')
      await until(async () => (await app.idempotency.inspect({ key: 'k' }))?.attempt === 2, 'the takeover')
      store.renew = renew
      thawed.open()
      await winner
      t.equal(won?.status, 200)
      await late
      t.same(results, Array(2).fill(first === 'late' ? 'charge 1' : 'charge 2'), first)
      t.same(aborted, ['idempotency_in_progress'])
    }
  })

  t.test(`recorded steps and the binding are gone with forget, and with the key's ttl (${mode})`, async t => {
    let charged = 0
    const { post, app } = await start(t, mode, {
      options: { ttl: 200 },
      routes: app => app.post('/', async (request, reply) => await reply.code(500).send(
        { charge: await request.idempotency.step('charge', () => ++charged) }
      ))
    })
    t.same((await post('k', '{}')).json(), { charge: 1 })
    t.equal(await app.idempotency.forget({ key: 'k' }), true)
    t.same((await post('k', '{"other":1}')).json(), { charge: 2 })
    await until(async () => await app.idempotency.inspect({ key: 'k' }) === undefined, 'the end of the ttl')
    t.same((await post('k', '{}')).json(), { charge: 3 })
  })

  t.test(`what was kept and then fails in a later hook keeps its steps (${mode})`, async t => {
    let charged = 0
    let fails = true
    const { post } = await start(t, mode, {
      routes: app => {
        // Behind the plugin's own hook: what it has kept is taken back.
        app.addHook('onRoute', route => {
          route.onSend = [route.onSend ?? []].flat().concat(async () => { if (fails) throw new Error('a later hook') })
        })
        app.post('/', async request => ({ charge: await request.idempotency.step('charge', () => ++charged) }))
      }
    })
    t.equal((await post('k', '{}')).status, 500)
    fails = false
    t.equal((await post('k', '{"other":1}')).json()['code'], 'idempotency_key_mismatch')
    t.same((await post('k', '{}')).json(), { charge: 1 })
    t.equal(charged, 1)
  })

  t.test(`a step in a hook, and after the outcome was stored (${mode})`, async t => {
    const late: unknown[] = []
    let hooked = 0
    const { post } = await start(t, mode, {
      before: app => app.addHook('preHandler', async (request, reply) => {
        const count = await request.idempotency.step('hook', () => ++hooked)
        if (request.headers['x-refuse'] === '1') return await reply.code(503).send({ count })
      }),
      routes: app => app.post('/', {
        onResponse: async request => {
          await request.idempotency.step('late', () => late.push('ran')).catch(
            (error: Error) => late.push(error.message)
          )
        }
      }, async (request) => ({ hooked, attempt: request.idempotency.attempt }))
    })
    t.same((await post(
      'k', '{}', { headers: { 'content-type': 'application/json', 'idempotency-key': 'k', 'x-refuse': '1' } }
    )).json(), { count: 1 })
    t.same((await post('k', '{}')).json(), { hooked: 1, attempt: 1 })
    await until(() => late.length === 2, 'both responses')
    t.same(late, Array(2).fill('The step "late" came when the outcome of its request was stored already'))
  })
}
