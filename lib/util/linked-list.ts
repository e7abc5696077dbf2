/** What a list links; it belongs to one list at a time. */
export interface Linked<T> { previous: T | undefined, next: T | undefined }

/** Items in the order in which they were added, any of which may leave at any time. */
export class LinkedList<T extends Linked<T>> {
  #first: T | undefined
  #last: T | undefined

  get first (): T | undefined {
    return this.#first
  }

  get last (): T | undefined {
    return this.#last
  }

  add (item: T): void {
    item.previous = this.#last
    if (this.#last === undefined) this.#first = item
    else this.#last.next = item
    this.#last = item
  }

  /** `false` where it is not there (any more). */
  delete (item: T): boolean {
    const { previous, next } = item
    if (previous === undefined && this.#first !== item) return false
    if (previous === undefined) this.#first = next
    else previous.next = next
    if (next === undefined) this.#last = previous
    else next.previous = previous
    item.previous = item.next = undefined
    return true
  }
}
