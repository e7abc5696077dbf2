// @ts-check
/** From time to place: the time line stands still while nothing happens. */

/** ms of idle time that are left out, ms that are drawn before that, and px of the gap that stands for them. */
const IDLE = 1_600
const TAIL = 600
const GAP = 30

/**
 * @param {Array<[from: number, to: number]>} spans in which something happens
 * @param {number} scale px for a second
 * @param {number} left px
 */
export function createAxis (spans, scale, left) {
  /** @type {Array<{ from: number, to: number, x: number }>} */
  const periods = []
  let x = left
  for (const [from, to] of spans.sort(([a], [b]) => a - b)) {
    const last = periods.at(-1)
    if (last !== undefined && from <= last.to - TAIL + IDLE) {
      last.to = Math.max(last.to, to + TAIL)
    } else {
      if (last !== undefined) x = last.x + (last.to - last.from) / 1000 * scale + GAP
      periods.push({ from, to: to + TAIL, x })
    }
  }
  /** @param {number} at */
  const place = at => {
    const period = periods.findLast(({ from }) => from <= at) ?? periods[0]
    if (period === undefined) return left
    return period.x + Math.max(0, Math.min(at, period.to) - period.from) / 1000 * scale
  }
  const last = periods.at(-1)
  return {
    place,
    periods,
    gaps: periods.slice(1).map(({ x }) => ({ x: x - GAP, width: GAP })),
    end: last === undefined ? left : place(last.to)
  }
}
