import { METHODS } from 'node:http'
import type { DocsUrl } from '../protocol/errors.ts'
import { PROFILES, type Profile } from '../protocol/profile.ts'
import type { IdempotencyStore } from '../stores/contract.ts'
import type { RedisStoreClient } from '../stores/redis/store.ts'
import { check } from './check.ts'
import type { Constraints } from './constraints.ts'
import type { FastifyIdempotencyOptions, IdempotencyRouteOptions, ScopeFunction } from './options.ts'
import { isReplayedByDefault, type HeaderFilter } from './replay-headers.ts'
import { ROUTE_RULES, RULES } from './rules.ts'
import { credentials } from './scope.ts'

/** Options that are the same once they have been read; without `undefined`, which counts as not set. */
type AsGiven<Name extends keyof IdempotencyRouteOptions> =
  { [Key in Name]-?: Exclude<IdempotencyRouteOptions[Key], undefined> }

type Same = 'maxKeyLength' | 'required' | 'hook' | 'abandoned' | 'cacheable' | 'maxResponseBytes' |
  'onStoreError' | 'errors'

/** A route's options, read, with every default in place. */
export interface RouteConfig extends AsGiven<Same>, Partial<AsGiven<'key' | 'fingerprint'>> {
  scope: ScopeFunction
  /** Milliseconds. */
  ttl: number
  /** Milliseconds. */
  lease: number
  /** `wait`: milliseconds. */
  inFlight: 'reject' | { wait: number }
  /** Seconds. */
  retryAfter: number
  replayHeaders: HeaderFilter
  /** What messages call the key: its header, or 'idempotency key' where a `key` function stands in its place. */
  keyName: string
}

/** What a route's requests need to know of it, beside its options. */
export interface RouteContext extends RouteConfig {
  /** Bytes. */
  bodyLimit: number
  constraints: Constraints
}

/** The plugin's options, read, with every default in place. */
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
  /** Milliseconds. */
  storeTimeout: number
  /** Milliseconds. */
  closeTimeout: number
  docsUrl: DocsUrl | undefined
  profile: Profile
  route: RouteConfig
}

const ROUTE_DEFAULTS: Omit<RouteConfig, 'errors' | 'keyName'> = {
  maxKeyLength: 255,
  required: false,
  scope: credentials,
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

const DEFAULTS = {
  store: undefined,
  redis: undefined,
  minReplicas: 0,
  keyPrefix: 'idempotency:',
  global: true,
  methods: ['POST', 'PATCH'],
  headerName: 'Idempotency-Key',
  replayedHeaderName: 'Idempotent-Replayed',
  storeTimeout: 1_000,
  closeTimeout: 10_000,
  docsUrl: undefined,
  profile: 'default'
} as const satisfies Record<Exclude<keyof FastifyIdempotencyOptions, keyof IdempotencyRouteOptions>, unknown>

/** The instance's own options as they have been read. */
type Own = Omit<Config, 'methods' | 'header' | 'profile' | 'route' | 'docsUrl'> &
  { methods: readonly string[], profile: keyof typeof PROFILES, docsUrl: string | DocsUrl | undefined }

/** `supported`: the methods of the instance. @throws {TypeError} naming the first option that is unknown or wrong. */
export function parseOptions (options: FastifyIdempotencyOptions, supported: readonly string[] = METHODS): Config {
  const read = { ...DEFAULTS, ...check(options, RULES, 'fastify-idempotency: ') }
  const own = pick(read, name => name in DEFAULTS) as unknown as Own
  const route = pick(read, name => !(name in DEFAULTS)) as Partial<RouteConfig>
  checkTogether(own, supported)
  const profile = PROFILES[own.profile]
  return {
    ...own,
    methods: new Set(own.methods.map(method => method.toUpperCase())),
    header: own.headerName.toLowerCase(),
    docsUrl: docsOf(own.docsUrl),
    profile,
    route: withKeyName({ ...ROUTE_DEFAULTS, errors: profile.form, ...route }, own.headerName)
  }
}

/** What only options together can be wrong in. */
function checkTogether ({ store, redis, methods, minReplicas }: Own, supported: readonly string[]): void {
  if (store !== undefined && redis !== undefined) {
    throw new TypeError('fastify-idempotency: options "store" and "redis" exclude each other; give the one that ' +
      'is to be used')
  }
  const unknown = methods.find(method => !supported.includes(method.toUpperCase()))
  if (unknown !== undefined) {
    throw new TypeError(`fastify-idempotency: option "methods" has '${unknown}', which this Fastify instance does ` +
      'not support; a method of your own needs addHttpMethod before the plugin is registered')
  }
  if (store !== undefined && minReplicas > 0) {
    throw new TypeError('fastify-idempotency: option "minReplicas" belongs to the option "redis"; a store of your ' +
      'own sees to its replicas itself')
  }
}

/** @throws {TypeError} naming the first option that is unknown or wrong, after `where`. */
export function parseRouteOptions (given: object, config: Config, where: string): RouteConfig {
  const own = check(given, ROUTE_RULES, where) as Partial<RouteConfig>
  return withKeyName({ ...config.route, ...own }, config.headerName)
}

function withKeyName (route: Omit<RouteConfig, 'keyName'>, headerName: string): RouteConfig {
  return { ...route, keyName: route.key === undefined ? headerName : 'idempotency key' }
}

/** Whether it was left to the default whose keys they are. */
export function hasDefaultScope ({ scope }: RouteConfig): boolean {
  return scope === credentials
}

function docsOf (docsUrl: Own['docsUrl']): DocsUrl | undefined {
  return typeof docsUrl === 'string' ? code => `${docsUrl}#${code}` : docsUrl
}

function pick (options: Record<string, unknown>, belongs: (name: string) => boolean): Record<string, unknown> {
  return Object.fromEntries(Object.entries(options).filter(([name]) => belongs(name)))
}
