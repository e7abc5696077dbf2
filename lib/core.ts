import type { Leases } from './leases.ts'
import type { Config } from './options.ts'
import type { Store } from './store.ts'

/** What every step of the request's way needs of the instance. */
export interface Core {
  config: Config
  store: Store
  leases: Leases
  /** @fastify/compress was registered first: its hook of a route stands there before ours is added. */
  compressed: boolean
}
