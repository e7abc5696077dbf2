/** The pairs: a piece of work that is measured, and the anchor that it is measured against. */
import type { AppName } from './apps/index.ts'
import type { Path } from './payloads.ts'

/** Both sides of a pair get the same requests: without a key, all with one key, or each with a fresh one. */
export type Keys = 'none' | 'same' | 'fresh'

export interface Case {
  /** The name of the ratio in results.json. */
  id: string
  part: 'none' | 'replay' | 'first' | 'stream' | 'events' | 'peers' | 'peers-redis' | 'peers-express' |
    'postgres' | 'steps'
  /** What is compared with what, the same for ours and the peers. */
  work: string
  subject: string
  app: AppName
  anchor: AppName
  path: Path
  keys: Keys
  /** The ratio to reach, or `control`: no difference beyond the spread of the control. */
  target?: number | 'control'
}

/** Somebody else's package. */
export const isPeer = ({ part }: Case): boolean => part.startsWith('peers')

export const OURS = 'fastify-idempotency'
const NODE = '@node-idempotency/core'
const EXPRESS = 'express-idempotency'

const replay = { path: '/payments', keys: 'same' } as const
const large = { path: '/large', keys: 'same' } as const
const first = { path: '/payments', keys: 'fresh' } as const

/** The work, in the order of the summary and the chart. The anchor of each is part of its name. */
export const work = {
  control: 'control: the bare route against itself',
  optedOut: 'route does not take part / bare route',
  noKey: 'no key sent, route takes part / bare route',
  replay: 'replay, in-process store / bare route',
  replayLarge: 'replay of 16 KiB, in-process store / bare route with 16 KiB',
  replayRedis: 'replay, Redis / bare route with one getBuffer',
  first: 'first execution, in-process store / bare route',
  firstRedis: 'first execution, Redis / bare route with two SETs',
  stream: 'first execution, 256 KiB streamed in / the same bare route',
  silentReplay: 'replay, nobody listens / replay by a build without events',
  silentFirst: 'first execution, nobody listens / the same by a build without events',
  heardReplay: 'replay, metrics recorded / replay, nobody listens',
  replayExpress: 'replay under Express / bare Express',
  firstExpress: 'first execution under Express / bare Express'
} as const

export const cases: Case[] = [
  { id: 'control', part: 'none', work: work.control, subject: 'bare route', app: 'bare', anchor: 'bare', ...replay },
  {
    id: 'opted-out',
    part: 'none',
    work: work.optedOut,
    subject: OURS,
    app: 'ours-opted-out',
    anchor: 'bare',
    ...replay,
    target: 'control'
  },
  {
    id: 'no-key',
    part: 'none',
    work: work.noKey,
    subject: OURS,
    app: 'ours',
    anchor: 'bare',
    path: '/payments',
    keys: 'none',
    target: 0.98
  },

  {
    id: 'replay', part: 'replay', work: work.replay, subject: OURS, app: 'ours', anchor: 'bare', ...replay, target: 1.05
  },
  {
    id: 'replay-16k',
    part: 'replay',
    work: work.replayLarge,
    subject: OURS,
    app: 'ours',
    anchor: 'bare',
    ...large,
    target: 2
  },
  {
    id: 'replay-redis',
    part: 'replay',
    work: work.replayRedis,
    subject: OURS,
    app: 'ours-redis',
    anchor: 'redis-get',
    ...replay,
    target: 1.25
  },

  { id: 'first', part: 'first', work: work.first, subject: OURS, app: 'ours', anchor: 'bare', ...first, target: 0.75 },
  {
    id: 'first-redis',
    part: 'first',
    work: work.firstRedis,
    subject: OURS,
    app: 'ours-redis',
    anchor: 'redis-set-twice',
    ...first,
    target: 1.25
  },

  {
    id: 'stream',
    part: 'stream',
    work: work.stream,
    subject: OURS,
    app: 'ours',
    anchor: 'bare',
    path: '/upload',
    keys: 'fresh'
  },

  {
    id: 'events-silent-replay',
    part: 'events',
    work: work.silentReplay,
    subject: OURS,
    app: 'ours',
    anchor: 'ours-without-events',
    ...replay,
    target: 'control'
  },
  {
    id: 'events-silent-first',
    part: 'events',
    work: work.silentFirst,
    subject: OURS,
    app: 'ours',
    anchor: 'ours-without-events',
    ...first,
    target: 'control'
  },
  {
    id: 'events-heard-replay',
    part: 'events',
    work: work.heardReplay,
    subject: OURS,
    app: 'ours-with-metrics',
    anchor: 'ours',
    ...replay
  },

  {
    id: 'node-idempotency-replay',
    part: 'peers',
    work: work.replay,
    subject: NODE,
    app: 'node-idempotency',
    anchor: 'bare',
    ...replay
  },
  {
    id: 'node-idempotency-replay-16k',
    part: 'peers',
    work: work.replayLarge,
    subject: NODE,
    app: 'node-idempotency',
    anchor: 'bare',
    ...large
  },
  {
    id: 'node-idempotency-replay-redis',
    part: 'peers-redis',
    work: work.replayRedis,
    subject: NODE,
    app: 'node-idempotency-redis',
    anchor: 'redis-get',
    ...replay
  },
  {
    id: 'node-idempotency-first',
    part: 'peers',
    work: work.first,
    subject: NODE,
    app: 'node-idempotency',
    anchor: 'bare',
    ...first
  },
  {
    id: 'node-idempotency-first-redis',
    part: 'peers-redis',
    work: work.firstRedis,
    subject: NODE,
    app: 'node-idempotency-redis',
    anchor: 'redis-set-twice',
    ...first
  },
  {
    id: 'express-idempotency-replay',
    part: 'peers-express',
    work: work.replayExpress,
    subject: EXPRESS,
    app: 'express-idempotency',
    anchor: 'bare-express',
    ...replay
  },
  {
    id: 'express-idempotency-first',
    part: 'peers-express',
    work: work.firstExpress,
    subject: EXPRESS,
    app: 'express-idempotency',
    anchor: 'bare-express',
    ...first
  }
]
