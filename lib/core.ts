import type { FastifyReply } from 'fastify'
import type { Backlog } from './backlog.ts'
import type { Config } from './options.ts'
import type { Order } from './order.ts'
import type { Keeping } from './write.ts'

/** What every step of the request's way needs of the instance. */
export interface Core extends Keeping {
  config: Config
  backlog: Backlog
  /** Stand on a reply while its handler runs. */
  watched: Pick<FastifyReply, 'send' | 'then'>
  /** @fastify/compress was registered first: its hook of a route stands there before ours is added. */
  compressed: boolean
  order: Order
}
