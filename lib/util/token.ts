import { randomUUID } from 'node:crypto'

/** Tokens that share the random part before they get a new one, as Node.js makes as many UUIDs of one draw. */
const SHARED = 128

/** The end of each token, by its number: made once. */
const ENDS = Array.from({ length: SHARED }, (_, number) => (number + 0x100).toString(16))

let random = ''
let count = SHARED

/**
 * A token that no other claim has, in the form of a UUID. Making each from random bytes would cost a kilobyte of
 * short-lived strings.
 */
export function newToken (): string {
  if (count === SHARED) {
    random = randomUUID().slice(0, -3)
    count = 0
  }
  return random + (ENDS[count++] as string)
}
