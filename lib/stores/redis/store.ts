import { encodeBinding, decodeBinding } from '../binding.ts'
import {
  StoreAnswerError, type StoreBinding, type StoreClaim, type StoreClaimRequest, type StoreEntry, type StoreOutcome,
  type StoreRecording, type StoreStep, type IdempotencyStore
} from '../contract.ts'
import { decodeOutcome, recordOf, UnreadableRecordError } from '../record.ts'
import { checkNames } from '../../util/option-names.ts'
import { TurnCork, type Corkable } from './cork.ts'
import {
  CLAIM, END, FREED_MS, HEAD, READ, RECORD, RENEW, TOUCH, UNKNOWN_PART, UNKNOWN_VERSION, VERSION, type Script
} from './scripts.ts'

/** The part of a client that is used: ioredis 5 and 6 (`Redis` or `Cluster`) and iovalkey fit. */
export interface RedisStoreClient {
  callBuffer (command: string, ...args: Argument[]): Promise<unknown>
  /** The socket, where the client has just one: the commands of one turn of the event loop are sent in one write. */
  stream?: unknown
  /** For `minReplicas`, and where the client has `enableAutoPipelining`. */
  pipeline? (commands: Array<[name: string, ...args: Argument[]]>): {
    exec (): Promise<Array<[error: Error | null, result: unknown]> | null>
  }
  options?: { enableAutoPipelining?: boolean | undefined }
}

type Argument = string | number | Buffer
type Call = RedisStoreClient['callBuffer']

export interface RedisStoreOptions {
  /** Replicas that must have a write before it counts, by Redis' WAIT. Default 0: replication is not waited for. */
  minReplicas?: number
  /** Milliseconds that the replicas are given for it. Default 500. */
  replicaTimeout?: number
}

const LETTER = { a: 97, h: 104, t: 116, x: 120 }

/**
 * Keeps everything in Redis (6.2 or later) or Valkey: one key per idempotency key, one
 * round trip per step. The client stays the caller's: it is never closed here. Tokens have
 * 36 characters, as UUIDs have.
 */
export class RedisStore implements IdempotencyStore {
  readonly #client: RedisStoreClient
  readonly #call: Call
  readonly #minReplicas: number
  readonly #replicaTimeout: number
  readonly #cork = new TurnCork()

  /** @throws {TypeError} when `client` is not an ioredis-compatible client, or an option is unknown or wrong. */
  constructor (client: RedisStoreClient, options: RedisStoreOptions = {}) {
    if (typeof (client as Partial<RedisStoreClient> | null)?.callBuffer !== 'function') {
      throw wrongClient('option "redis"', client)
    }
    checkNames(options, ['minReplicas', 'replicaTimeout'], 'fastify-idempotency: the options of RedisStore')
    const { minReplicas = 0, replicaTimeout = 500 } = options
    if (
      !Number.isSafeInteger(minReplicas) || minReplicas < 0 || !Number.isSafeInteger(replicaTimeout) ||
        replicaTimeout < 1
    ) {
      throw new TypeError('RedisStore: options "minReplicas" and "replicaTimeout" must be whole numbers, of ' +
        'replicas and of milliseconds')
    }
    if (minReplicas > 0 && client.pipeline === undefined) {
      throw new TypeError('RedisStore: option "minReplicas" needs a client with the method "pipeline", such as ' +
        'ioredis')
    }
    this.#client = client
    this.#call = callOf(client)
    this.#minReplicas = minReplicas
    this.#replicaTimeout = replicaTimeout
  }

  claim (key: string, { token, lease, ttl, takeover }: StoreClaimRequest): Promise<StoreClaim> {
    const args = takeover ? [token, lease + ttl, ttl] : [token, lease + ttl, ttl, 0]
    return this.#run(CLAIM, key, args, reply => {
      const found = claimOf(reply)
      return this.#minReplicas === 0 || found.outcome !== 'acquired'
        ? found
        : this.#replicated(key, token, 'h').then(() => found)
    })
  }

  renew (key: string, token: string, lease: number, ttl: number, fingerprint: string, bind = false): Promise<boolean> {
    return this.#run(
      RENEW, key, [token, lease + ttl, ttl, fingerprint, bind ? 1 : 0], reply => this.#accepted(reply, key, token, 'h')
    )
  }

  complete (key: string, token: string, outcome: StoreOutcome, ttl: number): Promise<boolean> {
    return this.#run(END, key, [token, ttl, recordOf(outcome)], reply => this.#accepted(reply, key, token, 'c'))
  }

  release (key: string, token: string, ttl: number, executed: boolean, binding?: StoreBinding): Promise<boolean> {
    const bound = binding === undefined ? '' : encodeBinding(binding)
    return this.#run(END, key, [token, ttl, '', executed ? 1 : 0, bound], reply => accepted(reply))
  }

  record (
    key: string, token: string, fingerprint: string, name: string, result: string | undefined
  ): Promise<StoreRecording> {
    const args = [token, fingerprint, name, result === undefined ? 's' : 'r', result ?? '']
    if (this.#minReplicas === 0) return this.#run(RECORD, key, args, recordingOf)
    return this.#written(RECORD, key, args).then(recordingOf, error => { throw explain(error) })
  }

  async recorded (key: string): Promise<StoreStep[]> {
    const found = await this.#run(READ, key, [], reply => reply as [Buffer] | null)
    if (found === null || found[0].toString('latin1', 1, 2) === 'c') return []
    return [...decodeBinding(found[0], HEAD)?.steps ?? []]
  }

  async read (key: string): Promise<StoreEntry | undefined> {
    const found = await this.#run(READ, key, [], reply => reply as [Buffer, Buffer, Buffer] | null)
    if (found === null) return undefined
    const [record, time, left] = found
    const now = Number(String(time))
    const until = now + Number(String(left))
    const attempt = record.readUInt32BE(2)
    const ttl = record.readDoubleBE(14)
    const since = record.readDoubleBE(6) || until - ttl
    switch (record.toString('latin1', 1, 2)) {
      case 'c': return { state: 'completed', attempt, since, until, result: decodeOutcome(record, HEAD) }
      case 'f': return { state: 'freed', attempt, since, until, result: undefined }
    }
    const early = Math.round((since - until + ttl) / FREED_MS)
    if (early === 1 || early === 2) {
      return {
        state: 'freed', attempt: attempt + 1 - early, since, until, result: undefined
      }
    }
    return { state: 'held', attempt, since, until: until - ttl, result: undefined }
  }

  async remove (key: string): Promise<boolean> {
    return accepted(await this.#call('DEL', key))
  }

  /** EVALSHA, and EVAL where the server does not know the script (first use, SCRIPT FLUSH, failover). */
  #run<T> (
    { sha, source }: Script, key: string, args: Argument[], read: (reply: unknown) => T | Promise<T>
  ): Promise<T> {
    this.#cork.cork(streamOf(this.#client))
    return this.#call('EVALSHA', sha, 1, key, ...args).then(read, (error: unknown) => {
      if (!String(error).includes('NOSCRIPT')) throw explain(error)
      return this.#call('EVAL', source, 1, key, ...args).then(read, error => { throw explain(error) })
    })
  }

  #accepted (reply: unknown, key: string, token: string, state: 'h' | 'c'): boolean | Promise<boolean> {
    if (!accepted(reply)) return false
    if (this.#minReplicas === 0) return true
    return this.#replicated(key, token, state).then(() => true)
  }

  /**
   * Settles once `minReplicas` have the record as it was just written. The touch and WAIT go in
   * one pipeline: after a reconnect between them, WAIT would vouch for another connection's
   * writes. The touch is a write, and finds out whether the record is still there.
   */
  async #replicated (key: string, token: string, state: 'h' | 'c'): Promise<void> {
    if (Number(await this.#written(TOUCH, key, [token, state])) !== 1) throw this.#unreplicated(0)
  }

  /** What a script that writes has answered, once `minReplicas` have it. */
  async #written ({ source }: Script, key: string, args: Argument[]): Promise<unknown> {
    const { pipeline } = this.#client as Required<RedisStoreClient>
    const results = await pipeline.call(this.#client, [
      ['callBuffer', 'EVAL', source, 1, key, ...args],
      ['callBuffer', 'WAIT', this.#minReplicas, this.#replicaTimeout]
    ]).exec()
    const [[error, answer], [waitError, acknowledged]] = results as [[Error | null, unknown], [Error | null, unknown]]
    if (error === null && Number(acknowledged) >= this.#minReplicas) return answer
    throw this.#unreplicated(acknowledged, error ?? waitError)
  }

  #unreplicated (acknowledged: unknown, cause?: unknown): Error {
    return new Error(
      `${String(acknowledged ?? 0)} of ${this.#minReplicas} replicas have the write after ${this.#replicaTimeout} ms`,
      { cause }
    )
  }
}

/** What is needed instead of `client`, by name where it can be told. */
export function wrongClient (what: string, client: unknown): TypeError {
  const isNodeRedis = typeof (client as { sendCommand?: unknown } | null)?.sendCommand === 'function'
  const hint = '. It looks like a client of node-redis (the package "redis"): ' +
    'give an object whose "callBuffer" calls its "sendCommand", as the README shows under "Stores"'
  return new TypeError(`fastify-idempotency: ${what} must be an ioredis client or one compatible with it ` +
    `(iovalkey, an ioredis Cluster): it has no method "callBuffer"${isNodeRedis ? hint : ''}`)
}

function claimOf (reply: unknown): StoreClaim {
  if (!Buffer.isBuffer(reply) || reply.length < 5) throw new StoreAnswerError('a claim')
  if (reply[0] === VERSION) {
    return {
      outcome: 'completed', attempt: reply.readUInt32BE(2), result: decodeOutcome(reply, HEAD)
    }
  }
  const attempt = reply.readUInt32BE(1)
  const fingerprint = reply.toString('latin1', 5)
  switch (reply[0]) {
    case LETTER.a: return acquired(attempt, false, fingerprint)
    case LETTER.t: return acquired(attempt, true, fingerprint)
    case LETTER.h: return { outcome: 'held', attempt, fingerprint }
    case LETTER.x: return { outcome: 'abandoned', attempt, fingerprint }
    default: throw new StoreAnswerError('a claim')
  }
}

function acquired (attempt: number, takeover: boolean, fingerprint: string): StoreClaim {
  return fingerprint === ''
    ? { outcome: 'acquired', attempt, takeover }
    : {
        outcome: 'acquired', attempt, takeover, fingerprint
      }
}

function recordingOf (reply: unknown): StoreRecording {
  if (!Buffer.isBuffer(reply)) throw new StoreAnswerError('a step to be recorded')
  switch (reply.toString('latin1', 0, 1)) {
    case 'w': return { outcome: 'recorded' }
    case 's': return { outcome: 'known', result: undefined }
    case 'r': return { outcome: 'known', result: reply.toString('utf8', 1) }
    case 'l': return { outcome: 'lost' }
    default: throw new StoreAnswerError('a step to be recorded')
  }
}

/** 1 or 0; a client may give numbers as text (`stringNumbers` of ioredis). */
function accepted (reply: unknown): boolean {
  switch (String(reply)) {
    case '1': return true
    case '0': return false
    default: throw new StoreAnswerError('a step')
  }
}

/** ioredis loses the name of such a command where it makes pipelines by itself; in a pipeline of ours it does not. */
function callOf (client: RedisStoreClient): Call {
  const { options, pipeline } = client
  if (options?.enableAutoPipelining !== true || pipeline === undefined) {
    return (...command) => client.callBuffer(...command)
  }
  return async (...command) => {
    const answers = await pipeline.call(client, [['callBuffer', ...command]]).exec()
    const [[error, result]] = answers as [[Error | null, unknown]]
    if (error !== null) throw error
    return result
  }
}

/** A Cluster has no socket of its own: each command goes its client's usual way. */
function streamOf ({ stream }: RedisStoreClient): Corkable | undefined {
  return typeof (stream as Partial<Corkable> | null | undefined)?.cork === 'function' ? stream as Corkable : undefined
}

function explain (error: unknown): unknown {
  const part = new RegExp(`${UNKNOWN_PART} (\\w+)`).exec(String(error))?.[1]
  if (part !== undefined) {
    return new UnreadableRecordError(`The record in Redis has a ${part} that this release does not know. Remove the ` +
      'key, or let it expire, before mixing releases.', { cause: error })
  }
  const version = new RegExp(`${UNKNOWN_VERSION} (\\d+)`).exec(String(error))?.[1]
  if (version === undefined) return error
  return new UnreadableRecordError(`The record in Redis has the unknown version ${version}; this release reads ` +
    `version ${VERSION}. Remove the key, or let it expire, before mixing releases.`, { cause: error })
}
