import { once } from 'node:events'
import * as http from 'node:http'
import multipart from '@fastify/multipart'
import type { FastifyInstance } from 'fastify'
import fc from 'fast-check'
import t from 'tap'
import { receive, start, stopRedis, STORES, type Answer } from './fixtures/app.ts'

t.teardown(stopRedis)

/** Takes any multipart body as it is. */
const raw = (app: FastifyInstance): void => {
  app.addContentTypeParser(/^multipart\//, { parseAs: 'buffer' }, (_request, body, done) => done(null, body))
  app.post('/', async request => ({ bytes: (request.body as Buffer).length }))
}

interface Part { head: string, content: string }
const write = (boundary: string, parts: Part[], preamble = '', epilogue = ''): string => {
  const written = parts.map(({ head, content }) => `--${boundary}\r\n${head}\r\n\r\n${content}\r\n`)
  return `${preamble}${written.join('')}--${boundary}--\r\n${epilogue}`
}
const typeOf = (boundary: string): string => `multipart/form-data; boundary=${boundary}`
const field = (content: string): Part => ({ head: 'content-disposition: form-data; name="a"', content })

/** Sends the pieces one by one, so that they arrive as chunks of their own. */
async function upload (port: number, key: string, type: string, pieces: Buffer[]): Promise<Answer> {
  const request = http.request(
    { port, host: '127.0.0.1', method: 'POST', headers: { 'content-type': type, 'idempotency-key': key } }
  )
  const answered = once(request, 'response') as Promise<[http.IncomingMessage]>
  for (const piece of pieces) await new Promise(resolve => { request.write(piece, resolve) })
  request.end()
  return await receive((await answered)[0])
}

function cut (bytes: Buffer, size: number): Buffer[] {
  return Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.subarray(i * size, (i + 1) * size))
}

for (const mode of STORES) {
  t.test(`G8: a form that fetch sends again, with a new boundary, is the same request (${mode})`, async t => {
    let runs = 0
    const { port } = await start(t, mode, {
      before: async app => { await app.register(multipart) },
      routes: app => app.post('/', async request => {
        runs++
        const file = await request.file()
        return { file: (await file?.toBuffer())?.toString(), text: (file?.fields.text as { value: string }).value }
      })
    })
    const send = async (file: string, text: string) => {
      const body = new FormData()
      body.append('text', text)
      body.append('file', new Blob([file]), 'a.bin')
      const answer = await fetch(
        `http://127.0.0.1:${port}/`, { method: 'POST', headers: { 'idempotency-key': 'form' }, body }
      )
      return {
        status: answer.status,
        replayed: answer.headers.get('idempotent-replayed'),
        body: await answer.json() as Record<string, unknown>
      }
    }
    const first = await send('file', 'text')
    t.same(first, { status: 200, replayed: null, body: { file: 'file', text: 'text' } })
    t.same(await send('file', 'text'), { ...first, replayed: 'true' })
    t.match(await send('another', 'text'), {
      status: 409, body: { code: 'idempotency_key_mismatch', message: /different request body/ }
    })
    t.match(await send('file', 'other'), { status: 409 })
    t.equal(runs, 1)
  })
}

t.test('G8: whatever boundaries and chunks: the same parts are the same request, others are not', async t => {
  const { port } = await start(t, 'memory', { routes: raw })
  const boundary = fc.string(
    { unit: fc.constantFrom(...'abAB01-_'), minLength: 1, maxLength: 6 }
  ).map(text => `x${text}x`)
  // Contents that are full of what looks like delimiters.
  const content = fc.array(
    fc.constantFrom('\r\n', '\r', '\n', '--', '-', 'x', 'text', '\r\n--', 'é'), { maxLength: 8 }
  ).map(texts => texts.join(''))
  let count = 0
  await fc.assert(fc.asyncProperty(fc.record({
    one: boundary,
    other: boundary,
    contents: fc.array(content, { maxLength: 4 }),
    size: fc.integer({ min: 1, max: 40 }),
    change: fc.nat(3),
    preamble: content
  }), async ({ one, other, contents, size, change, preamble }) => {
    const start = preamble === '' ? '' : `${preamble}\r\n`
    const body = (boundary: string, texts: string[]): Buffer => Buffer.from(write(boundary, texts.map(field), start))
    // The writer of a form chooses a boundary that is not in it.
    fc.pre([one, other].every(
      boundary => ![preamble, ...contents].some(text => `\r\n${text}\r\n`.includes(`\r\n--${boundary}`))
    ))
    const key = `k${count++}`
    await upload(port, key, typeOf(one), cut(body(one, contents), size))
    const same = await upload(port, key, typeOf(other), cut(body(other, contents), 41 - size))
    const changed = contents.length === 0
      ? ['more']
      : contents.map((text, i) => i === change % contents.length ? `${text}!` : text)
    const mismatch = await upload(port, key, typeOf(other), cut(body(other, changed), size))
    return same.replayed && mismatch.json().code === 'idempotency_key_mismatch'
  }), { numRuns: 100 })
})

t.test('G8: where the boundary is in doubt, it counts like any other byte', async t => {
  const { port } = await start(t, 'memory', { routes: raw })
  const parts = [field('1'), field('2')]
  const retried = async (make: (boundary: string) => string, type = typeOf): Promise<[
    same: boolean, other: boolean
  ]> => {
    const key = `k${Math.random()}`
    await upload(port, key, type('one'), [Buffer.from(make('one'))])
    const same = await upload(port, key, type('one'), [Buffer.from(make('one'))])
    const other = await upload(port, key, type('two'), [Buffer.from(make('two'))])
    return [same.replayed, other.replayed]
  }
  t.same(await retried(boundary => write(boundary, parts)), [true, true], 'in order')
  t.same(await retried(boundary => write(boundary, parts, '', 'epilogue')), [true, true], 'an epilogue')
  t.same(await retried(
    boundary => write(boundary, parts), boundary => `Multipart/Mixed; charset=utf-8; Boundary="${boundary}"`
  ), [true, true], 'quoted')
  t.same(await retried(boundary => write(boundary, parts).replace(/--\r\n$/, '')), [true, false], 'not closed')
  t.same(await retried(
    boundary => write(boundary, parts).replace(/\r\n$/, `\r\n--${boundary}--`)
  ), [true, false], 'closed twice')
  t.same(await retried(boundary => write(boundary, [
    ...parts, field(`line\r\n--${boundary}more`)
  ])), [true, false], 'a line that begins like a delimiter')
  t.same(await retried(boundary => write(boundary, parts).replace('\r\n', ' \t\r\n')), [true, true], 'padding')
  t.same(
    await retried(boundary => write(boundary, [...parts, field(boundary)])), [true, false], 'the boundary as content'
  )
  t.same(await retried(
    boundary => write(boundary, parts), boundary => `multipart/form-data; boundary=${boundary}; boundary=three`
  ), [true, false], 'two boundaries')
  t.same(await retried(
    boundary => write(boundary, parts), boundary => `multipart/form-data; boundary="${boundary}\\""`
  ), [true, false], 'an escape')
  t.same(await retried(boundary => write(boundary, parts), () => 'multipart/form-data'), [true, false], 'none')
  t.same(await retried(
    boundary => write(boundary, parts), boundary => `multipart/form-data; boundary=----=_Part:/${boundary}`
  ), [true, false], 'another one than the body has')
  t.same(
    await retried(boundary => write(
      `----=_Part:/${boundary}`, parts
    ), boundary => `multipart/form-data; boundary=----=_Part:/${boundary}`),
    [true, true], 'bare, though it should be quoted'
  )
})

t.test('G8: what says how bytes are read counts: kind of multipart, parameters, a boundary in doubt', async t => {
  const { port } = await start(t, 'memory', { routes: raw })
  const both = [field('1'), { head: 'content-disposition: form-data; name="b"', content: write('c', [field('2')]) }]
  let count = 0
  const compare = async (one: string, other: string, body = write('b', both), otherBody = body): Promise<unknown> => {
    const key = `k${count++}`
    t.equal((await upload(port, key, one, [Buffer.from(body)])).status, 200)
    t.equal((await upload(port, key, one, [Buffer.from(body)])).replayed, true)
    const answer = await upload(port, key, other, [Buffer.from(otherBody)])
    return answer.replayed || answer.json().code
  }
  // Read by one boundary and by the other, the same bytes are two forms.
  for (const type of [
    (b: string) => typeOf(b), (b: string) => `${typeOf(b)};`, (b: string) => `multipart/form-data; boundary =${b}`,
    (b: string) => `multipart/form-data; boundary*=utf-8''${b}`
  ]) {
    t.equal(await compare(type('b'), type('c')), 'idempotency_key_mismatch', type('b'))
  }
  t.equal(await compare(typeOf('b'), 'multipart/mixed; boundary=b'), 'idempotency_key_mismatch')
  t.equal(await compare(
    'multipart/related; start="<x>"; boundary=b', 'multipart/related; start="<y>"; boundary=b'
  ), 'idempotency_key_mismatch')
  t.equal(
    await compare(
      'multipart/related; start="<x>"; boundary=b', 'multipart/related; start="<x>"; boundary=d', write('b', both),
      write('d', both)
    ),
    true
  )
  // One piece and two have the same bytes without their delimiters.
  const two = write('b', [field('1'), field('2')])
  const one = write('b', [field(`1\r\n--b\r\n${field('2').head}\r\n\r\n2`)])
  t.equal(await compare(typeOf('b'), typeOf('b'), two, one), true, 'the same form, written in two ways')
  t.equal(await compare(
    typeOf('b'), typeOf('d'), write('b', [field('12'), field('3')]), write('d', [field('1'), field('23')])
  ), 'idempotency_key_mismatch')
})

t.test('G8: a route\'s own fingerprint sees the body as it came', async t => {
  const { port } = await start(t, 'memory', {
    options: { fingerprint: (_request, body) => body },
    routes: raw
  })
  const send = async (boundary: string) => await upload(
    port, 'k', typeOf(boundary), [Buffer.from(write(boundary, [field('1')]))]
  )
  await send('one')
  t.equal((await send('one')).replayed, true)
  t.equal((await send('two')).json().code, 'idempotency_key_mismatch')
})

t.test('G14: a file of 256 MiB is compared in constant memory', async t => {
  const SIZE = 256
  let bytes = 0
  let most = 0
  const { port } = await start(t, 'memory', {
    before: async app => { await app.register(multipart, { limits: { fileSize: Infinity } }) },
    routes: app => app.post('/', { bodyLimit: 2 ** 30 }, async request => {
      for await (const chunk of (await request.file())?.file ?? []) bytes += (chunk as Buffer).length
      return { bytes }
    })
  })
  const piece = Buffer.alloc(2 ** 20, 'x')
  const send = async (boundary: string, last: string): Promise<Answer> => {
    const [head, tail] = write(boundary, [
      { head: 'content-disposition: form-data; name="a"; filename="a"', content: `|${last}` }
    ]).split('|') as [string, string]
    const request = http.request({
      port, host: '127.0.0.1', method: 'POST', headers: { 'content-type': typeOf(boundary), 'idempotency-key': 'file' }
    })
    const answered = once(request, 'response') as Promise<[http.IncomingMessage]>
    request.write(head)
    for (let i = 0; i < SIZE; i++) {
      await new Promise(resolve => { request.write(piece, resolve) })
      most = Math.max(most, process.memoryUsage().arrayBuffers)
    }
    request.end(tail)
    return await receive((await answered)[0])
  }
  t.equal((await send('one', 'last')).status, 200)
  t.equal(bytes, SIZE * 2 ** 20 + 4)
  t.equal((await send('two', 'last')).replayed, true)
  t.equal((await send('two', 'LAST')).json().code, 'idempotency_key_mismatch')
  t.ok(most < SIZE * 2 ** 20 / 2, `never more than ${Math.round(most / 2 ** 20)} MiB of buffers`)
})
