// @ts-check
/** What is known of one payment, from what has happened so far. */

/** @typedef {import('../events.ts').Happening} Happening */
/** @typedef {import('../events.ts').Answer} Answer */
/** @typedef {import('../events.ts').Name} Name */
/**
 * @typedef {object} Sent one request of the client, and what became of it
 * @property {number} request
 * @property {number} nth 1 for the payment's first
 * @property {Name} to
 * @property {number} at
 * @property {string} head
 * @property {string} body
 * @property {number} [end]
 * @property {Answer} [answer]
 * @property {boolean} [dead] no answer: its instance was killed
 * @property {{ at: number, attempt: number, end?: number }} [run]
 * @property {string[]} told
 * @property {boolean} [found] what the provider said
 * @property {Charge} [charge]
 * @property {Lease} [held] the lease that stood in its way
 */
/** @typedef {{ at: number, by: Name, id: string, nth: number }} Charge */
/** @typedef {{ at: number, by: Name, found: boolean }} Asked */
/** @typedef {{ at: number, by: Name, how: 'recorded' | 'recalled' }} Mark what was done with a step */
/**
 * @typedef {{
 *   by: Name, at: number, attempt: number, until: number, renewals: number[], end?: number,
 *   how?: 'kept' | 'freed' | 'expired', deadAt?: number
 * }} Lease
 */
/** @typedef {{ instance: Name, at: number, end?: number }} Down */

export class Story {
  /** @type {Sent[]} */ requests = []
  /** @type {Lease[]} */ leases = []
  /** @type {{ at: number, by: Name }[]} */ visits = []
  /** @type {Charge[]} */ charges = []
  /** @type {Asked[]} */ asked = []
  /** @type {Mark[]} */ steps = []
  /** @type {Down[]} */ downs = []

  /** The lease that has kept an answer. */
  get kept () {
    return this.leases.find(({ how }) => how === 'kept')
  }

  /** @param {Happening} happening */
  apply (happening) {
    const { at } = happening
    const lease = this.leases.at(-1)
    const of = () =>
      /** @type {Sent} */ (this.requests.find(({ request }) => 'request' in happening && request === happening.request))
    switch (happening.what) {
      case 'up':
        for (const down of this.downs) if (down.instance === happening.instance) down.end ??= at
        break
      case 'sent': {
        const { request, to, head, body } = happening
        this.requests.push({ request, nth: this.requests.length + 1, to, at, head, body, told: [] })
        break
      }
      case 'answered': {
        const { status, replayed, retryAfter, head, body } = happening
        Object.assign(of(), { end: at, answer: { status, replayed, retryAfter, head, body } })
        break
      }
      case 'lost':
        Object.assign(of(), { end: at, dead: happening.dead })
        break
      case 'runs':
        of().run = { at, attempt: happening.attempt }
        break
      case 'ran':
        Object.assign(of().run ?? {}, { end: at })
        break
      case 'told':
        of().told.push(happening.event)
        break
      case 'asked':
        of().found = happening.found
        this.asked.push({ at, by: happening.instance, found: happening.found })
        break
      case 'charged': {
        const charge = { at, by: happening.instance, id: happening.id, nth: this.charges.length + 1 }
        of().charge = charge
        this.charges.push(charge)
        break
      }
      case 'killed':
        Object.assign(of().run ?? {}, { end: at })
        this.#fall(happening.instance, at)
        break
      case 'down':
        for (const { to, run } of this.requests) if (to === happening.instance && run !== undefined) run.end ??= at
        this.#fall(happening.instance, at)
        break
      case 'claimed': {
        const by = happening.instance
        this.visits.push({ at, by })
        if (happening.outcome === 'acquired') {
          if (lease !== undefined && lease.end === undefined) Object.assign(lease, { end: lease.until, how: 'expired' })
          this.leases.push({ by, at, attempt: happening.attempt, until: happening.until, renewals: [] })
        } else {
          const asker = this.requests.find(({ to, end, held, run }) => to === by && end === undefined &&
            held === undefined && run === undefined)
          if (asker !== undefined && lease !== undefined) asker.held = lease
        }
        break
      }
      case 'renewed':
        if (lease?.by === happening.instance) {
          lease.renewals.push(at)
          lease.until = happening.until
        }
        break
      case 'recorded':
      case 'recalled':
        this.visits.push({ at, by: happening.instance })
        if (happening.what === 'recorded' || happening.steps.length > 0) {
          this.steps.push({ at, by: happening.instance, how: happening.what })
        }
        break
      case 'kept':
      case 'freed':
        this.visits.push({ at, by: happening.instance })
        if (lease?.by === happening.instance) Object.assign(lease, { end: at, how: happening.what })
        break
    }
  }

  /** An instance is dead: killed by a scene, or by somebody outside. @param {Name} instance @param {number} at */
  #fall (instance, at) {
    if (this.downs.some(down => down.instance === instance && down.end === undefined)) return
    this.downs.push({ instance, at })
    const lease = this.leases.at(-1)
    if (lease?.by === instance && lease.end === undefined) lease.deadAt = at
  }

  /** Whether something goes on that the picture grows with. @param {number} now */
  isLive (now) {
    return this.requests.some(({ end }) => end === undefined) ||
      this.leases.some(({ end, until }) => end === undefined && until > now) ||
      this.downs.some(({ end }) => end === undefined)
  }
}
