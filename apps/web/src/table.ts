// A map from strings in the order of their coming, none of whose insertions takes long: what the accumulator keeps its many entries in.
// A JavaScript Map would not do, for two reasons: it doubles by copying itself in one go (95 ms on the way past 524,288 entries), and it
// interns every key that it is asked for in V8's own table of strings, which doubles in one go as well (20 ms at 688,000 distinct keys,
// in one Map or many). Here entries are kept in pages that never move, and what finds them is split into small parts that double one
// at a time.
import { randomInt } from 'node:crypto'

const shardBits = 8
const shardCount = 2 ** shardBits
const firstSlots = 8

/**
 * A key is found within so many slots of its own, or else in a Map. Keys that spread by chance never need that; keys that somebody
 * chose to collide meet V8's seeded hash there, and cost no more than in any Map.
 */
const probesMax = 32

/** Entries that lie together. */
interface Page<V> {
  readonly keys: string[]
  readonly values: V[]
}

const pageBits = 12
const pageEntries = 2 ** pageBits

export class Table<V> {
  readonly #pages: Array<Page<V>> = []
  #size = 0
  /** Each slot has the number of an entry, from 1, or 0; the low bits of a key's hash choose the shard, those above the first slot. */
  readonly #shards: Array<Int32Array | undefined> = Array<Int32Array | undefined>(shardCount).fill(undefined)
  readonly #used = new Int32Array(shardCount)
  readonly #colliding = new Map<string, number>()

  get size (): number {
    return this.#size
  }

  get (key: string): V | undefined {
    const hash = hashOf(key)
    const slots = this.#shards[hash & (shardCount - 1)]
    const entry = slots === undefined ? 0 : this.#find(slots, key, hash)
    return entry === 0 ? undefined : this.#pageOf(entry).values[indexOf(entry)]
  }

  /** The entry that came as number `index` from 0; undefined if there are not so many. */
  at (index: number): readonly [key: string, value: V] | undefined {
    if (index >= this.#size) return undefined
    const { keys, values } = this.#pageOf(index + 1)
    return [keys[indexOf(index + 1)]!, values[indexOf(index + 1)]!]
  }

  /**
   * Puts `value` in, or what `merge` makes of the value that is there and it.
   * @returns whether the key is new
   */
  put (key: string, value: V, merge: (old: V, value: V) => V): boolean {
    const hash = hashOf(key)
    const shard = hash & (shardCount - 1)
    const slots = this.#shards[shard] ??= new Int32Array(firstSlots)
    const entry = this.#find(slots, key, hash)
    if (entry !== 0) {
      const { values } = this.#pageOf(entry)
      values[indexOf(entry)] = merge(values[indexOf(entry)]!, value)
      return false
    }
    if (indexOf(this.#size + 1) === 0) this.#pages.push({ keys: [], values: [] })
    this.#size++
    const { keys, values } = this.#pageOf(this.#size)
    keys.push(key)
    values.push(value)
    this.#place(slots, this.#size, hash)
    // Up to half full, nearly all keys are found within a few slots.
    if (++this.#used[shard]! * 2 > slots.length) this.#shards[shard] = this.#doubled(slots)
    return true
  }

  #pageOf (entry: number): Page<V> {
    return this.#pages[(entry - 1) >>> pageBits]!
  }

  #keyOf (entry: number): string {
    return this.#pageOf(entry).keys[indexOf(entry)]!
  }

  /** @returns the key's entry, 0 if there is none */
  #find (slots: Int32Array, key: string, hash: number): number {
    const mask = slots.length - 1
    for (let probe = 0, slot = hash >>> shardBits; probe < probesMax; probe++, slot++) {
      const entry = slots[slot & mask]!
      if (entry === 0) break
      if (this.#keyOf(entry) === key) return entry
    }
    return this.#colliding.size === 0 ? 0 : this.#colliding.get(key) ?? 0
  }

  #place (slots: Int32Array, entry: number, hash: number): void {
    const mask = slots.length - 1
    for (let probe = 0, slot = hash >>> shardBits; probe < probesMax; probe++, slot++) {
      if (slots[slot & mask] !== 0) continue
      slots[slot & mask] = entry
      return
    }
    this.#colliding.set(this.#keyOf(entry), entry)
  }

  #doubled (slots: Int32Array): Int32Array {
    const doubled = new Int32Array(slots.length * 2)
    for (const entry of slots) {
      if (entry !== 0) this.#place(doubled, entry, hashOf(this.#keyOf(entry)))
    }
    return doubled
  }
}

function indexOf (entry: number): number {
  return (entry - 1) & (pageEntries - 1)
}

const seed = randomInt(2 ** 32)

/** FNV-1a over UTF-16 units (Fowler, Noll, Vo: prime 16777619; here from a random basis), folded, as its low bits are the weaker. */
export function hashOf (key: string): number {
  let hash = seed
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193)
  return hash ^ (hash >>> 15)
}
