import type { FastifyInstance } from 'fastify'
import type { Config } from './config.ts'

export interface Participant {
  /** The plugin's options; `route` holds the route's own. */
  config: Config
  /** Its methods that are protected. */
  covered: ReadonlySet<string>
  /** Where the route was declared. */
  instance: FastifyInstance
}

/** The routes that take part, by the object that every `onRoute` hook sees; for those who describe them. */
export const participants = new WeakMap<object, Participant>()
