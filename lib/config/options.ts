import type { FastifyRequest } from 'fastify'
import type { IdempotencyErrorCode, IdempotencyErrorForm } from '../protocol/errors.ts'
import type { PROFILES } from '../protocol/profile.ts'
import type { IdempotencyStore } from '../stores/contract.ts'
import type { RedisStoreClient } from '../stores/redis/store.ts'

export const STAGES = ['onRequest', 'preParsing', 'preValidation', 'preHandler'] as const
/** The stage at whose end the key is taken. */
export type IdempotencyStage = typeof STAGES[number]

type MaybePromise<T> = T | Promise<T>
/** Whole milliseconds, or text with a unit: `'500ms'`, `'30s'`, `'15m'`, `'24h'`, `'7d'`. */
type Duration = number | string
/** Whose key it is; `undefined` is the anonymous scope. */
export type ScopeFunction = (request: FastifyRequest) => MaybePromise<string | undefined>

/** What a route may set for itself in `config.idempotency`; everything else is the instance's. */
export interface IdempotencyRouteOptions {
  /** Where the key comes from. Default: the header `headerName`. */
  key?: ((request: FastifyRequest) => MaybePromise<string | undefined>) | undefined
  /** Characters that a key may have. Default 255. */
  maxKeyLength?: number | undefined
  /** Refuse requests without a key (`400 idempotency_key_missing`). Default false. */
  required?: boolean | undefined
  /**
   * Whose key it is; stored hashed only. `false`: one scope for all callers. Default: `'credentials'`, those in
   * `Authorization` and `x-api-key`, else one anonymous scope. Said explicitly, it keeps the warning about cookies
   * away.
   */
  scope?: ScopeFunction | 'credentials' | false | undefined
  /**
   * What makes two requests the same, in the place of query and body: method, path and the route's constraints always
   * count. Called before the handler. Default: the raw body bytes; of a multipart body its parts, whatever the
   * boundary.
   */
  fingerprint?: ((request: FastifyRequest, body: Buffer) => string | Buffer) | undefined
  /** The stage at whose end the key is taken. Default `'onRequest'`. */
  hook?: IdempotencyStage | undefined
  /** How long a kept response lives, in ms or as text with a unit. Default `'24h'`. */
  ttl?: Duration | undefined
  /**
   * After which a holder that has gone silent loses the key: at least 100 ms, or text with a unit. Default `'30s'`.
   */
  lease?: Duration | undefined
  /** What a retry gets after the holder died: run again, or `409 idempotency_outcome_unknown`. Default `'retry'`. */
  abandoned?: 'retry' | 'reject' | undefined
  /** What a duplicate gets while the original runs: a 409 at once, or after waiting for `wait`. Default `'reject'`. */
  inFlight?: 'reject' | { wait: Duration } | undefined
  /** For `Retry-After`, which has it in whole seconds, rounded up. In ms or as text with a unit. Default `'1s'`. */
  retryAfter?: Duration | undefined
  /** Which statuses are kept. Default: 2xx, 3xx and 4xx except 429. */
  cacheable?: ((statusCode: number) => boolean) | undefined
  /** A larger response is sent, but kept only as "done, not replayable". Default 1,048,576 bytes. */
  maxResponseBytes?: number | undefined
  /** Which response headers are kept: a list of names, or a function of the lower-case name. */
  replayHeaders?: ((name: string) => boolean) | readonly string[] | undefined
  /** When the store cannot be reached: `503 idempotency_store_unavailable`, or run unprotected. Default `'reject'`. */
  onStoreError?: 'reject' | 'bypass' | undefined
  /** The form of the plugin's own answers. Default `'envelope'`; `'problem'` (RFC 9457) with `profile: 'ietf'`. */
  errors?: IdempotencyErrorForm | undefined
}

/** The plugin's options. `store` and `redis` must not be `undefined`: leave them out. */
export interface FastifyIdempotencyOptions extends IdempotencyRouteOptions {
  /** An object of the store contract. Default: Redis where a client is at hand, else in-process. */
  store?: IdempotencyStore
  /** An ioredis (or compatible) client. Default: `fastify.redis`, if @fastify/redis is registered. */
  redis?: RedisStoreClient
  /** Replicas of Redis that must have a step before it counts (WAIT). Default 0. */
  minReplicas?: number | undefined
  /** Stands before every key in the store. Default `'idempotency:'`. */
  keyPrefix?: string | undefined
  /** Whether every route of `methods` takes part, or only those with `config.idempotency`. Default true. */
  global?: boolean | undefined
  /** The methods whose routes take part by themselves. Default `['POST', 'PATCH']`. */
  methods?: string[] | undefined
  /** Default `'Idempotency-Key'`. */
  headerName?: string | undefined
  /** Default `'Idempotent-Replayed'`. */
  replayedHeaderName?: string | undefined
  /** For any one store operation, in ms or as text with a unit. Default `'1s'`. */
  storeTimeout?: Duration | undefined
  /**
   * How long `app.close()` waits for executions, and for outcomes that the store has not taken yet, in ms or as text
   * with a unit. Default `'10s'`.
   */
  closeTimeout?: Duration | undefined
  /**
   * The error `type`: an absolute URL to which `#code` is added, or a function. Default: `urn:problem-type:<code>`.
   */
  docsUrl?: string | ((code: IdempotencyErrorCode) => string) | undefined
  /**
   * The rules of the protocol: this plugin's, or draft-ietf-httpapi-idempotency-key-header-07. Default `'default'`.
   */
  profile?: keyof typeof PROFILES | undefined
}
