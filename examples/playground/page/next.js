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
  before: 'after'
}

/**
 * @param {string | undefined} last the newest scene
 * @param {{ used: boolean, without: boolean, ask: boolean }} page whether this payment was sent, and the switches
 */
export function nextOf (last, { used, without, ask }) {
  if (without) return used ? 'without' : 'lose'
  if (last === 'after') return !ask ? 'ask' : used ? 'without' : 'after'
  // What is sent again needs something that was sent.
  return used ? AFTER[last ?? ''] ?? 'pay' : 'pay'
}
