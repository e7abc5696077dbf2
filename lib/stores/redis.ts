import { createHash } from 'node:crypto'
import type { Claim, ClaimRequest, Entry, Outcome, Store } from '../store.ts'
import { TurnCork, type Corkable } from './cork.ts'
import { decodeOutcome, recordOf } from './record.ts'

/** The part of a client that is used: ioredis 5 and 6 (`Redis` or `Cluster`) and iovalkey fit. */
export interface RedisClient {
  callBuffer (command: string, ...args: Argument[]): Promise<unknown>
  /** The socket, where the client has just one: the commands of one turn of the event loop are sent in one write. */
  stream?: unknown
  /** For `minReplicas`, and where the client has `enableAutoPipelining`. */
  pipeline? (commands: Array<[name: string, ...args: Argument[]]>): { exec (): Promise<Array<[error: Error | null, result: unknown]> | null> }
  options?: { enableAutoPipelining?: boolean | undefined }
}

type Argument = string | number | Buffer
type Call = RedisClient['callBuffer']

export interface RedisStoreOptions {
  /** Replicas that must have a write before it counts, by Redis' WAIT. Default 0: replication is not waited for. */
  minReplicas?: number
  /** Milliseconds that the replicas are given for it. Default 500. */
  replicaTimeout?: number
}

/**
 * A record in Redis is one string:
 *
 *     version u8 | state u8 | lease end f64 | attempt u32 | since f64 | token (36) | payload
 *
 * `payload` is the fingerprint while held, the encoded outcome once completed. Times are
 * Redis' own clock in ms, so that clocks of the instances do not matter.
 */
const HEAD = 58
const VERSION = 1
const LETTER = { h: 104, x: 120, t: 116 }
const UNKNOWN_VERSION = 'IDEMPOTENCY_VERSION'

const PRELUDE = `
local function now ()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function put (key, state, lease, attempt, since, token, payload, px)
  redis.call('SET', key, struct.pack('>BBdI4d', ${VERSION}, string.byte(state), lease, attempt, since) .. token .. payload, 'PX', px)
end
local record = redis.call('GET', KEYS[1])
local version, state, lease, attempt, since, token
if record then
  version = string.byte(record, 1)
  if version ~= ${VERSION} then return redis.error_reply('${UNKNOWN_VERSION} ' .. version) end
  state = string.sub(record, 2, 2)
  lease, attempt, since = struct.unpack('>dI4d', string.sub(record, 3, 22))
  token = string.sub(record, 23, ${HEAD})
end
`

interface Script { source: string, sha: string }

const script = (body: string): Script => {
  const source = PRELUDE + body
  return { source, sha: createHash('sha1').update(source).digest('hex') }
}

// ARGV: token, lease, ttl, takeover. Answers one string: a completed key's record as it is, which
// begins with its version; else a letter, the attempt u32, and the fingerprint of who holds it.
const CLAIM = script(`
if state == 'c' then return record end
local function answer (letter, attempt, rest) return letter .. struct.pack('>I4', attempt) .. rest end
local at = now()
local count, letter = 1, 'a'
if record then
  local payload = string.sub(record, ${HEAD + 1})
  if state == 'h' then
    if token == ARGV[1] then
      put(KEYS[1], 'h', at + ARGV[2], attempt, since, token, payload, ARGV[2] + ARGV[3])
      return answer('a', attempt, '')
    end
    if lease > at then return answer('h', attempt, payload) end
    if ARGV[4] == '0' then return answer('x', attempt, payload) end
    letter = 't'
  end
  count = attempt + 1
end
put(KEYS[1], 'h', at + ARGV[2], count, at, ARGV[1], '', ARGV[2] + ARGV[3])
return answer(letter, count, '')
`)

// ARGV: token, lease, ttl, fingerprint
const RENEW = script(`
if not record or state ~= 'h' or token ~= ARGV[1] then return 0 end
local payload = ARGV[4] ~= '' and ARGV[4] or string.sub(record, ${HEAD + 1})
put(KEYS[1], 'h', now() + ARGV[2], attempt, since, token, payload, ARGV[2] + ARGV[3])
return 1
`)

// ARGV: token, ttl, payload of a completed key, else '', whether it was executed
const END = script(`
if not record or token ~= ARGV[1] then return 0 end
local ended = ARGV[3] == '' and 'f' or 'c'
if state == 'f' and ended == 'f' then return 1 end
if ARGV[4] == '0' then attempt = attempt - 1 end
put(KEYS[1], ended, 0, attempt, now(), token, ARGV[3], ARGV[2])
return 1
`)

// ARGV: token, state
const TOUCH = script(`
if not record or token ~= ARGV[1] or state ~= ARGV[2] then return 0 end
redis.call('PEXPIRE', KEYS[1], redis.call('PTTL', KEYS[1]))
return 1
`)

const READ = script(`
if not record then return false end
local left = redis.call('PTTL', KEYS[1])
return {string.sub(record, 1, ${HEAD}), string.sub(record, ${HEAD + 1}), string.format('%.0f', now() + left)}
`)

/**
 * Keeps everything in Redis (6.2 or later) or Valkey: one key per idempotency key, one
 * round trip per step. The client stays the caller's: it is never closed here. Tokens have
 * 36 characters, as UUIDs have.
 */
export class RedisStore implements Store {
  readonly #client: RedisClient
  readonly #call: Call
  readonly #minReplicas: number
  readonly #replicaTimeout: number
  readonly #cork = new TurnCork()

  /** @throws {TypeError} when `client` is not an ioredis-compatible client, or an option is not a whole number. */
  constructor (client: RedisClient, { minReplicas = 0, replicaTimeout = 500 }: RedisStoreOptions = {}) {
    if (typeof (client as Partial<RedisClient> | null)?.callBuffer !== 'function') throw wrongClient('option "redis"', client)
    if (!Number.isSafeInteger(minReplicas) || minReplicas < 0 || !Number.isSafeInteger(replicaTimeout) || replicaTimeout < 1) {
      throw new TypeError('RedisStore: options "minReplicas" and "replicaTimeout" must be whole numbers, of replicas and of milliseconds')
    }
    if (minReplicas > 0 && client.pipeline === undefined) {
      throw new TypeError('RedisStore: option "minReplicas" needs a client with the method "pipeline", such as ioredis')
    }
    this.#client = client
    this.#call = callOf(client)
    this.#minReplicas = minReplicas
    this.#replicaTimeout = replicaTimeout
  }

  claim (key: string, { token, lease, ttl, takeover }: ClaimRequest): Promise<Claim> {
    return this.#run(CLAIM, key, [token, lease, ttl, takeover ? 1 : 0], reply => {
      const found = claimOf(reply as Buffer)
      return this.#minReplicas === 0 || found.outcome !== 'acquired' ? found : this.#replicated(key, token, 'h').then(() => found)
    })
  }

  renew (key: string, token: string, lease: number, ttl: number, fingerprint: string): Promise<boolean> {
    return this.#run(RENEW, key, [token, lease, ttl, fingerprint], reply => this.#accepted(reply, key, token, 'h'))
  }

  complete (key: string, token: string, outcome: Outcome, ttl: number): Promise<boolean> {
    return this.#run(END, key, [token, ttl, recordOf(outcome), 1], reply => this.#accepted(reply, key, token, 'c'))
  }

  release (key: string, token: string, ttl: number, executed: boolean): Promise<boolean> {
    return this.#run(END, key, [token, ttl, '', executed ? 1 : 0], reply => reply === 1)
  }

  async read (key: string): Promise<Entry | undefined> {
    const found = await this.#run(READ, key, [], reply => reply as [Buffer, Buffer, Buffer] | null)
    if (found === null) return undefined
    const [head, payload, until] = found
    const state = ({ h: 'held', f: 'freed', c: 'completed' } as const)[String.fromCharCode(head.readUInt8(1)) as 'h' | 'f' | 'c']
    return {
      state,
      attempt: head.readUInt32BE(10),
      since: head.readDoubleBE(14),
      until: state === 'held' ? head.readDoubleBE(2) : Number(String(until)),
      result: state === 'completed' ? decodeOutcome(payload) : undefined
    }
  }

  async remove (key: string): Promise<boolean> {
    return await this.#call('DEL', key) === 1
  }

  /** EVALSHA, and EVAL where the server does not know the script (first use, SCRIPT FLUSH, failover). */
  #run<T> ({ sha, source }: Script, key: string, args: Argument[], read: (reply: unknown) => T | Promise<T>): Promise<T> {
    this.#cork.cork(streamOf(this.#client))
    return this.#call('EVALSHA', sha, 1, key, ...args).then(read, (error: unknown) => {
      if (!String(error).includes('NOSCRIPT')) throw explain(error)
      return this.#call('EVAL', source, 1, key, ...args).then(read, error => { throw explain(error) })
    })
  }

  #accepted (reply: unknown, key: string, token: string, state: 'h' | 'c'): boolean | Promise<boolean> {
    if (reply !== 1 || this.#minReplicas === 0) return reply === 1
    return this.#replicated(key, token, state).then(() => true)
  }

  /**
   * Settles once `minReplicas` have the record as it was just written. The touch and WAIT go in
   * one pipeline: after a reconnect between them, WAIT would vouch for another connection's
   * writes. The touch is a write, and finds out whether the record is still there.
   */
  async #replicated (key: string, token: string, state: 'h' | 'c'): Promise<void> {
    const { pipeline } = this.#client as Required<RedisClient>
    const results = await pipeline.call(this.#client, [
      ['callBuffer', 'EVAL', TOUCH.source, 1, key, token, state],
      ['callBuffer', 'WAIT', this.#minReplicas, this.#replicaTimeout]
    ]).exec()
    const [[error, touched], [waitError, acknowledged]] = results as [[Error | null, unknown], [Error | null, unknown]]
    if (touched === 1 && Number(acknowledged) >= this.#minReplicas) return
    throw new Error(`${String(acknowledged ?? 0)} of ${this.#minReplicas} replicas have the write after ${this.#replicaTimeout} ms`, { cause: error ?? waitError })
  }
}

/** What is needed instead of `client`, by name where it can be told. */
export function wrongClient (what: string, client: unknown): TypeError {
  const isNodeRedis = typeof (client as { sendCommand?: unknown } | null)?.sendCommand === 'function'
  return new TypeError(`fastify-idempotency: ${what} must be an ioredis client or one compatible with it (iovalkey, an ioredis Cluster): it has no method "callBuffer"` +
    (isNodeRedis ? '. It looks like a client of node-redis (the package "redis"): give an object whose "callBuffer" calls its "sendCommand", as the README shows under "Stores"' : ''))
}

function claimOf (reply: Buffer): Claim {
  if (reply[0] === VERSION) return { outcome: 'completed', attempt: reply.readUInt32BE(10), result: decodeOutcome(reply, HEAD) }
  const attempt = reply.readUInt32BE(1)
  switch (reply[0]) {
    case LETTER.h: return { outcome: 'held', attempt, fingerprint: reply.toString('latin1', 5) }
    case LETTER.x: return { outcome: 'abandoned', attempt, fingerprint: reply.toString('latin1', 5) }
    default: return { outcome: 'acquired', attempt, takeover: reply[0] === LETTER.t }
  }
}

/** ioredis loses the name of such a command where it makes pipelines by itself; in a pipeline of ours it does not. */
function callOf (client: RedisClient): Call {
  const { options, pipeline } = client
  if (options?.enableAutoPipelining !== true || pipeline === undefined) return (...command) => client.callBuffer(...command)
  return async (...command) => {
    const [[error, result]] = await pipeline.call(client, [['callBuffer', ...command]]).exec() as [[Error | null, unknown]]
    if (error !== null) throw error
    return result
  }
}

/** A Cluster has no socket of its own: each command goes its client's usual way. */
function streamOf ({ stream }: RedisClient): Corkable | undefined {
  return typeof (stream as Partial<Corkable> | null | undefined)?.cork === 'function' ? stream as Corkable : undefined
}

function explain (error: unknown): unknown {
  const version = new RegExp(`${UNKNOWN_VERSION} (\\d+)`).exec(String(error))?.[1]
  if (version === undefined) return error
  return new Error(`The record in Redis has the unknown version ${version}; this release reads version ${VERSION}. Remove the key, or let it expire, before mixing releases.`, { cause: error })
}
