/**
 * Finds positions by key, in numbers alone: nothing of it is the garbage collector's to visit.
 * Open addressing, in shards that grow on their own, so that no growth takes long.
 */
const SHARDS = 64
const CAPACITY = 16
/** Bytes of one slot; a shard is half to three quarters full. */
export const SLOT_BYTES = 12

interface Shard { hashes: Uint32Array, /** Position + 1; 0 is an empty slot. */ places: Float64Array, used: number }

export class KeyIndex {
  readonly #shards = new Array<Shard | undefined>(SHARDS).fill(undefined)
  readonly #isAt: (position: number, key: string) => boolean

  /** `isAt` tells whether the record at a position is that of a key: two keys may have one hash. */
  constructor (isAt: (position: number, key: string) => boolean) {
    this.#isAt = isAt
  }

  /** Where the record of `key` is, or -1. */
  find (hash: number, key: string): number {
    const shard = this.#shards[hash % SHARDS]
    if (shard === undefined) return -1
    const { hashes, places } = shard
    const mask = places.length - 1
    for (let slot = home(hash, mask); places[slot] !== 0; slot = (slot + 1) & mask) {
      if (hashes[slot] === hash && this.#isAt(places[slot] as number - 1, key)) return places[slot] as number - 1
    }
    return -1
  }

  /** Adds a key that is not there. */
  add (hash: number, position: number): void {
    const shard = this.#shardOf(hash)
    if (++shard.used > shard.places.length * 0.75) grow(shard)
    put(shard, hash, position + 1)
  }

  /** Removes what is at `position`; `false` if nothing there is known (any more). */
  delete (hash: number, position: number): boolean {
    const shard = this.#shardOf(hash)
    const { hashes, places } = shard
    const mask = places.length - 1
    let hole = home(hash, mask)
    while (places[hole] !== position + 1) {
      if (places[hole] === 0) return false
      hole = (hole + 1) & mask
    }
    // Whoever was pushed on by this one moves up, so that no search ends early.
    for (let slot = (hole + 1) & mask; places[slot] !== 0; slot = (slot + 1) & mask) {
      if (((slot - home(hashes[slot] as number, mask)) & mask) < ((slot - hole) & mask)) continue
      hashes[hole] = hashes[slot] as number
      places[hole] = places[slot] as number
      hole = slot
    }
    places[hole] = 0
    shard.used--
    return true
  }

  #shardOf (hash: number): Shard {
    const shard = this.#shards[hash % SHARDS] ?? shardOf(CAPACITY)
    this.#shards[hash % SHARDS] = shard
    return shard
  }
}

function home (hash: number, mask: number): number {
  return (hash >>> 6) & mask
}

function shardOf (capacity: number): Shard {
  return { hashes: new Uint32Array(capacity), places: new Float64Array(capacity), used: 0 }
}

function put ({ hashes, places }: Shard, hash: number, place: number): void {
  const mask = places.length - 1
  let slot = home(hash, mask)
  while (places[slot] !== 0) slot = (slot + 1) & mask
  hashes[slot] = hash
  places[slot] = place
}

function grow (shard: Shard): void {
  const { hashes, places } = shard
  Object.assign(shard, shardOf(places.length * 2), { used: shard.used })
  for (let slot = 0; slot < places.length; slot++) {
    if (places[slot] !== 0) put(shard, hashes[slot] as number, places[slot] as number)
  }
}
