import type { FastifyRequest } from 'fastify'
import type { ScopeFunction } from './options.ts'

/** The default. Both headers count where both are sent: behind a gateway, either may be shared by many callers. */
export function credentials ({ headers }: FastifyRequest): string | undefined {
  const { authorization = '' } = headers
  const apiKey = String(headers['x-api-key'] ?? '')
  if (apiKey === '') return authorization || undefined
  return authorization === '' ? `x-api-key:${apiKey}` : `${authorization}\nx-api-key:${apiKey}`
}

const oneForAll: ScopeFunction = () => undefined
/** A function of its own, so that start-up can tell it from the default that nobody thought of. */
const chosenCredentials: ScopeFunction = request => credentials(request)

/** The scope that the option asks for, or `undefined` where it is none. */
export function readScope (value: unknown): ScopeFunction | undefined {
  if (value === false) return oneForAll
  if (value === 'credentials') return chosenCredentials
  return typeof value === 'function' ? value as ScopeFunction : undefined
}
