import type { Config } from '../config/config.ts'
import type { SettleDeps } from '../lease/settle.ts'
import type { StartupWarnings } from './startup-warnings.ts'
import type { Waiters } from './wait.ts'

/** What every step of the request's way needs of the instance. */
export interface Core extends SettleDeps {
  config: Config
  waiters: Waiters
  warnings: StartupWarnings
  /** @fastify/compress was registered first: its hook of a route stands there before ours is added. */
  compressed: boolean
}
