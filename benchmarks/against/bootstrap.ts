import { spread } from '../spread.ts'

/** What several pairs of processes say together. */
export interface Estimate {
  median: number
  /** Nineteen of twenty medians of as many pairs, drawn again from these, lie between them. */
  low: number
  high: number
}

const DRAWS = 10_000

export const medianOf = (values: number[]): number => spread(values).median

export function estimate (values: number[]): Estimate {
  const medians = Array.from({ length: DRAWS }, () =>
    medianOf(values.map(() => values[Math.floor(Math.random() * values.length)] ?? NaN)))
  medians.sort((a, b) => a - b)
  const at = (share: number): number => medians[Math.floor(share * (DRAWS - 1))] ?? NaN
  return { median: medianOf(values), low: at(0.025), high: at(0.975) }
}
