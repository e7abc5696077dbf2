/** One pair of fresh processes, one for each build, on one core at once and loaded in turn, in short slices. */

/** One side, at work. */
export interface Side {
  /** Does so much of its work, in seconds or requests. CPU time per request in µs. */
  run: (amount: number) => Promise<number>
  stop: () => Promise<void>
}

export interface Method {
  /** How it is said in a result. */
  effort: string
  /** What each side does before anything counts, and in each slice. */
  warmUp: number
  slice: number
  /** Many and short: what else happens on the machine lasts longer, and falls on neighbouring slices of both sides. */
  slices: number
}

/** CPU time per request in µs of the sides, slice by slice. `order`: 1 for the other side first. */
export async function measurePair (
  starts: Array<() => Promise<Side>>, { warmUp, slice, slices }: Method, order: number
): Promise<number[][]> {
  const sides: Array<Side & { costs: number[] }> = []
  try {
    for (const start of starts) sides.push({ ...await start(), costs: [] })
    for (const { run } of sides) await run(warmUp)
    for (let round = 0; round < slices; round++) {
      for (const { run, costs } of (round + order) % 2 === 0 ? sides : [...sides].reverse()) {
        costs.push(await run(slice))
      }
    }
  } finally {
    await Promise.all(sides.map(async ({ stop }) => { await stop() }))
  }
  return sides.map(({ costs }) => costs)
}
