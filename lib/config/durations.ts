import { parse } from '@lukeed/ms'
import type { Rule } from './rules.ts'

/** The longest delay that Node.js's timers know. */
export const MAX_TIMER = 2 ** 31 - 1
/** 278 years; what is added to the time of day stays exact. */
export const MAX_TTL = 2 ** 43

/** Whole milliseconds from a number, or from text with a unit; the library would take a bare '10' for milliseconds. */
function milliseconds (value: unknown): number | undefined {
  const hasUnit = typeof value === 'string' && /[a-z]$/i.test(value)
  const ms = hasUnit ? parse(value) : value
  return Number.isSafeInteger(ms) ? ms as number : undefined
}

/** The rule of a duration from `min` to `max` milliseconds. */
export function duration (min: number, max: number): Rule<number> {
  return {
    read: value => {
      const ms = milliseconds(value)
      return ms === undefined || ms < min || ms > max ? undefined : ms
    },
    want: `whole milliseconds from ${min} to ${max}, or text with a unit, such as '500ms', '30s' or '24h'`
  }
}
