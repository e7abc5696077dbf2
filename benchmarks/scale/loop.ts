/** How long the event loop of this process stood still, and how much of that was the garbage collector's. */
import {
  monitorEventLoopDelay, PerformanceObserver, type IntervalHistogram, type PerformanceEntry
} from 'node:perf_hooks'

export interface Loop {
  seconds: number
  /** `monitorEventLoopDelay` at a resolution of 1 ms; ms. */
  delay: { min: number, p50: number, p99: number, p999: number, max: number }
  /**
   * The longest turns of the loop; ms. `gc`: the collector's part; `cpu`: what the process (all threads) could use of
   * it.
   */
  longest: Turn
  /**
   * The turn in which this process itself worked longest: without the collector's part, and no more than the CPU it
   * used.
   */
  longestOwn: Turn
  /**
   * Turns over 20 ms: all, those that are as long without the collector's part, and those with as much work of the
   * process itself.
   */
  over20: number
  over20WithoutGc: number
  ownOver20: number
  gc: { pauses: number, total: number, longestMinor: number, longestMajor: number }
}
export interface Turn { wall: number, gc: number, cpu: number }

type Collection = PerformanceEntry & { detail: { kind: number } }

/** A busy machine makes a turn long, too: what it takes is not counted. */
export const own = ({ wall, gc, cpu }: Turn): number => Math.min(wall - gc, cpu)

interface Gap { from: number, to: number, cpu: number }
const MINOR = 1
const NONE: Turn = { wall: 0, gc: 0, cpu: 0 }

export class LoopWatch {
  readonly #histogram: IntervalHistogram = monitorEventLoopDelay({ resolution: 1 })
  readonly #collections: PerformanceEntry[] = []
  readonly #gaps: Gap[] = []
  readonly #observer = new PerformanceObserver(list => this.#collections.push(...list.getEntries()))
  readonly #started = performance.now()
  #last = performance.now()
  #cpu = cpu()
  readonly #clock: NodeJS.Timeout

  constructor () {
    this.#observer.observe({ entryTypes: ['gc'] })
    this.#histogram.enable()
    // A timer, not each turn: a loop without work must still rest.
    this.#clock = setInterval(this.#next, 1)
  }

  #next = (): void => {
    const now = performance.now()
    const used = cpu()
    if (now - this.#last > 3) this.#gaps.push({ from: this.#last, to: now, cpu: (used - this.#cpu) / 1_000 })
    this.#last = now
    this.#cpu = used
  }

  async stop (): Promise<Loop> {
    // The turn under way counts.
    await new Promise(resolve => setTimeout(resolve, 2))
    clearInterval(this.#clock)
    this.#histogram.disable()
    await new Promise(resolve => setTimeout(resolve, 20))
    this.#collections.push(...this.#observer.takeRecords())
    this.#observer.disconnect()
    const histogram = this.#histogram
    const delay = (share: number): number => histogram.percentile(share) / 1e6
    const turns = this.#gaps.map(({ from, to, cpu }): Turn => ({ wall: to - from, gc: this.#collected(from, to), cpu }))
    const isMinor = (entry: PerformanceEntry): boolean => (entry as Collection).detail.kind === MINOR
    const kinds = (minor: boolean): number =>
      Math.max(0, ...this.#collections.filter(entry => isMinor(entry) === minor).map(({ duration }) => duration))
    return {
      seconds: (this.#last - this.#started) / 1_000,
      delay: { min: histogram.min / 1e6, p50: delay(50), p99: delay(99), p999: delay(99.9), max: histogram.max / 1e6 },
      longest: turns.reduce((most, turn) => turn.wall > most.wall ? turn : most, NONE),
      longestOwn: turns.reduce((most, turn) => own(turn) > own(most) ? turn : most, NONE),
      over20: turns.filter(({ wall }) => wall > 20).length,
      over20WithoutGc: turns.filter(({ wall, gc }) => wall - gc > 20).length,
      ownOver20: turns.filter(turn => own(turn) > 20).length,
      gc: {
        pauses: this.#collections.length,
        total: this.#collections.reduce((sum, { duration }) => sum + duration, 0),
        longestMinor: kinds(true),
        longestMajor: kinds(false)
      }
    }
  }

  #collected (from: number, to: number): number {
    const within = ({ startTime, duration }: PerformanceEntry): number =>
      Math.max(0, Math.min(to, startTime + duration) - Math.max(from, startTime))
    return this.#collections.reduce((sum, entry) => sum + within(entry), 0)
  }
}

/** Microseconds of CPU that this process has used. */
export function cpu (): number {
  const { user, system } = process.cpuUsage()
  return user + system
}
