// @ts-check
/** Which action stands out: one after each scene, so that a visitor can follow them all. */

/** After a scene, by the name of its button; `ask` is a switch. @type {Record<string, string>} */
const AFTER = {
  pay: 'retry',
  retry: 'elsewhere',
  elsewhere: 'change',
  change: 'double',
  double: 'lose',
  lose: 'fail',
  fail: 'before',
  before: 'after',
  step: 'ask'
}

/**
 * @param {string | undefined} last the newest scene
 * @param {{ used: boolean, asked: boolean, without: boolean, ask: boolean }} page
 *   whether this payment was sent, whether the newest scene was played with `ask` on, and the switches
 */
export function nextOf (last, { used, asked, without, ask }) {
  if (without) return used ? 'without' : 'lose'
  // The same kill three times: alone, in a step, and with a look before the leap.
  if (last === 'after') return asked ? 'without' : ask ? 'after' : 'step'
  if (last === 'step' && ask) return asked ? 'without' : 'after'
  // What is sent again needs something that was sent.
  return used ? AFTER[last ?? ''] ?? 'pay' : 'pay'
}
