/** The payment provider: it stands outside of the instances and charges whenever it is asked to. */
import { randomUUID } from 'node:crypto'

export interface Charge { id: string, order: string, amount: number }

export class Card {
  readonly #byKey = new Map<string, Charge>()

  /** Charges the card. A key, where one is passed on, is only noted here. */
  charge (order: string, amount: number, key: string | undefined): Charge {
    const charge = { id: `ch_${randomUUID().slice(0, 8)}`, order, amount }
    if (key !== undefined) this.#byKey.set(key, charge)
    return charge
  }

  /** The charge that was made with this key, if there is one. */
  find (key: string): Charge | undefined {
    return this.#byKey.get(key)
  }
}
