/** Each release reads what the one before it wrote: the bytes of version 1, as they were recorded. */
import t from 'tap'
import { RedisStore, UnreadableRecordError, type StoreEntry } from '../lib/index.ts'
import { redisClient, stopRedis, start } from './fixtures/app.ts'

t.teardown(stopRedis)

const TTL = 3_600_000
const LEASE = 60_000
const TOKEN = '0f8fad5b-d9cb-469f-a165-70867728950e'
const SINCE = 1_800_000_000_000

/** What stands after the version and the state: attempt 1, since, ttl, token. */
const HEAD = `\x00\x00\x00\x01Bz1\x85\xc5\x00\x00\x00AKw@\x00\x00\x00\x00${TOKEN}`
/** The same for a key that is free or completed: `since` follows from its expiry. */
const HEAD_AT_END = `\x00\x00\x00\x01${'\x00'.repeat(8)}\x41\x4b\x77\x40\x00\x00\x00\x00${TOKEN}`
const FINGERPRINT = 'digest.POST.1'
const CHARGE = 'r\x00\x00\x00\x06charge\x00\x00\x00\x0d{"id":"ch_1"}'
const HEADERS = '12:content-type25:text/plain; charset=utf-84:link4:</a>4:link4:</b>6:x-name4=6Q=='

/** Never to be changed: a new form gets records of its own beside these. */
const RECORDS = {
  held: `\x01h${HEAD}\x00\x00`,
  'held, fingerprint': `\x01h${HEAD}\x00\x0d${FINGERPRINT}`,
  'held, bound': `\x01h${HEAD}\x00\x0d${FINGERPRINT}${CHARGE}s\x00\x00\x00\x04mail\x00\x00\x00\x00`,
  freed: `\x01f${HEAD}\x00\x00`,
  'freed, bound': `\x01f${HEAD}\x00\x0d${FINGERPRINT}${CHARGE}`,
  'completed, text': `\x01c${HEAD}132010000${(16 + HEADERS.length).toString(16)}13:${FINGERPRINT}${HEADERS}caf\xc3\xa9`,
  'completed, bytes': `\x01c${HEAD}1120100001013:${FINGERPRINT}\x00\xff\n`,
  'completed, not replayable': `\x01c${HEAD}1020400001013:${FINGERPRINT}`,
  'freed, without since': `\x01f${HEAD_AT_END}\x00\x00`,
  'completed, without since': `\x01c${HEAD_AT_END}1020400001013:${FINGERPRINT}`
} as const

type Name = keyof typeof RECORDS
type Client = Awaited<ReturnType<typeof redisClient>>

async function put (client: Client, key: string, record: string): Promise<RedisStore> {
  const held = record[1] === 'h'
  await client.set(key, Buffer.from(record, 'latin1'), 'PX', held ? TTL + LEASE : TTL)
  return new RedisStore(client)
}

const OTHER = { token: 'x'.repeat(36), lease: LEASE, ttl: TTL, takeover: true }
const headers = [['content-type', 'text/plain; charset=utf-8'], ['link', ['</a>', '</b>']], ['x-name', '\u00e9']]
const result = (more: object): object => (
  { fingerprint: FINGERPRINT, status: 201, replayable: true, headers: [], ...more }
)
const CLAIMS: Record<Name, object> = {
  held: { outcome: 'held', attempt: 1, fingerprint: '' },
  'held, fingerprint': { outcome: 'held', attempt: 1, fingerprint: FINGERPRINT },
  'held, bound': { outcome: 'held', attempt: 1, fingerprint: FINGERPRINT },
  freed: { outcome: 'acquired', attempt: 2, takeover: false },
  'freed, bound': { outcome: 'acquired', attempt: 2, takeover: false, fingerprint: FINGERPRINT },
  'completed, text': { outcome: 'completed', attempt: 1, result: result({ headers, body: 'caf\u00e9', text: true }) },
  'completed, bytes': {
    outcome: 'completed', attempt: 1, result: result({ body: Buffer.from([0, 255, 10]), text: false })
  },
  'completed, not replayable': {
    outcome: 'completed', attempt: 1, result: result({ status: 204, replayable: false, text: false })
  },
  'freed, without since': { outcome: 'acquired', attempt: 2, takeover: false },
  'completed, without since': {
    outcome: 'completed', attempt: 1, result: result({ status: 204, replayable: false, text: false })
  }
}
const STEPS: Partial<Record<Name, object[]>> = {
  'held, bound': [{ name: 'charge', result: '{"id":"ch_1"}' }, { name: 'mail', result: undefined }],
  'freed, bound': [{ name: 'charge', result: '{"id":"ch_1"}' }]
}

for (const [name, record] of Object.entries(RECORDS) as Array<[Name, string]>) {
  t.test(`a record of version 1 is read as it was written: ${name}`, async t => {
    const client = await redisClient()
    const from = Date.now()
    const store = await put(client, name, record)
    const entry = await store.read(name) as StoreEntry
    t.match(entry, { state: name.split(',')[0], attempt: 1 })
    if (name.endsWith('without since')) t.ok(Math.abs(entry.since - from) < LEASE)
    else t.equal(entry.since, SINCE)
    t.same(await store.recorded(name), STEPS[name] ?? [])
    t.match(await store.claim(name, OTHER), CLAIMS[name])
  })
}

t.test('G5: the holder of a record of version 1 renews, completes and releases it', async t => {
  const client = await redisClient()
  for (const name of ['held', 'held, fingerprint', 'held, bound'] as const) {
    const store = await put(client, name, RECORDS[name])
    t.equal(await store.renew(name, TOKEN, LEASE, TTL, FINGERPRINT), true)
    t.equal(await store.release(name, TOKEN, TTL, true), true)
    t.match(await store.claim(name, OTHER), { outcome: 'acquired', attempt: 2 })
    t.same(await store.recorded(name), STEPS[name] ?? [], 'what is recorded stays')
    await put(client, name, RECORDS[name])
    t.equal(await store.complete(name, TOKEN, result({ body: 'done', text: true }) as never, TTL), true)
    t.match(await store.claim(name, OTHER), { outcome: 'completed', result: { body: 'done' } })
  }
})

const LATER: Array<[what: string, record: string]> = [
  ['version', `\x02h${HEAD}\x00\x00`],
  ['state', `\x01z${HEAD}\x00\x00`],
  ['section of a freed key', `${RECORDS['freed, bound']}z\x00\x00\x00\x00\x00\x00\x00\x00`],
  ['version of an outcome', RECORDS['completed, bytes'].replace('11201', '21201')],
  ['flag of an outcome, which is kept for sealing', RECORDS['completed, bytes'].replace('11201', '15201')],
  ['length of the fields', RECORDS['completed, bytes'].replace('000010', '0000ff')]
]

for (const [what, record] of LATER) {
  t.test(`a record with a ${what} that this release does not know is refused, and nothing runs`, async t => {
    let runs = 0
    let id = ''
    const client = await redisClient()
    const { app, post } = await start(t, 'redis', {
      options: { redis: client, keyPrefix: 'records:', onStoreError: 'bypass' },
      routes: app => app.post('/', async (request, reply) => {
        runs++
        id = String(request.idempotency.id)
        return await reply.send('ran')
      })
    })
    await post('k', '{}')
    t.equal(runs, 1)
    const key = `records:${id}`
    const store = await put(client, key, record)
    await t.rejects(store.claim(key, OTHER), UnreadableRecordError)
    const answer = await post('k', '{}')
    t.match([answer.status, answer.json().code], [503, 'idempotency_store_unavailable'])
    t.equal(runs, 1)
    t.equal(await app.idempotency.store.remove(key), true)
  })
}
