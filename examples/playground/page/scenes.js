// @ts-check
/** What the client does at each button. */

/** @typedef {import('../events.ts').Answer} Answer */
/** @typedef {import('../events.ts').Fault} Fault */
/** @typedef {import('../events.ts').Name} Name */

/**
 * `step`: the handler charges in a step.
 * @typedef {{
 *   order: string, key: string | undefined, amount: number, paid: boolean, used: boolean, step: boolean
 * }} Payment
 */

/** ms that a client waits before it tries again. */
const PAUSE = 500
/** @param {number} ms */
const sleep = async ms => await new Promise(resolve => setTimeout(resolve, ms))

/** Letters and digits that cannot be taken for another. */
const LETTERS = '23456789ABCDEFGHJKLMNPQRSTUVWXYZ'
const AMOUNT = 4200

/** @param {boolean} withKey @returns {Payment} */
export function createPayment (withKey) {
  const order = Array.from(crypto.getRandomValues(new Uint8Array(4)), byte => LETTERS[byte % LETTERS.length]).join('')
  return {
    order, key: withKey ? crypto.randomUUID() : undefined, amount: AMOUNT, paid: false, used: false, step: false
  }
}

/** @param {number} cents */
export const money = cents => `€${(cents / 100).toFixed(2)}`

/**
 * @param {object} stage
 * @param {() => Payment} stage.payment the one that is on the page
 * @param {() => void} stage.anew puts a new one there
 * @param {() => boolean} stage.ask
 */
export function createScenes ({ payment, anew, ask }) {
  /** @param {Name} to @param {{ fault?: Fault, amount?: number }} [more] @returns {Promise<Answer>} */
  async function send (to, { fault, amount } = {}) {
    const now = payment()
    now.used = true
    const { order, key, step } = now
    const body = JSON.stringify({ order, amount: amount ?? now.amount })
    const response = await fetch('/playground/requests', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ order, to, key, body, fault, ask: ask(), step })
    })
    const answer = await response.json()
    if (answer.status === 201) now.paid = true
    return answer
  }

  /** As a client should: it waits as long as it is told to. @param {Name} to */
  async function sendUntilAnswered (to) {
    for (;;) {
      const { status, retryAfter } = await send(to)
      if (status !== 409) return
      await sleep(retryAfter * 1000)
    }
  }

  /** @param {Fault} fault @param {Name} next @param {boolean} [step] */
  async function failThenRetry (fault, next, step = false) {
    if (payment().used) anew()
    payment().step = step
    await send('a', { fault })
    await sleep(PAUSE)
    await sendUntilAnswered(next)
  }

  async function first () {
    if (payment().paid) return
    await sendUntilAnswered('a')
    await sleep(PAUSE)
  }

  /** @type {Record<string, () => Promise<unknown>>} */
  const scenes = {
    async pay () {
      if (payment().used) anew()
      await send('a')
    },
    async anew () {
      anew()
    },
    async retry () {
      await first()
      await send('a')
    },
    async elsewhere () {
      await first()
      await send('b')
    },
    async change () {
      await first()
      await send('a', { amount: 9900 })
    },
    async double () {
      if (payment().used) anew()
      await Promise.all([sendUntilAnswered('a'), sendUntilAnswered('b')])
    },
    lose: async () => await failThenRetry('lose', 'a'),
    fail: async () => await failThenRetry('fail', 'a'),
    before: async () => await failThenRetry('die-before', 'b'),
    after: async () => await failThenRetry('die-after', 'b'),
    step: async () => await failThenRetry('die-after', 'b', true)
  }
  return scenes
}
