import { LinkedList, type Linked } from '../util/linked-list.ts'

/** What may take a time, and is told once it was over. */
export interface Timed<T> extends Linked<T> {
  /** When its time is over, by the monotonic clock. */
  readonly until: number
  expire (): void
}

/**
 * The deadlines of what is all given the same time, so that what is added first is over first. One timer serves them
 * all: nearly everything is answered long before, and a timer each would cost more than the rest of waiting.
 */
export class Deadlines<T extends Timed<T>> {
  readonly #items = new LinkedList<T>()
  #timer: NodeJS.Timeout | undefined

  add (item: T): void {
    this.#items.add(item)
    if (this.#timer === undefined) this.#start(item)
  }

  /** What came in time is not told. */
  delete (item: T): void {
    this.#items.delete(item)
  }

  #start ({ until }: T): void {
    // A process that was frozen runs its timers first: what has arrived meanwhile must still be read.
    this.#timer = setTimeout(() => setImmediate(() => this.#turn()), until - performance.now()).unref()
  }

  #turn (): void {
    try {
      this.#expire(performance.now())
    } finally {
      // Where one has thrown, the others are still to be told.
      this.#timer = undefined
      const { first } = this.#items
      if (first !== undefined) this.#start(first)
    }
  }

  #expire (now: number): void {
    for (let item = this.#items.first; item !== undefined && item.until <= now; item = this.#items.first) {
      this.#items.delete(item)
      item.expire()
    }
  }
}
