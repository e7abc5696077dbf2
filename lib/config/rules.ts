import { types } from 'node:util'
import { PROFILES } from '../protocol/profile.ts'
import { assertStore } from '../stores/contract.ts'
import { assertAnswered } from '../util/promise.ts'
import { duration, MAX_TIMER, MAX_TTL } from './durations.ts'
import { isToken, ownField } from './field-name.ts'
import { STAGES, type FastifyIdempotencyOptions, type IdempotencyRouteOptions } from './options.ts'
import { listed } from './replay-headers.ts'
import { readScope } from './scope.ts'

/** What an option may be. */
export interface Rule<T = unknown> {
  /** The value as the plugin goes on with it; `undefined` where it is wrong. */
  read: (value: unknown) => T | undefined
  /** For the message: the option must be … */
  want: string
}

/** The methods that never take part: they are safe (RFC 9110, section 9.2.1). */
export const NEVER: ReadonlySet<string> = new Set(['GET', 'HEAD', 'OPTIONS', 'TRACE'])

function rule (test: (value: unknown) => boolean, want: string): Rule {
  return { read: value => test(value) ? value : undefined, want }
}

function oneOf (...names: string[]): Rule {
  return rule(value => names.includes(value as string), `one of ${names.map(name => `'${name}'`).join(', ')}`)
}

const isFunction = (value: unknown): boolean => typeof value === 'function'
const isSync = (value: unknown): boolean => isFunction(value) && !types.isAsyncFunction(value)
const isWhole = (value: unknown, min: number): boolean => Number.isSafeInteger(value) && (value as number) >= min
const isMethod = (value: unknown): boolean => isToken(value) && !NEVER.has(String(value).toUpperCase())
type Test = (value: unknown) => boolean
const isListOf = (value: unknown, test: Test): boolean => Array.isArray(value) && value.every(test)

const FUNCTION = rule(isFunction, 'a function')
const SYNC_FUNCTION = rule(isSync, 'a function that answers at once')
const BOOLEAN = rule(value => typeof value === 'boolean', 'true or false')
const TIMER = duration(1, MAX_TIMER)
const ERRORS = oneOf('envelope', 'problem', 'throw')

export const ROUTE_RULES: Record<keyof IdempotencyRouteOptions, Rule> = {
  key: FUNCTION,
  maxKeyLength: rule(value => isWhole(value, 1), 'a whole number of characters, at least 1'),
  required: BOOLEAN,
  scope: { read: readScope, want: "a function, 'credentials' or false" },
  fingerprint: SYNC_FUNCTION,
  hook: oneOf(...STAGES),
  ttl: duration(1, MAX_TTL),
  lease: duration(100, MAX_TIMER),
  abandoned: oneOf('retry', 'reject'),
  inFlight: { read: readInFlight, want: `'reject' or { wait: ${TIMER.want} }` },
  retryAfter: { read: readSeconds, want: TIMER.want },
  cacheable: { read: value => answering('cacheable', value), want: SYNC_FUNCTION.want },
  maxResponseBytes: rule(value => isWhole(value, 0), 'a whole number of bytes, 0 or more'),
  replayHeaders: { read: readReplayHeaders, want: 'a list of header names, or a function that answers at once' },
  onStoreError: oneOf('reject', 'bypass'),
  errors: rule(value => isSync(value) || ERRORS.read(value) !== undefined,
    `${ERRORS.want}, or a function that answers at once`)
}

export const RULES: Record<keyof FastifyIdempotencyOptions, Rule> = {
  ...ROUTE_RULES,
  store: { read: readStore, want: 'an object of the store contract' },
  redis: rule(value => typeof value === 'object' || isFunction(value), 'an ioredis client'),
  minReplicas: rule(value => isWhole(value, 0), 'a whole number of replicas, 0 or more'),
  keyPrefix: rule(isKeyPrefix, 'a string of at most 1,000 characters, without half a surrogate pair'),
  global: BOOLEAN,
  methods: rule(value => isListOf(value, isMethod) && (value as string[]).length > 0,
    `an array of HTTP methods, such as ['POST', 'PATCH'], without ${[...NEVER].join(', ')}, which never take part`),
  headerName: ownField('headerName', 'Idempotency-Key'),
  replayedHeaderName: ownField('replayedHeaderName', 'Idempotent-Replayed'),
  storeTimeout: TIMER,
  closeTimeout: TIMER,
  docsUrl: rule(value => isSync(value) || isBaseUrl(value),
    'an absolute URL without a fragment, to which #code is added, or a function that answers at once'),
  profile: oneOf(...Object.keys(PROFILES))
}

function readInFlight (value: unknown): 'reject' | { wait: number } | undefined {
  if (value === 'reject') return value
  if (typeof value !== 'object' || value === null || Object.keys(value).join() !== 'wait') return undefined
  const wait = TIMER.read((value as { wait: unknown }).wait)
  return wait === undefined ? undefined : { wait }
}

/** `Retry-After` has whole seconds only (RFC 9110, section 10.2.3). */
function readSeconds (value: unknown): number | undefined {
  const ms = TIMER.read(value)
  return ms === undefined ? undefined : Math.ceil(ms / 1_000)
}

function readReplayHeaders (value: unknown): unknown {
  if (isListOf(value, isToken)) return listed(value as string[])
  return answering('replayHeaders', value)
}

/** The function with a check of what it answers: a promise would be true. `undefined` where it is none. */
function answering (option: string, value: unknown): unknown {
  if (!isSync(value)) return undefined
  return (given: unknown): unknown => {
    const answer = (value as (given: unknown) => unknown)(given)
    assertAnswered(answer, option)
    return answer
  }
}

/** @throws {TypeError} naming the method that is missing. */
function readStore (value: unknown): unknown {
  assertStore(value)
  return value
}

function isKeyPrefix (value: unknown): boolean {
  return typeof value === 'string' && value.length <= 1_000 && Buffer.from(value).toString() === value
}

function isBaseUrl (value: unknown): boolean {
  return typeof value === 'string' && URL.canParse(value) && !value.includes('#')
}
