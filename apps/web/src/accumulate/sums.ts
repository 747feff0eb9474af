// Key → sum, exact whatever the sums become, for very many keys: doubles in plain memory, and bigints only past 2^53.
// The accumulator adds to it, and reads it when it is drained.
import { add, type Sum } from '@gearbox/protocol/int64.ts'
import { KeyTable, pageBits, pageKeys, type Slice } from './key-table.ts'

/**
 * Estimated bytes of a key in addition to its text: 8 for its sum, 8 for its place in a page, up to 16 for its slots,
 * and as many again for unused room in its page.
 */
export const keyOverheadBytes = 48

/** With more keys than this its memory is freed, rather than kept for the next ones. */
const keptMax = pageKeys

/** Exact sums per key. Keys are numbered from 0 in the order in which they were added. */
export class Sums {
  readonly #keys = new KeyTable()
  /** NaN where the sum is in `#exact`. */
  readonly #values: Float64Array[] = []
  readonly #exact = new Map<number, bigint>()

  /** Distinct keys. */
  get size (): number {
    return this.#keys.size
  }

  /** Whether it has the key that [start, end) of `bytes` is, whose `hashOf` is `hash`. */
  has (bytes: Buffer, start: number, end: number, hash: number): boolean {
    return this.#keys.find(bytes, start, end, hash) >= 0
  }

  /** Adds to the sum of the key that [start, end) of `bytes` is. @returns whether the key is new */
  add (bytes: Buffer, start: number, end: number, hash: number, delta: Sum): boolean {
    const known = this.#keys.size
    const index = this.#keys.put(bytes, start, end, hash)
    const page = this.#values[index >>> pageBits] ??= new Float64Array(pageKeys)
    const isNew = index === known
    if (isNew) page[index & (pageKeys - 1)] = 0
    const sum = typeof delta === 'number' ? page[index & (pageKeys - 1)]! + delta : NaN
    if (Number.isSafeInteger(sum)) page[index & (pageKeys - 1)] = sum
    else this.#set(index, add(this.sumAt(index), delta))
    return isNew
  }

  /** The sum of key number `index`. */
  sumAt (index: number): Sum {
    const sum = this.#values[index >>> pageBits]![index & (pageKeys - 1)]!
    return Number.isNaN(sum) ? this.#exact.get(index)! : sum
  }

  /** Sets `slice` to the bytes of key number `index`, which last until the next `add` or `clear`. */
  locate (index: number, slice: Slice): void {
    this.#keys.locate(index, slice)
  }

  /** Empties it for its next use. @returns false if it is too large to be kept for that: then nothing changed */
  clear (): boolean {
    if (this.size > keptMax) return false
    this.#keys.clear()
    this.#exact.clear()
    return true
  }

  #set (index: number, sum: Sum): void {
    this.#values[index >>> pageBits]![index & (pageKeys - 1)] = typeof sum === 'number' ? sum : NaN
    if (typeof sum === 'number') this.#exact.delete(index)
    else this.#exact.set(index, sum)
  }
}
