/**
 * One instance of an API that takes payments, run by supervisor.ts as a process of its own.
 * It works slowly, for people to see it, and fails where the request's header says so.
 */
import { subscribe } from 'node:diagnostics_channel'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import Fastify from 'fastify'
import idempotency, { IDEMPOTENCY_EVENTS, type IdempotencyEvent } from '../../lib/index.ts'
import type { Charge } from './card.ts'
import { createCaller } from './ipc.ts'
import { storeOverIpc } from './store-over-ipc.ts'

const { keyPrefix, lease } = JSON.parse(String(process.argv[2])) as { keyPrefix: string, lease: number }
/** Long enough for a renewal. */
const WORK = 400

process.on('disconnect', () => process.exit())
const call = createCaller()
const tell = (request: number, what: string, more: object): void => {
  call('tell', { request, what, ...more }).catch(() => {})
}

for (const event of IDEMPOTENCY_EVENTS) {
  subscribe(`fastify-idempotency:${event}`, message => {
    const { request } = message as IdempotencyEvent
    tell(Number(request.headers['x-request']), 'told', { event })
  })
}

const app = Fastify()
await app.register(idempotency, { store: storeOverIpc(call), keyPrefix, lease, storeTimeout: 2_500 })

app.post<{ Body: { order: string, amount: number } }>('/payments', async (request, reply) => {
  const { order, amount } = request.body
  const { 'x-fault': fault, 'x-ask': ask, 'x-step': inStep } = request.headers
  const { key, attempt, step } = request.idempotency
  const number = Number(request.headers['x-request'])
  tell(number, 'runs', { attempt })

  await sleep(WORK)
  if (fault === 'die-before') await call('kill', number)
  if (fault === 'fail') {
    tell(number, 'ran', { status: 500 })
    throw new Error('The database is down')
  }
  async function chargeWith (key: string | undefined): Promise<Charge> {
    // Look before you leap: somebody may have charged the card before.
    const earlier = ask === 'yes' && attempt > 1 ? await call('find', number, key) as Charge | undefined : undefined
    return earlier ?? await call('charge', number, order, amount, key) as Charge
  }
  const charge = inStep === 'yes'
    ? await step('charge', async ({ key }) => await chargeWith(key))
    : await chargeWith(key ?? undefined)
  await sleep(WORK)
  if (fault === 'die-after') await call('kill', number)

  tell(number, 'ran', { status: 201 })
  return await reply.code(201).send({ charge: charge.id, order, amount, status: 'paid' })
})

await app.listen({ port: 0, host: '127.0.0.1' })
await call('listening', (app.server.address() as AddressInfo).port)
