import { METHODS } from 'node:http'
import { inspect, types } from 'node:util'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { IdempotencyErrorForm } from '../protocol/errors.ts'
import { PROFILES, type Profile } from '../protocol/profile.ts'
import { assertStore, type IdempotencyStore } from '../stores/contract.ts'
import type { RedisStoreClient } from '../stores/redis/store.ts'

/** The stage at whose end the key is taken. */
export type IdempotencyStage = typeof STAGES[number]
export const STAGES = ['onRequest', 'preParsing', 'preValidation', 'preHandler'] as const

type MaybePromise<T> = T | Promise<T>

/** What a route may set for itself in `config.idempotency`; everything else is the instance's. */
export interface IdempotencyRouteOptions {
  /** Where the key comes from. Default: the header `headerName`. */
  key?: ((request: FastifyRequest) => MaybePromise<string | undefined>) | undefined
  /** Characters that a key may have. Default 255. */
  maxKeyLength?: number | undefined
  /** Refuse requests without a key (`400 idempotency_key_missing`). Default false. */
  required?: boolean | undefined
  /** Whose key it is; stored hashed only. Default: the credentials in `Authorization` and `x-api-key`, else one anonymous scope. */
  scope?: ((request: FastifyRequest) => MaybePromise<string | undefined>) | undefined
  /** What makes two requests the same, in the place of query and body: method, path and the route's constraints always count. Called before the handler. Default: the raw body bytes; of a multipart body its parts, whatever the boundary. */
  fingerprint?: ((request: FastifyRequest, body: Buffer) => string | Buffer) | undefined
  /** The stage at whose end the key is taken. Default `'onRequest'`. */
  hook?: IdempotencyStage | undefined
  /** Milliseconds that a kept response lives. Default 86,400,000 (24 hours). */
  ttl?: number | undefined
  /** Milliseconds, at least 100, after which a holder that has gone silent loses the key. Default 30,000. */
  lease?: number | undefined
  /** What a retry gets after the holder died: run again, or `409 idempotency_outcome_unknown`. Default `'retry'`. */
  abandoned?: 'retry' | 'reject' | undefined
  /** What a duplicate gets while the original runs: a 409 at once, or after waiting for `wait` ms. Default `'reject'`. */
  inFlight?: 'reject' | { wait: number } | undefined
  /** Seconds in `Retry-After`. Default 1. */
  retryAfter?: number | undefined
  /** Which statuses are kept. Default: 2xx, 3xx and 4xx except 429. */
  cacheable?: ((statusCode: number) => boolean) | undefined
  /** A larger response is sent, but kept only as "done, not replayable". Default 1,048,576 bytes. */
  maxResponseBytes?: number | undefined
  /** Which response headers are kept, by lower-case name. */
  replayHeaders?: ((name: string) => boolean) | undefined
  /** When the store cannot be reached in time: `503 idempotency_store_unavailable`, or run unprotected. Default `'reject'`. */
  onStoreError?: 'reject' | 'bypass' | undefined
  /** The form of the plugin's own answers. Default `'envelope'`; `'problem'` (RFC 9457) with `profile: 'ietf'`. */
  errors?: IdempotencyErrorForm | undefined
}

/** The plugin's options. */
export interface FastifyIdempotencyOptions extends IdempotencyRouteOptions {
  /** An object of the store contract. Default: Redis where a client is at hand, else in-process. */
  store?: IdempotencyStore | undefined
  /** An ioredis (or compatible) client. Default: `fastify.redis`, if @fastify/redis is registered. */
  redis?: RedisStoreClient | undefined
  /** Replicas of Redis that must have a step before it counts (WAIT), for those who cannot lose it in a failover. Default 0. */
  minReplicas?: number | undefined
  /** Stands before every key in the store. Default `'idempotency:'`. */
  keyPrefix?: string | undefined
  /** Whether every route of `methods` takes part, or only those with `config.idempotency`. Default true. */
  global?: boolean | undefined
  /** Default `['POST', 'PATCH']`. */
  methods?: string[] | undefined
  /** Default `'Idempotency-Key'`. */
  headerName?: string | undefined
  /** Default `'Idempotent-Replayed'`. */
  replayedHeaderName?: string | undefined
  /** Milliseconds for any one store operation. Default 1,000. */
  storeTimeout?: number | undefined
  /** Milliseconds that `app.close()` waits for executions, and for outcomes that the store has not taken yet. Default 10,000. */
  closeTimeout?: number | undefined
  /** The base of the error `type`: `docsUrl + '#' + code`. Default: `urn:problem-type:<code>`. */
  docsUrl?: string | undefined
  /** The rules of the protocol: this plugin's own, or draft-ietf-httpapi-idempotency-key-header-07. Default `'default'`. */
  profile?: keyof typeof PROFILES | undefined
}

/** Options without those that are `undefined`, which count as not set. */
type Given<T> = { [Name in keyof T]: Exclude<T[Name], undefined> }
type Optional = 'key' | 'fingerprint'
/** A route's options with every default in place. */
export type RouteConfig = Required<Omit<Given<IdempotencyRouteOptions>, Optional>> & Pick<Given<IdempotencyRouteOptions>, Optional>
/** What a route's requests need to know of it, beside its options. */
export interface RouteContext extends RouteConfig {
  /** Bytes. */
  bodyLimit: number
  /** What a request presented for the constraints of its route, where it has any. */
  constraints: ((request: FastifyRequest) => string) | undefined
}
/** The plugin's options with every default in place. */
export interface Config {
  store: IdempotencyStore | undefined
  redis: RedisStoreClient | undefined
  minReplicas: number
  keyPrefix: string
  global: boolean
  methods: ReadonlySet<string>
  /** As it is written in messages. */
  headerName: string
  /** As Node.js spells it in `request.headers`. */
  header: string
  replayedHeaderName: string
  storeTimeout: number
  closeTimeout: number
  docsUrl: string | undefined
  profile: Profile
  route: RouteConfig
}

/** The methods that never take part: they are safe (RFC 9110, section 9.2.1). */
const NEVER = new Set(['GET', 'HEAD', 'OPTIONS', 'TRACE'])

interface Rule { test: (value: unknown) => boolean, want: string }

const isFunction = (value: unknown): boolean => typeof value === 'function'
const isWhole = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 1
const oneOf = (...names: string[]): Rule => ({ test: value => names.includes(value as string), want: `one of ${names.map(name => `'${name}'`).join(', ')}` })
const isToken = (value: unknown): boolean => typeof value === 'string' && /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(value) // RFC 9110, section 5.6.2
const FUNCTION: Rule = { test: isFunction, want: 'a function' }
const isSync = (value: unknown): boolean => isFunction(value) && !types.isAsyncFunction(value)
const SYNC_FUNCTION: Rule = { test: isSync, want: 'a function that answers at once' }
const BOOLEAN: Rule = { test: value => typeof value === 'boolean', want: 'true or false' }
const FIELD_NAME: Rule = { test: isToken, want: 'the name of a header field' }
const MAX_MS = 2 ** 43
const MS: Rule = { test: value => isWhole(value) && (value as number) <= MAX_MS, want: `a whole number of milliseconds from 1 to ${MAX_MS}` }
const TIMER_MS: Rule = { test: value => isWhole(value) && (value as number) < 2 ** 31, want: 'a whole number of milliseconds from 1 to 2147483647' }
const ERRORS = oneOf('envelope', 'problem', 'throw')

const ROUTE_RULES: Record<keyof IdempotencyRouteOptions, Rule> = {
  key: FUNCTION,
  maxKeyLength: { test: isWhole, want: 'a whole number of characters, at least 1' },
  required: BOOLEAN,
  scope: FUNCTION,
  fingerprint: SYNC_FUNCTION,
  hook: oneOf(...STAGES),
  ttl: MS,
  lease: { test: value => TIMER_MS.test(value) && (value as number) >= 100, want: 'a whole number of milliseconds from 100 to 2147483647' },
  abandoned: oneOf('retry', 'reject'),
  inFlight: {
    test: value => value === 'reject' || (typeof value === 'object' && value !== null && Object.keys(value).join() === 'wait' && TIMER_MS.test((value as { wait: unknown }).wait)),
    want: "'reject' or { wait: a whole number of milliseconds, at least 1 }"
  },
  retryAfter: { test: isWhole, want: 'a whole number of seconds, at least 1' },
  cacheable: SYNC_FUNCTION,
  maxResponseBytes: { test: value => value === 0 || isWhole(value), want: 'a whole number of bytes, 0 or more' },
  replayHeaders: SYNC_FUNCTION,
  onStoreError: oneOf('reject', 'bypass'),
  errors: { test: value => isSync(value) || ERRORS.test(value), want: `${ERRORS.want}, or a function that answers at once` }
}

const RULES: Record<keyof FastifyIdempotencyOptions, Rule> = {
  ...ROUTE_RULES,
  store: { test: value => { assertStore(value); return true }, want: '' },
  redis: { test: value => typeof value === 'object' || isFunction(value), want: 'an ioredis client' },
  minReplicas: { test: value => value === 0 || isWhole(value), want: 'a whole number of replicas, 0 or more' },
  keyPrefix: { test: value => typeof value === 'string' && value.length <= 1_000 && Buffer.from(value).toString() === value, want: 'a string of at most 1,000 characters, without half a surrogate pair' },
  global: BOOLEAN,
  methods: { test: value => Array.isArray(value) && value.length > 0 && value.every(name => isToken(name) && !NEVER.has(String(name).toUpperCase())), want: "an array of HTTP methods, such as ['POST', 'PATCH'], without GET, HEAD, OPTIONS and TRACE, which never take part" },
  headerName: FIELD_NAME,
  replayedHeaderName: FIELD_NAME,
  storeTimeout: TIMER_MS,
  closeTimeout: TIMER_MS,
  docsUrl: { test: value => typeof value === 'string' && URL.canParse(value), want: 'an absolute URL' },
  profile: oneOf(...Object.keys(PROFILES))
}

const ROUTE_DEFAULTS: Omit<RouteConfig, 'errors'> = {
  maxKeyLength: 255,
  required: false,
  scope: credential,
  hook: 'onRequest',
  ttl: 86_400_000,
  lease: 30_000,
  abandoned: 'retry',
  inFlight: 'reject',
  retryAfter: 1,
  cacheable: status => status >= 200 && status < 500 && status !== 429,
  maxResponseBytes: 1_048_576,
  replayHeaders: isReplayedByDefault,
  onStoreError: 'reject'
}

/** `supported`: the methods that the instance knows. @throws {TypeError} naming the first option that is unknown or wrong. */
export function parseOptions (options: FastifyIdempotencyOptions, supported: readonly string[] = METHODS): Config {
  const given = check(options, RULES, 'fastify-idempotency: ')
  const { store, redis, minReplicas = 0, keyPrefix = 'idempotency:', global = true, methods = ['POST', 'PATCH'], headerName = 'Idempotency-Key', replayedHeaderName = 'Idempotent-Replayed', storeTimeout = 1_000, closeTimeout = 10_000, docsUrl, profile = 'default', ...route } = given
  if (store !== undefined && redis !== undefined) {
    throw new TypeError('fastify-idempotency: options "store" and "redis" exclude each other; give the one that is to be used')
  }
  const unknown = methods.find(method => !supported.includes(method.toUpperCase()))
  if (unknown !== undefined) {
    throw new TypeError(`fastify-idempotency: option "methods" has '${unknown}', which this Fastify instance does not support; a method of your own needs addHttpMethod before the plugin is registered`)
  }
  if (store !== undefined && minReplicas > 0) {
    throw new TypeError('fastify-idempotency: option "minReplicas" belongs to the option "redis"; a store of your own sees to its replicas itself')
  }
  return {
    store,
    redis,
    minReplicas,
    keyPrefix,
    global,
    methods: new Set(methods.map(method => method.toUpperCase())),
    headerName,
    header: headerName.toLowerCase(),
    replayedHeaderName,
    storeTimeout,
    closeTimeout,
    docsUrl,
    profile: PROFILES[profile],
    route: { ...ROUTE_DEFAULTS, errors: PROFILES[profile].form, ...route }
  }
}

/** @throws {TypeError} naming the route and its first option that is unknown or wrong. */
export function parseRouteOptions (given: unknown, config: Config, route: string): RouteConfig {
  const where = `fastify-idempotency: config.idempotency of ${route}: `
  if (given === true || given === undefined) return config.route
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw new TypeError(`${where}must be true, false or an object of options, got ${show(given)}`)
  }
  return { ...config.route, ...check(given, ROUTE_RULES, where) }
}

function check<T extends object> (options: T, rules: Record<string, Rule>, where: string): Given<T> {
  const given: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined) continue
    const rule = Object.hasOwn(rules, name) ? rules[name] : undefined
    if (rule === undefined) {
      const why = Object.hasOwn(RULES, name) ? `option "${name}" cannot be set per route, only where the plugin is registered` : `unknown option "${name}"`
      throw new TypeError(`${where}${why}; the options here are ${Object.keys(rules).join(', ')}`)
    }
    if (!rule.test(value)) throw new TypeError(`${where}option "${name}" must be ${rule.want}, got ${show(value)}`)
    given[name] = value
  }
  return given as Given<T>
}

function show (value: unknown): string {
  if (isFunction(value)) return types.isAsyncFunction(value) ? 'an async function' : 'a function'
  return inspect(value, { depth: 1, breakLength: Infinity })
}

/** Both count where both are sent: behind a gateway, either may be shared by many callers. */
function credential ({ headers }: FastifyRequest): string | undefined {
  const { authorization = '' } = headers
  const apiKey = String(headers['x-api-key'] ?? '')
  if (apiKey === '') return authorization || undefined
  return authorization === '' ? `x-api-key:${apiKey}` : `${authorization}\nx-api-key:${apiKey}`
}

/** Set anew on each response, or meant for one client at one moment. */
const LIVE_HEADERS = new Set(['set-cookie', 'www-authenticate', 'retry-after', 'server-timing', 'age'])

function isReplayedByDefault (name: string): boolean {
  return !LIVE_HEADERS.has(name) && !name.startsWith('access-control-') && !name.startsWith('ratelimit') && !name.startsWith('x-ratelimit-')
}

/**
 * Whether and how a route takes part, and with which of its methods: those of the option "methods", and with a
 * config of its own all that can.
 * @throws {TypeError} naming the route when its options are wrong, or have no effect.
 */
export function routeConfig (config: Config, given: unknown, methods: string[], url: string): { route: RouteConfig, covered: ReadonlySet<string> } | undefined {
  if (given === false || (given === undefined && !config.global)) return undefined
  const covered = new Set(methods.filter(method => given === undefined ? config.methods.has(method) : !NEVER.has(method)))
  const name = `${methods.join(',')} ${url}`
  const route = given === undefined ? config.route : parseRouteOptions(given, config, name)
  if (covered.size > 0) return { route, covered }
  // Fastify makes HEAD routes of GET routes by itself, with the same config.
  if (given === undefined || methods.join() === 'HEAD') return undefined
  throw new TypeError(`fastify-idempotency: config.idempotency of ${name} has no effect: ${[...NEVER].join(', ')} never take part; remove the config`)
}

export function isLate (hook: IdempotencyStage): hook is 'preValidation' | 'preHandler' {
  return hook === 'preValidation' || hook === 'preHandler'
}

/** What a request presents for the constraints that its route was declared with. */
export function constraintsOf (constraints: Record<string, unknown> | undefined): RouteContext['constraints'] {
  const entries = Object.entries(constraints ?? {})
  if (entries.length === 0) return undefined
  // What a strategy of the application's own derives is not public; the route's value tells routes apart.
  return request => entries.map(([name, value]) => `\n${name} ${presented(request, name) ?? inspect(value)}`).join('')
}

/** The same for a route that was declared before the plugin: what counts for any route of the instance. */
export function presentedConstraints (instance: FastifyInstance): RouteContext['constraints'] {
  const names = ['host', 'version'].filter(name => instance.hasConstraintStrategy(name))
  if (names.length === 0) return undefined
  return request => names.map(name => `\n${name} ${presented(request, name)}`).join('')
}

/**
 * The constraint strategies of the application's own that routes of an instance use. A route that was declared before
 * the plugin does not tell its values of them.
 */
export function customStrategies (instance: FastifyInstance): string[] {
  const names = Array.from(instance.printRoutes({ commonPrefix: false }).matchAll(/[{,]"([^"]+)":/g), ([, name]) => name as string)
  return [...new Set(names)].filter(name => name !== 'host' && name !== 'version' && instance.hasConstraintStrategy(name))
}

/** As Fastify's own strategies derive it. */
function presented ({ headers }: FastifyRequest, name: string): string | undefined {
  if (name === 'host') return String(headers.host ?? headers[':authority'])
  return name === 'version' ? String(headers['accept-version']) : undefined
}
