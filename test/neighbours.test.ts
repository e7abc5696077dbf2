import { readFileSync, writeFileSync } from 'node:fs'
import auth from '@fastify/auth'
import compress from '@fastify/compress'
import otel from '@fastify/otel'
import rateLimit from '@fastify/rate-limit'
import redis from '@fastify/redis'
import Fastify, { type FastifyInstance } from 'fastify'
import t from 'tap'
import idempotency, { type FastifyIdempotencyOptions } from '../lib/index.ts'
import { redisServer, start, stopRedis, STORES, type Mode } from './fixtures/app.ts'
import { beyond } from './fixtures/neighbours/beyond.ts'
import { bodies } from './fixtures/neighbours/bodies.ts'
import { identity } from './fixtures/neighbours/identity.ts'
import { ORDERS, table } from './fixtures/neighbours/neighbour.ts'
import { responses } from './fixtures/neighbours/responses.ts'
import { traffic } from './fixtures/neighbours/traffic.ts'

t.teardown(stopRedis)

const neighbours = [...responses, ...identity, ...bodies, ...traffic, ...beyond]

/** Takes the warnings of this plugin out of a log. */
function listen (): { logger: object, warnings: Array<{ msg: string, routes?: string[] }> } {
  const warnings: Array<{ msg: string, routes?: string[] }> = []
  const write = (line: string): void => {
    const entry = JSON.parse(line) as { level: number, msg: string }
    if (entry.level === 40 && entry.msg.startsWith('idempotency: ')) warnings.push(entry)
  }
  return { logger: { level: 'warn', stream: { write } }, warnings }
}

for (const { plugin, proves, stores = [STORES[0] as Mode], orders = ORDERS, scenes } of neighbours) {
  for (const mode of stores) {
    for (const order of orders) {
      t.test(`${proves}: ${plugin}, registered ${order} the plugin (${mode})`, async t => {
        for (const scene of scenes) {
          const { options = {}, register, routes, check } = await scene(t)
          const { logger, warnings } = listen()
          const app = await start(t, mode, {
            options,
            fastify: { logger },
            before: async app => { if (order === 'before') await register(app) },
            routes: async app => {
              if (order === 'after') await register(app)
              await routes(app)
            }
          })
          await check(t, app)
          t.same(warnings, [])
        }
      })
    }
  }
}
