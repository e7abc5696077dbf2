import fc from 'fast-check'
import { serializeItem } from 'structured-headers'
import t, { type Test } from 'tap'
import { gate, MODES, start, stopRedis, STORES, type Answer } from './fixtures/app.ts'

/** draft-ietf-httpapi-idempotency-key-header-07, line by line. */

t.teardown(stopRedis)

const UUID = '8e03978e-40d5-43e8-bc93-6894a57f9324'
const docsUrl = 'https://docs.example.com/errors'
const code = (answer: Answer) => [answer.status, answer.json().code]

/** Section 2.7: what every error of the profile has in common. */
function checkProblem (t: Test, answer: Answer, status: number, code: string, title: string): void {
  t.equal(answer.status, status)
  t.equal(answer.headers['content-type'], 'application/problem+json')
  t.equal(answer.headers['content-language'], 'en')
  t.equal(answer.headers.link, `<${docsUrl}#${code}>; rel="describedby"; type="text/html"`)
  t.match(answer.json(), { type: `${docsUrl}#${code}`, title, status, code, detail: /\w/ })
}

t.test('S1, S2, S3: the key is an Item whose value is a String of RFC 9651; parameters are ignored', async t => {
  let seen: string | undefined
  const { post } = await start(t, 'memory', {
    options: { profile: 'ietf' },
    routes: app => app.post('/', async request => {
      seen = request.idempotency.key ?? undefined
      return {}
    })
  })
  for (const [value, key] of [
    [`"${UUID}"`, UUID],
    ['"clkyoesmbgybucifusbbtdsbohtyuuwz"', 'clkyoesmbgybucifusbbtdsbohtyuuwz'],
    ['"with \\"quotes\\" and \\\\"', 'with "quotes" and \\'],
    ['"a, b"', 'a, b'],
    ['  "spaces around"  ', 'spaces around'],
    ['"parameters";v=1;w', 'parameters'],
    [`"${'x'.repeat(255)}"`, 'x'.repeat(255)]
  ] as const) {
    seen = undefined
    t.equal((await post(value, '{}')).status, 200, value)
    t.equal(seen, key, value)
    t.equal((
      await post(`"${key.replace(/["\\]/g, '\\$&')}"`, '{}')
    ).replayed, true, `${value}: the String counts, not how it was written`)
  }
})

t.test('S2, S3, S4: anything else is a 400, before the body is read, rather than a request without a key', async t => {
  let runs = 0
  const { post } = await start(t, 'memory', {
    options: { profile: 'ietf', docsUrl },
    routes: app => app.post('/', async () => {
      runs++
      return {}
    })
  })
  for (const value of [
    UUID, 'token', '1', '1.5', '?1', ':YWJj:', '@1659578233', '%"display"', '"a", "b"', '("a" "b")', '"unterminated',
    '"\\x"', '"caf\u00e9"', '"tab\there"', '"a" "b"', '"a"b', '""', '"  "', `"${'x'.repeat(256)}"`, "'single'"
  ]) {
    checkProblem(t, await post(value, '{}'), 400, 'idempotency_key_invalid', 'Idempotency key invalid')
  }
  const two = await post(
    undefined, '{}', { headers: { 'content-type': 'application/json', 'idempotency-key': ['"a"', '"b"'] } }
  )
  checkProblem(t, two, 400, 'idempotency_key_invalid', 'Idempotency key invalid')
  t.equal(runs, 0)
  t.match(
    (await post('bare', '{}')).json().detail, /must be a String of RFC 9651: a value in double quotes, such as "8e03/
  )
})

t.test('S1: every String that can be sent is a key of its own', async t => {
  let seen: string | undefined
  const { post } = await start(t, 'memory', {
    options: { profile: 'ietf' },
    routes: app => app.post('/', async request => {
      seen = request.idempotency.key ?? undefined
      return {}
    })
  })
  await fc.assert(fc.asyncProperty(fc.string({ minLength: 1, maxLength: 255 }).filter(
    text => text.trim() !== ''
  ), async key => {
    seen = undefined
    const answer = await post(serializeItem([key, new Map()]), '{}')
    return answer.replayed || seen === key
  }), { numRuns: 200 })
})

t.test('S2: in the default profile the value is opaque, quotes included', async t => {
  let runs = 0
  const { post } = await start(t, 'memory', { routes: app => app.post('/', async () => ++runs) })
  t.same(
    [(await post('"k"', '{}')).text, (await post('k', '{}')).text, (await post('"k"', '{}')).text], ['1', '2', '1']
  )
})

for (const mode of MODES) {
  t.test(`E1, E2, E3, E6: each error has its status, a problem's body and a link (${mode})`, async t => {
    const [started, finish] = [gate(), gate()]
    const { post } = await start(t, mode, {
      options: { profile: 'ietf', docsUrl, required: true },
      routes: app => {
        app.post('/', async () => ({ ok: true }))
        app.post('/slow', async () => {
          started.open()
          await finish.promise
          return {}
        })
      }
    })
    checkProblem(t, await post(undefined, '{}'), 400, 'idempotency_key_missing', 'Idempotency-Key is missing')
    await post('"k"', '{"a":1}')
    checkProblem(t, await post('"k"', '{"a":2}'), 422, 'idempotency_key_mismatch', 'Idempotency-Key is already used')
    const slow = post('"slow"', '{}', { path: '/slow' })
    await started.promise
    const conflict = await post('"slow"', '{}', { path: '/slow' })
    checkProblem(t, conflict, 409, 'idempotency_in_progress', 'A request is outstanding for this Idempotency-Key')
    t.equal(conflict.headers['retry-after'], '1')
    finish.open()
    await slow
  })
}

for (const mode of STORES) {
  t.test(`N1, N2, N3: processed once, then answered with its result; a 409 meanwhile (${mode})`, async t => {
    let runs = 0
    let [started, finish] = [gate(), gate()]
    const { post } = await start(t, mode, {
      options: { profile: 'ietf' },
      routes: app => app.post('/:status', async (request, reply) => {
        runs++
        started.open()
        await finish.promise
        return await reply.code(Number((request.params as { status: string }).status)).send({ runs })
      })
    })
    for (const status of [201, 404, 422]) {
      [started, finish] = [gate(), gate()]
      const first = post(`"${status}"`, '{}', { path: `/${status}` })
      await started.promise
      t.same(code(await post(`"${status}"`, '{}', { path: `/${status}` })), [409, 'idempotency_in_progress'])
      finish.open()
      const { text } = await first
      const retry = await post(`"${status}"`, '{}', { path: `/${status}` })
      t.same([retry.status, retry.text, retry.replayed], [status, text, true])
    }
    t.equal(runs, 3)
  })

  t.test(`E4, E5: a refused request can be corrected under its key; passing failures run again (${mode})`, async t => {
    let runs = 0
    const { post } = await start(t, mode, {
      options: { profile: 'ietf' },
      routes: app => app.post('/', async (_request, reply) => await reply.code(++runs === 1 ? 503 : 200).send({}))
    })
    t.equal((await post('k', '{}')).status, 400)
    t.equal((await post('"k"', '{}')).status, 503)
    t.equal((await post('"k"', '{}')).status, 200)
    t.equal(runs, 2)
  })
}

t.test('E1: without docsUrl there is nothing to link to; a URL becomes one that a header can carry', async t => {
  const routes = (app: Parameters<Parameters<typeof start>[2]['routes']>[0]) => app.post('/', async () => ({}))
  const none = await start(t, 'memory', { options: { profile: 'ietf' }, routes })
  const answer = await none.post('k', '{}')
  t.same([answer.headers.link, answer.headers['content-language'], answer.json().type], [
    undefined, 'en', 'urn:problem-type:idempotency_key_invalid'
  ])
  const odd = await start(
    t, 'memory', { options: { profile: 'ietf', docsUrl: 'https://docs.example.com/\u20ac>' }, routes }
  )
  t.equal(
    (await odd.post('k', '{}')).headers.link,
    '<https://docs.example.com/%E2%82%AC%3E#idempotency_key_invalid>; rel="describedby"; type="text/html"'
  )
})

t.test('the form of the errors can still be chosen; status and title stay the draft\'s', async t => {
  const { post } = await start(t, 'memory', {
    options: { profile: 'ietf' },
    routes: app => {
      app.setErrorHandler((error: Error & { statusCode?: number, title?: string }, _request, reply) => {
        reply.code(error.statusCode ?? 500).send({ title: error.title })
      })
      app.post('/envelope', { config: { idempotency: { errors: 'envelope' } } }, async () => ({}))
      app.post('/throw', { config: { idempotency: { errors: 'throw' } } }, async () => ({}))
      app.post('/own', {
        config: {
          idempotency: {
            errors: error => ({ own: error.title, status: error.statusCode }),
            key: request => String(request.headers['x-event'])
          }
        }
      }, async () => ({}))
    }
  })
  for (const path of ['/envelope', '/throw']) {
    await post(`"${path}"`, '{"a":1}', { path })
    const answer = await post(`"${path}"`, '{"a":2}', { path })
    t.same([answer.status, answer.json().title, answer.headers['content-language']], [
      422, 'Idempotency-Key is already used', undefined
    ], path)
  }
  const headers = { 'content-type': 'application/json', 'x-event': 'not a Structured Field' }
  t.equal(
    (await post(undefined, '{"a":1}', { path: '/own', headers })).status, 200, 'a key from elsewhere is taken as it is'
  )
  t.same((await post(undefined, '{"a":2}', { path: '/own', headers })).json(), {
    own: 'Idempotency-Key is already used', status: 422
  })
})

t.test('U2, K3, K4: the same String of two callers is two keys, whatever is in it', async t => {
  let runs = 0
  const { post, app } = await start(
    t, 'memory', { options: { profile: 'ietf' }, routes: app => app.post('/', async () => ++runs) }
  )
  const as = async (caller: string, value: string) => (await post(undefined, '{}', {
    headers: { 'content-type': 'application/json', 'idempotency-key': value, authorization: caller }
  })).text
  t.same([await as('a', '"k:*"'), await as('b', '"k:*"'), await as('a', '"k:*"')], ['1', '2', '1'])
  t.match(await app.idempotency.inspect({ scope: 'a', key: 'k:*' }), { state: 'completed', status: 200 })
})
