import { readFileSync } from 'node:fs'
import { runInThisContext } from 'node:vm'
import type { FastifyReply, FastifyRequest } from 'fastify'
import t, { type Test } from 'tap'
import { parseOptions, type Config } from '../lib/config/config.ts'
import type { FastifyIdempotencyOptions } from '../lib/config/options.ts'
import { isReplayedByDefault } from '../lib/config/replay-headers.ts'
import { ROUTE_RULES, RULES } from '../lib/config/rules.ts'
import { renderError } from '../lib/protocol/errors.ts'
import { storeKey } from '../lib/protocol/fingerprint.ts'
import { IdempotencyError, MemoryStore, type IdempotencyErrorCode } from '../lib/index.ts'
import { gate, start, type Answer } from './fixtures/app.ts'
import { plain } from './fixtures/broken-stores.ts'
import { documentedOptions } from './fixtures/options-page.ts'

/** What docs/options.md and docs/errors.md state is what the code has, and what it answers. */

const documented = documentedOptions()
const section = (name: string): string => String(documented.find(option => option.name === name)?.text)
const untouched = parseOptions({})

t.test('docs/options.md has the options that the plugin accepts, and marks those of a route', async t => {
  t.same(documented.map(({ name }) => name).sort(), Object.keys(RULES).sort())
  t.same(documented.filter(({ perRoute }) => perRoute).map(({ name }) => name).sort(), Object.keys(ROUTE_RULES).sort())
})

/** That an option which is given is read at all: a value that is not its default. */
const OTHERS: Partial<Record<keyof FastifyIdempotencyOptions, unknown>> = {
  keyPrefix: 'p:',
  minReplicas: 1,
  storeTimeout: 999,
  closeTimeout: 999,
  global: false,
  methods: ['POST'],
  headerName: 'X-Key',
  replayedHeaderName: 'X-Replayed',
  maxKeyLength: 254,
  required: true,
  scope: false,
  hook: 'preHandler',
  ttl: 999,
  lease: 999,
  abandoned: 'reject',
  inFlight: { wait: 1 },
  retryAfter: '2s',
  maxResponseBytes: 1,
  onStoreError: 'bypass',
  errors: 'throw',
  profile: 'ietf'
}
const withOption = (name: string, value: unknown): Config => parseOptions({ [name]: value })
const given = documented.flatMap(({ name, fallback }) => 'value' in fallback ? [{ name, value: fallback.value }] : [])

t.test('a default on the page is the default of the code: given, it changes nothing', async t => {
  t.same(given.map(({ name }) => name).sort(), Object.keys(OTHERS).sort())
  for (const { name, value } of given) {
    const config = withOption(name, runInThisContext(value))
    // Said explicitly, it is a function of its own, which keeps a warning away: it answers the same.
    const { scope } = config.route
    if (name === 'scope') config.route.scope = untouched.route.scope
    t.strictSame(config, untouched, `${name}: ${value}`)
    for (const headers of [
      {}, { authorization: 'a' }, { 'x-api-key': 'b' }, { authorization: 'a', 'x-api-key': 'b' }
    ]) {
      const request = { headers } as unknown as FastifyRequest
      t.equal(scope(request), untouched.route.scope(request))
    }
    t.strictNotSame(withOption(name, OTHERS[name as keyof typeof OTHERS]), untouched, `${name}: another value`)
  }
})

/** Defaults that the page states in words. */
const WORDS: Record<string, (t: Test, words: string) => void> = {
  store: t => { t.equal(untouched.store, undefined) },
  redis: t => { t.equal(untouched.redis, undefined) },
  key: t => { t.notOk('key' in untouched.route) },
  fingerprint: t => { t.notOk('fingerprint' in untouched.route) },
  cacheable (t, words) {
    const [, classes, except] = /^every (.+) except (\d+)$/.exec(words) ?? []
    const hundreds = [...String(classes).matchAll(/(\d)xx/g)].map(([, digit]) => Number(digit))
    t.ok(hundreds.length > 0)
    for (let status = 200; status < 600; status++) {
      const kept = hundreds.includes(Math.trunc(status / 100)) && status !== Number(except)
      t.equal(untouched.route.cacheable(status), kept, String(status))
    }
  },
  replayHeaders (t) {
    const [, list] = /Not by default: ([^.]+)\./.exec(section('replayHeaders')) ?? []
    const names = [...String(list).matchAll(/`([a-z-]+)(\*?)`/g)]
    for (const [written, name, family] of names) {
      t.notOk(isReplayedByDefault(`${name}${family && 'x'}`), written)
      t.ok(isReplayedByDefault(`x${name}`), `x${name}`)
      if (!family) t.ok(isReplayedByDefault(`${name}x`), `${name}x`)
    }
    const source = readFileSync(new URL('../lib/config/replay-headers.ts', import.meta.url), 'utf8')
    const inCode = [...String(/const LIVE =.*?\n\n/s.exec(source)).matchAll(/'([a-z-]+)'/g)].map(([, name]) => name)
    t.same(names.map(([, name]) => name).sort(), inCode.sort())
  },
  docsUrl (t, words) {
    t.equal(untouched.docsUrl, undefined)
    const error = new IdempotencyError('idempotency_key_missing', '')
    const { payload } = renderError(error, { id: '1' } as FastifyRequest, 'envelope', untouched.docsUrl)
    const type = String(/`(urn:[^`]+)`/.exec(words)?.[1])
    t.equal((JSON.parse(payload) as { type: string }).type, type.replace('<code>', error.code))
  }
}

t.test('a default that the page states in words is true of the code', async t => {
  const told = documented.flatMap(({ name, fallback }) => 'words' in fallback ? [[name, fallback.words] as const] : [])
  t.same(told.map(([name]) => name).sort(), Object.keys(WORDS).sort())
  for (const [name, words] of told) WORDS[name]?.(t, words)
  t.equal(parseOptions({ profile: 'ietf' }).route.errors, 'problem')
  t.match(section('errors'), "`'problem'` (RFC 9457; the default with `profile: 'ietf'`)")
})

const errorsPage = readFileSync(new URL('../docs/errors.md', import.meta.url), 'utf8')

/** Each error as a client gets it. */
async function provoke (t: Test, profile: 'default' | 'ietf'): Promise<Record<IdempotencyErrorCode, Answer>> {
  let now = 0
  const store = new MemoryStore({ now: () => now })
  const options = { store, profile, docsUrl: 'https://docs.example.com/errors' }
  const fastify = { genReqId: () => 'req-1' }
  const running = gate()
  const begun = gate()
  const { post } = await start(t, 'memory', {
    options,
    fastify,
    routes: app => {
      const created = (_request: FastifyRequest, reply: FastifyReply): unknown => reply.code(201).send('created')
      app.post('/', created)
      app.post('/required', { config: { idempotency: { required: true } } }, created)
      app.post('/large', { config: { idempotency: { maxResponseBytes: 1 } } }, created)
      app.post('/reject', { config: { idempotency: { abandoned: 'reject' } } }, created)
      app.post('/slow', async () => {
        begun.open()
        await running.promise
      })
    }
  })
  const away = await start(t, 'memory', {
    options: { ...options, store: { ...plain(store), claim: () => { throw new Error('away') } } },
    fastify,
    routes: app => { app.post('/', async () => 'ok') }
  })
  const key = (name: string): string => profile === 'ietf' ? `"${name}"` : name
  await post(key('mismatch'), '{}')
  await post(key('large'), '{}', { path: '/large' })
  store.claim(
    storeKey('idempotency:', undefined, 'died'), { token: 'dead', lease: 100, ttl: 86_400_000, takeover: false }
  )
  now = 101
  const first = post(key('slow'), '{}', { path: '/slow' })
  await begun.promise
  const answers = {
    idempotency_key_invalid: await post(key('k'.repeat(300)), '{}'),
    idempotency_key_missing: await post(undefined, '{}', { path: '/required' }),
    idempotency_key_mismatch: await post(key('mismatch'), '{"a":1}'),
    idempotency_in_progress: await post(key('slow'), '{}', { path: '/slow' }),
    idempotency_outcome_unknown: await post(key('died'), '{}', { path: '/reject' }),
    idempotency_response_unavailable: await post(key('large'), '{}', { path: '/large' }),
    idempotency_store_unavailable: await away.post(key('away'), '{}')
  }
  running.open()
  await first
  return answers
}

t.test('docs/errors.md has the status and the message of each error, as a client gets them', async t => {
  const answers = Object.entries(await provoke(t, 'default'))
  const ietf = await provoke(t, 'ietf')
  t.same([...errorsPage.matchAll(/^## (\w+)$/gm)].map(([, code]) => code), answers.map(([code]) => code))
  for (const [code, { status, headers, json }] of answers) {
    const { message } = json()
    t.equal(json()['code'], code)
    const [, text] = errorsPage.split(`\n## ${code}\n\n`)
    const [, row] = /^\| \[\w+\]\(#\w+\) \| (.+?) \|/m.exec(errorsPage.slice(errorsPage.indexOf(`| [${code}]`))) ?? []
    const [, said] = /^- Message: "(.+)"$/m.exec(String(text)) ?? []
    t.equal(said, message, code)
    const other = ietf[code as IdempotencyErrorCode].status
    const inProfile = other === status ? '' : ` (${other} with \`profile: 'ietf'\`)`
    const after = headers['retry-after'] === undefined ? ['', ''] : [', `Retry-After`', ' with `Retry-After`']
    t.equal(row, `${status}${inProfile}${after[0]}`, code)
    t.ok(text?.startsWith(`**${status}**${inProfile}${after[1]}`), `${code}: ${text?.split('\n')[0]}`)
  }
})

t.test('docs/errors.md shows an answer as it is, and names the members of the other form', async t => {
  const [, sample] = /^```json\n(.+?)^```/ms.exec(errorsPage) ?? []
  const { idempotency_key_mismatch: answer } = await provoke(t, 'default')
  t.equal(answer.headers['content-type'], 'application/json; charset=utf-8')
  t.strictSame(JSON.parse(String(sample)), answer.json())
  const problem = (await provoke(t, 'ietf')).idempotency_key_mismatch
  const [, type, members] = /`errors: 'problem'` it is\s+`([^`]+)` with (.+?) \(RFC 9457\)/s.exec(errorsPage) ?? []
  t.equal(problem.headers['content-type'], type)
  t.same([...String(members).matchAll(/`(\w+)`/g)].map(([, name]) => name), Object.keys(problem.json()))
})
