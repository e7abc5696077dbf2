import { spread } from '../spread.ts'

export const median = (values: number[]): number => spread(values).median

export function quantile (values: number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(Math.floor(sorted.length * share), sorted.length - 1)] ?? NaN
}

export const count = (value: number): string => Math.round(value).toLocaleString('en')
export const ms = (value: number): string => `${value.toFixed(value < 100 ? 1 : 0)} ms`

/** A figure that is not what it must be makes all others worthless. */
export function verify (holds: boolean, what: string, found?: unknown): asserts holds {
  if (!holds) throw new Error(`${what}${found === undefined ? '' : `; found ${JSON.stringify(found)}`}`)
}
