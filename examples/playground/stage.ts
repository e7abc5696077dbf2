/** The stage: two instances on one store, the card, and whoever watches. */
import { EventEmitter } from 'node:events'
import { storeKey } from '../../lib/protocol/fingerprint.ts'
import type { IdempotencyStore } from '../../lib/index.ts'
import { Card } from './card.ts'
import { headOf, send } from './client.ts'
import type { Answer, Happening, Name, Order, RequestEvent } from './events.ts'
import { keepsSteps, observedStore, type StepStore } from './store-over-ipc.ts'
import { Supervised } from './supervisor.ts'

type Unstamped = Happening extends infer H ? H extends unknown ? Omit<H, 'at'> : never : never

const PREFIX = 'playground:'
/** Short, so that a takeover is seen. */
const LEASE = 3_000

export class Stage extends EventEmitter<{ happening: [Happening] }> {
  readonly #store: StepStore
  readonly #card = new Card()
  readonly #instances: Record<Name, Supervised>
  /** The payment that a request, or a key of the store, belongs to. */
  readonly #orders = new Map<number | string, string>()
  #requests = 0

  constructor (store: IdempotencyStore) {
    super()
    // One for each open page.
    this.setMaxListeners(0)
    if (!keepsSteps(store)) throw new TypeError('The playground needs a store with the methods "record" and "recorded"')
    this.#store = store
    this.#instances = { a: this.#instance('a'), b: this.#instance('b') }
  }

  /** Nothing runs before this. */
  async open (): Promise<void> {
    await Promise.all(Object.values(this.#instances).map(async instance => await instance.port()))
  }

  async close (): Promise<void> {
    await Promise.all(Object.values(this.#instances).map(async instance => await instance.stop()))
  }

  /** Sends one request of a payment. `undefined` when no answer came back. */
  async send (given: Order): Promise<Answer | undefined> {
    const { order, to, key, body, fault } = given
    const port = await this.#instances[to].port()
    const request = ++this.#requests
    this.#orders.set(request, order)
    if (key !== undefined) this.#orders.set(storeKey(PREFIX, undefined, key), order)
    this.#tell({ order, request, what: 'sent', to, head: headOf(given), body, lose: fault === 'lose' })
    const answer = await send(port, request, given)
    this.#tell({
      order,
      request,
      ...(answer === undefined ? { what: 'lost', dead: fault !== 'lose' } : { what: 'answered', ...answer })
    })
    return answer
  }

  #tell (happening: Unstamped): void {
    this.emit('happening', { at: performance.now(), ...happening } as Happening)
  }

  #instance (name: Name): Supervised {
    const report = (event: RequestEvent & { instance: Name }): void => (
      this.#tell({ order: this.#orders.get(event.request) ?? '', ...event })
    )
    const store = observedStore(this.#store, (key, event) => (
      this.#tell({ order: this.#orders.get(key) ?? '', instance: name, ...event })
    ))
    const instance: Supervised = new Supervised(name, { keyPrefix: PREFIX, lease: LEASE }, {
      life: what => this.#tell({ order: '', what, instance: name }),
      methods: {
        ...store,
        tell: (event: RequestEvent) => report({ ...event, instance: name }),
        kill: (request: number) => {
          report({ what: 'killed', request, instance: name })
          instance.kill()
        },
        find: (request: number, key: string) => {
          const charge = this.#card.find(key)
          report({ what: 'asked', request, instance: name, found: charge !== undefined })
          return charge
        },
        charge: (request: number, order: string, amount: number, key?: string) => {
          const charge = this.#card.charge(order, amount, key)
          report({ what: 'charged', request, instance: name, id: charge.id })
          return charge
        }
      }
    })
    return instance
  }
}
