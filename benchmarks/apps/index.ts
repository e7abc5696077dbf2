/** The apps by name. A server loads its own only. */
import type { Server } from 'node:http'

type Start = (redisPort: number) => Promise<Server>

export const apps = {
  bare: async () => (await import('./bare.ts')).bare,
  'redis-get': async () => (await import('./bare-redis.ts')).redisGet,
  'redis-set-twice': async () => (await import('./bare-redis.ts')).redisSetTwice,
  ours: async () => (await import('./ours.ts')).ours,
  'ours-redis': async () => (await import('./ours.ts')).oursRedis,
  'ours-without-store': async () => (await import('./ours.ts')).oursWithoutStore,
  'ours-postgres': async () => (await import('./postgres.ts')).oursPostgres,
  'ours-postgres-prepared': async () => (await import('./postgres.ts')).oursPostgresPrepared,
  'ours-steps-0': async () => (await import('./steps.ts')).withSteps(0),
  'ours-steps-1': async () => (await import('./steps.ts')).withSteps(1),
  'ours-steps-3': async () => (await import('./steps.ts')).withSteps(3),
  'ours-redis-steps-0': async () => (await import('./steps.ts')).withStepsOnRedis(0),
  'ours-redis-steps-1': async () => (await import('./steps.ts')).withStepsOnRedis(1),
  'ours-redis-steps-3': async () => (await import('./steps.ts')).withStepsOnRedis(3),
  'ours-opted-out': async () => (await import('./ours.ts')).oursOptedOut,
  'ours-without-events': async () => (await import('./events.ts')).oursWithoutEvents,
  'ours-with-metrics': async () => (await import('./events.ts')).oursWithMetrics,
  build: async () => (await import('./build.ts')).build,
  'build-redis': async () => (await import('./build.ts')).buildRedis,
  'build-opted-out': async () => (await import('./build.ts')).buildOptedOut,
  'node-idempotency': async () => (await import('./node-idempotency.ts')).nodeIdempotency,
  'node-idempotency-redis': async () => (await import('./node-idempotency.ts')).nodeIdempotencyRedis,
  'bare-express': async () => (await import('./express.ts')).bareExpress,
  'express-idempotency': async () => (await import('./express.ts')).expressIdempotency
} satisfies Record<string, () => Promise<Start>>

export type AppName = keyof typeof apps
