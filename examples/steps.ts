/**
 * Two steps and a provider that loses its answers: `node --import tsx examples/steps.ts`, or any other way to run
 * TypeScript. One order is sent until it is answered; the card is charged once.
 */
import Fastify from 'fastify'
import idempotency from '../lib/index.ts' // in your code: 'fastify-idempotency'

/** A provider that honours its keys. Of the first answers, `losing` do not arrive. */
export function createProvider (losing: number) {
  const charges = new Map<string, string>()
  let asked = 0
  return {
    charges,
    get asked () { return asked },
    async charge (amount: number, { idempotencyKey }: { idempotencyKey: string }): Promise<{ id: string }> {
      asked++
      const id = charges.get(idempotencyKey) ?? `charge ${charges.size + 1} of ${amount}`
      charges.set(idempotencyKey, id)
      if (asked <= losing) throw new Error('The provider does not answer')
      return { id }
    }
  }
}

/** The card is charged, and then a mail is sent, which fails the first time. */
export async function createApp (provider: ReturnType<typeof createProvider>, say: (line: string) => void) {
  const app = Fastify()
  await app.register(idempotency)
  app.post<{ Body: { amount: number } }>('/orders', async (request, reply) => {
    const { step, attempt } = request.idempotency
    const charge = await step('charge', async ({ key }) => {
      say(`attempt ${attempt}: asks the provider`)
      return await provider.charge(request.body.amount, { idempotencyKey: key })
    })
    await step('mail', () => {
      say(`attempt ${attempt}: sends the mail`)
      if (attempt < 4) throw new Error('The mail server is away')
    })
    return await reply.code(201).send({ charge: charge.id, attempt })
  })
  return app
}

export async function run (say: (line: string) => void): Promise<void> {
  const provider = createProvider(2)
  const app = await createApp(provider, say)
  for (let status = 500; status === 500;) {
    const answer = await app.inject({
      method: 'POST', url: '/orders', headers: { 'idempotency-key': 'order-1' }, payload: { amount: 42 }
    })
    status = answer.statusCode
    say(`the client gets ${status} ${status === 201 ? answer.body : ''}`.trimEnd())
  }
  say(`the provider was asked ${provider.asked} times, and has charged ${provider.charges.size} time`)
  await app.close()
}

if (import.meta.filename === process.argv[1]) await run(line => { console.log(line) })
