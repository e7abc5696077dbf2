import type { FastifyReply } from 'fastify'

type Headers = Record<string, unknown>

/**
 * Fastify's `getHeaders` makes three objects, a fair part of what a first execution allocates. The one that it copies
 * from is not in its interface: it is read where a reply has it under this name, and once it was seen to hold what
 * `getHeaders` says. Else `getHeaders` serves.
 */
const DESCRIPTION = 'fastify.reply.headers'

/** Where replies have it; `undefined` until one with headers has come, `null` where that one has it not. */
let kOwn: symbol | null | undefined

/** The headers of a reply as they stand, to be read at once: they may change with the reply. */
export function headersOf (reply: FastifyReply): Readonly<Headers> {
  return ownOf(reply) ?? reply.getHeaders()
}

/** A copy of the headers of a reply as they stand; `undefined` where it has none. */
export function copyOfHeaders (reply: FastifyReply): Headers | undefined {
  const headers = headersOf(reply)
  if (isEmpty(headers)) return undefined
  const copy = { ...headers }
  // Whoever has set several lines may still have their array.
  for (const name in copy) if (Array.isArray(copy[name])) copy[name] = [...copy[name] as unknown[]]
  return copy
}

/** Whether a reply has these headers, and no others. */
export function hasHeaders (reply: FastifyReply, headers: Headers): boolean {
  return isSame(headersOf(reply), headers)
}

/** Fastify's own object, where it tells all: what was set on the response of Node.js stands elsewhere. */
function ownOf (reply: FastifyReply): Headers | undefined {
  if (kOwn === null || reply.raw.getHeaderNames().length > 0) return undefined
  if (kOwn === undefined) return learn(reply)
  return (reply as unknown as Record<symbol, Headers | undefined>)[kOwn]
}

function learn (reply: FastifyReply): undefined {
  const headers = reply.getHeaders()
  if (isEmpty(headers)) return
  const symbol = Object.getOwnPropertySymbols(reply).find(({ description }) => description === DESCRIPTION)
  const held = reply as unknown as Record<symbol, Headers>
  kOwn = symbol !== undefined && isSame(held[symbol] as Headers, headers) ? symbol : null
}

function isEmpty (headers: Headers): boolean {
  return Object.keys(headers).length === 0
}

function isSame (some: Headers, others: Headers): boolean {
  const names = Object.keys(some)
  return names.length === Object.keys(others).length && names.every(name => isSameValue(some[name], others[name]))
}

function isSameValue (one: unknown, other: unknown): boolean {
  if (!Array.isArray(one) || !Array.isArray(other)) return one === other
  return one.length === other.length && one.every((line, i) => line === other[i])
}
