/** What a table holds; it belongs to one table at a time. */
export interface Keyed<T> { readonly storeKey: string, /** The table's own. */ next: T | undefined }

const BUCKETS = 4_096

/**
 * Short-lived objects by their store key. A Map would do, but V8's leaves each table that it
 * has outgrown linked to the next: one that has reached the old generation keeps all that
 * follow alive, with every request in them, until the next major collection.
 */
export class KeyTable<T extends Keyed<T>> {
  readonly #buckets: Array<T | undefined> = new Array<T | undefined>(BUCKETS).fill(undefined)
  #size = 0

  get (storeKey: string): T | undefined {
    let item = this.#buckets[bucketOf(storeKey)]
    while (item !== undefined && item.storeKey !== storeKey) item = item.next
    return item
  }

  add (item: T): void {
    const bucket = bucketOf(item.storeKey)
    item.next = this.#buckets[bucket]
    this.#buckets[bucket] = item
    this.#size++
  }

  /** `item` must be there. */
  delete (item: T): void {
    const bucket = bucketOf(item.storeKey)
    const first = this.#buckets[bucket] as T
    if (first === item) {
      this.#buckets[bucket] = item.next
    } else {
      let before = first
      while (before.next !== item) before = before.next as T
      before.next = item.next
    }
    item.next = undefined
    this.#size--
  }

  /** Visits all; the one that is visited may be deleted. */
  forEach (visit: (item: T) => void): void {
    if (this.#size === 0) return
    for (const first of this.#buckets) {
      for (let item = first; item !== undefined;) {
        const { next } = item
        visit(item)
        item = next
      }
    }
  }
}

/** A key's end is a hash already (fingerprint.ts); keys of another form share buckets, at worst. */
function bucketOf (storeKey: string): number {
  const { length } = storeKey
  return (
    storeKey.charCodeAt(length - 1) + storeKey.charCodeAt(length - 2) * 31 + storeKey.charCodeAt(length - 3) * 997
  ) & (BUCKETS - 1)
}
