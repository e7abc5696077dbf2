import type { FastifySchema } from 'fastify'
import { answersOf, type Answer, type Json } from './openapi/answers.ts'
import { parseOptions, type Config } from './config/config.ts'
import type { FastifyIdempotencyOptions } from './config/options.ts'
import { participants } from './config/participants.ts'

/** What `documentRoute` is to know beside the options. */
export interface DocumentTarget {
  /** Of the document: 2.0, 3.0 or 3.1. Default 3.0, which 3.1 understands too. */
  version?: string | undefined
  /** The methods that are protected, where the route has others too. */
  only?: string[] | undefined
  /** Schemas that the route's may refer to, by `$id`. */
  schemas?: Record<string, unknown> | undefined
  /** The document's own `produces`; Swagger 2.0 only. */
  produces?: readonly string[] | undefined
}

/** What @fastify/swagger calls its option `transform` with. */
export interface TransformInput {
  schema: FastifySchema | undefined
  url: string
  route: object
  openapiObject?: { openapi?: string }
  swaggerObject?: { produces?: readonly string[] }
}

/** For the option `transform` of @fastify/swagger: documents the routes that take part, and leaves the others alone. */
export function transform ({ schema, url, route, openapiObject, swaggerObject }: TransformInput): {
  schema: FastifySchema, url: string
} {
  const participant = participants.get(route)
  if (participant === undefined) return { schema: schema as FastifySchema, url }
  const { config, covered: protectedMethods, instance } = participant
  const methods = [(route as { method: string | string[] }).method].flat()
  const covered = methods.filter(method => protectedMethods.has(method))
  return {
    url,
    schema: documented(schema ?? {}, config, {
      version: swaggerObject === undefined ? openapiObject?.openapi : '2.0',
      only: covered.length < methods.length ? covered : undefined,
      schemas: instance.getSchemas(),
      produces: swaggerObject?.produces
    })
  }
}

/**
 * A copy of a route's schema which also describes what the plugin adds to the route; `options` are the plugin's and the
 * route's together.
 */
export function documentRoute (
  schema: FastifySchema | undefined, options: FastifyIdempotencyOptions = {}, target: DocumentTarget = {}
): FastifySchema {
  return documented(schema ?? {}, parseOptions(options), target)
}

const NO_RESPONSE = { 200: { type: 'null', description: 'Default Response' } }

function documented (given: FastifySchema, config: Config, target: DocumentTarget): FastifySchema {
  const { only, schemas = {}, version = '3.0' } = target
  const { route, replayedHeaderName } = config
  const schema = given as Json
  const named = [schema.produces ?? target.produces ?? []].flat() as string[]
  const produces = named.length === 0 ? [JSON_TYPE] : named
  const theirs = schema.response as Record<string, Json> | undefined
  const responses: Record<string, Json> = { ...theirs ?? NO_RESPONSE }
  for (const [status, response] of Object.entries(responses)) {
    if (!statusesOf(status).some(route.cacheable)) continue
    responses[status] = {
      ...response,
      ...allHeaders(response, {
        [replayedHeaderName]: { type: 'string', enum: ['true'], description: 'On a replay of the first response.' }
      })
    }
  }
  for (const [status, answer] of answersOf(config)) {
    responses[status] = withAnswer(findResponse(responses, status), answer, { version, produces, schemas })
  }
  return {
    ...schema,
    ...(route.key === undefined ? { headers: withKey(schema.headers as Json | undefined, config, only, schemas) } : {}),
    ...(version === '2.0' && route.errors === 'problem'
      ? {
          produces: [...new Set(produces).add('application/problem+json')]
        }
      : {}),
    response: responses,
    'x-idempotency': schema['x-idempotency'] ?? {
      ttl: route.ttl, required: route.required, ...(only === undefined ? {} : { methods: only })
    }
  } as FastifySchema
}

/** The route's headers with the key among them. */
function withKey (
  headers: Json | undefined, { route, header, headerName, profile }: Config, only: string[] | undefined, schemas: Json
): Json {
  const description = [
    `Makes a retry safe: the first response is kept for ${inWords(route.ttl)}, ` +
      'and is sent again for the same request with the same key.',
    'Send a fresh value, such as a UUID, for each operation.',
    ...(only === undefined ? [] : [`With ${only.join(' and ')} only.`])
  ].join(' ')
  const ours = { type: 'string', ...profile.schemaOf(route.maxKeyLength), description }
  const parts = partsOf(headers ?? {}, schemas)
  const known = parts.flatMap(({ properties = {} }) => Object.entries(properties as Record<string, Json>)).find(
    ([name]) => name.toLowerCase() === header
  )
  const name = known?.[0] ?? headerName
  const required = [...new Set([
    ...parts.flatMap(({ required = [] }) => required as string[]),
    ...(route.required && only === undefined ? [name] : [])
  ])]
  const added = known === undefined ? ours : bothHeaders(known[1], ours)
  if (headers === undefined || headers.properties !== undefined) {
    return {
      type: 'object', ...headers, required, properties: { ...headers?.properties as Json | undefined, [name]: added }
    }
  }
  return {
    allOf: [headers, { type: 'object', required: required.filter(one => one === name), properties: { [name]: added } }]
  }
}

/** The objects of which a schema is made up. */
function partsOf (schema: Json, schemas: Json): Json[] {
  const found = lookUp(schema, schemas)
  const members = [found.allOf ?? found.anyOf ?? found.oneOf ?? []].flat() as Json[]
  return [found, ...members.flatMap(member => partsOf(member, schemas))]
}

function lookUp (schema: Json, schemas: Json): Json {
  if (typeof schema.$ref !== 'string') return schema
  const [id, pointer = ''] = schema.$ref.split('#') as [string, string?]
  let found = schemas[id] as Json | undefined
  for (const step of pointer.split('/').slice(1)) found = found?.[step] as Json | undefined
  return found ?? {}
}

/** A value of a header must do for both: their validator and the plugin. */
function bothHeaders (theirs: Json, { description: what, ...ours }: { description: string, maxLength?: number }): Json {
  const description = joined(theirs.description, what)
  if (theirs.$ref !== undefined) return { allOf: [theirs, ours], description }
  const { maxLength = Infinity } = theirs as { maxLength?: number }
  return {
    ...ours,
    ...theirs,
    description,
    ...(ours.maxLength === undefined ? {} : { maxLength: Math.min(maxLength, ours.maxLength) })
  }
}

/** What the document says of a status by now, if only in general. */
function findResponse (responses: Record<string, Json>, status: number): Json | undefined {
  const range = `${String(status)[0]}xx`
  return responses[status] ?? responses[range] ?? responses[range.toUpperCase()] ?? responses.default
}

const JSON_TYPE = 'application/json'
const TOLD = 'x-response-description'

/** One status with two sources: the route's own answer, if it documents one, and the plugin's. */
function withAnswer (theirs: Json | undefined, answer: Answer, { version, produces, schemas }: {
  version: string, produces: string[], schemas: Json
}): Json {
  const { body } = answer
  const headers = allHeaders(theirs, answer.headers)
  const description = joined(theirs?.[TOLD] ?? lookUp(theirs ?? {}, schemas).description, answer.description)
  const empty = theirs === undefined || theirs.type === 'null'
  // Swagger 2.0 has one schema for a status, and no `anyOf`.
  if (theirs !== undefined && (answer.yields || body === undefined || (version === '2.0' && !empty))) {
    return { ...theirs, [theirs.$ref === undefined ? TOLD : 'description']: description, ...headers }
  }
  if (body === undefined) return { type: 'null', description, ...headers }
  if (version === '2.0') return { ...body.schema, [TOLD]: description, ...headers }
  const content = empty ? {} : contentOf(theirs, version, produces)
  const { [body.mediaType]: same } = content
  return {
    description,
    ...headers,
    content: {
      ...content,
      [body.mediaType]: same === undefined
        ? {
            schema: body.schema
          }
        : { ...same, schema: { anyOf: [same.schema, body.schema] } }
    }
  }
}

/** By media type, as @fastify/swagger would make it of a plain schema. */
function contentOf (
  { headers, [TOLD]: told, ...schema }: Json, version: string, produces: string[]
): Record<string, Json> {
  if (schema.content !== undefined) return schema.content as Record<string, Json>
  return Object.fromEntries(
    produces.map(type => [type, { schema: version.startsWith('3.0') ? withOneExample(schema) : schema }])
  )
}

/** OpenAPI 3.0 knows one `example` of a schema only; @fastify/swagger does not look into `content` for others. */
function withOneExample (schema: unknown, isSchema = true): unknown {
  if (Array.isArray(schema)) return schema.map(one => withOneExample(one))
  if (typeof schema !== 'object' || schema === null) return schema
  return Object.fromEntries(Object.entries(schema).map(([name, value]) => isSchema && name === 'examples' &&
    Array.isArray(value)
    ? ['example', value[0]]
    : [name, withOneExample(value, !isSchema || name !== 'properties')]))
}

/** Names of fields are the same in any case. */
function allHeaders (response: Json | undefined, more: Json): { headers?: Json } {
  const theirs = response?.headers as Json | undefined ?? {}
  const known = new Set(Object.keys(theirs).map(name => name.toLowerCase()))
  const headers = {
    ...theirs, ...Object.fromEntries(Object.entries(more).filter(([name]) => !known.has(name.toLowerCase())))
  }
  return Object.keys(headers).length === 0 ? {} : { headers }
}

/** All statuses that an entry stands for. */
function statusesOf (entry: string): number[] {
  const every = Array.from({ length: 400 }, (_, i) => 200 + i)
  if (entry === 'default') return every
  return /xx$/i.test(entry) ? every.filter(status => String(status)[0] === entry[0]) : [Number(entry)]
}

function joined (theirs: unknown, ours: string): string {
  return typeof theirs === 'string' ? `${theirs}\n\n${ours}` : ours
}

const UNITS = [
  [86_400_000, 'day'], [3_600_000, 'hour'], [60_000, 'minute'], [1_000, 'second'], [1, 'millisecond']
] as const

/** 24 hours, 7 days, 90 seconds: in the largest unit of which there are several. */
function inWords (ms: number): string {
  const [size, unit] = UNITS.find(([size]) => ms % size === 0 && ms > size) ?? [1, 'millisecond']
  return new Intl.NumberFormat('en', { style: 'unit', unit, unitDisplay: 'long' }).format(ms / size)
}
