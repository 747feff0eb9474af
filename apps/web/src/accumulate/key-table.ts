// Keys as bytes, numbered in the order in which they are added: the sums of the accumulator are found by them. No
// insertion takes long, and V8's collector has no work with them: keys are in pages of plain memory that never move,
// and the hash table is split into small parts that double one at a time. Why a JavaScript Map would not do: DESIGN.md
// in this folder.
import { randomInt } from 'node:crypto'

const shardBits = 8
const shardCount = 2 ** shardBits
const firstSlots = 8

/**
 * A key is found within this many slots from its first one, or else in a Map. Of keys that spread by chance about one
 * in a million needs the Map; keys that somebody chose to collide meet V8's seeded hash there, and cost no more than in
 * any Map.
 */
const probesMax = 32

/** A key's number is its page's number and, in this many low bits, its place in the page. */
export const pageBits = 12

/** Keys per page. */
export const pageKeys = 2 ** pageBits

/**
 * Bytes of keys that a page has room for at first; a page of longer keys doubles it, to 1 MiB at most (4,096 keys of
 * 256 bytes).
 */
const pageBytes = 64 * 1024

/** Keys one behind the other: each begins where the one before ends. */
interface Page {
  bytes: Buffer
  readonly ends: Int32Array
  readonly hashes: Int32Array
}

/** No bytes, for a slice or columns that are not set yet. */
export const noBytes = Buffer.alloc(0)

/** Some bytes, [start, end) of a buffer. */
export interface Slice {
  bytes: Buffer
  start: number
  end: number
}

/** A set of keys. Each has a number, from 0 in the order in which they were put in; there is no removal but `clear`. */
export class KeyTable {
  readonly #pages: Page[] = []
  #size = 0
  /**
   * Each slot has a key's number, from 1, or 0; the low bits of its hash choose the shard, those above the first slot.
   */
  readonly #shards = Array<Int32Array | undefined>(shardCount).fill(undefined)
  /** How many slots of each shard are taken. */
  readonly #used = new Int32Array(shardCount)
  /** The numbers of a shard's keys that found all their slots taken. */
  readonly #colliding = Array<Map<string, number> | undefined>(shardCount).fill(undefined)

  /** How many keys it has. */
  get size (): number {
    return this.#size
  }

  /**
   * @returns the number, from 0, of the key that [start, end) of `bytes` is, which hash to `hash`; -1 if there is none
   */
  find (bytes: Buffer, start: number, end: number, hash: number): number {
    return this.#find(hash & (shardCount - 1), bytes, start, end, hash) - 1
  }

  /** The same, and puts the key in if there is none: then its number is what `size` was before. */
  put (bytes: Buffer, start: number, end: number, hash: number): number {
    const shard = hash & (shardCount - 1)
    const found = this.#find(shard, bytes, start, end, hash)
    if (found !== 0) return found - 1
    const index = this.#size++
    this.#append(index, bytes, start, end, hash)
    const slots = this.#shards[shard] ??= new Int32Array(firstSlots)
    this.#place(slots, shard, index + 1, hash)
    // Up to half full, nearly all keys are found within a few slots.
    if (this.#used[shard]! * 2 > slots.length) this.#double(slots, shard)
    return index
  }

  /** Sets `slice` to the bytes of key number `index`, which last until the next `put` or `clear`. */
  locate (index: number, slice: Slice): void {
    const page = this.#pages[index >>> pageBits]!
    slice.bytes = page.bytes
    slice.start = startOf(page, index & (pageKeys - 1))
    slice.end = page.ends[index & (pageKeys - 1)]!
  }

  /** Empties it, and keeps its memory for as many keys. */
  clear (): void {
    for (let index = 0; index < this.#size; index++) {
      const shard = this.#hashAt(index) & (shardCount - 1)
      if (this.#used[shard] === 0) continue
      this.#shards[shard]!.fill(0)
      this.#colliding[shard] = undefined
      this.#used[shard] = 0
    }
    this.#size = 0
  }

  #hashAt (index: number): number {
    return this.#pages[index >>> pageBits]!.hashes[index & (pageKeys - 1)]!
  }

  #append (index: number, bytes: Buffer, start: number, end: number, hash: number): void {
    const page = this.#pages[index >>> pageBits] ??= {
      bytes: Buffer.allocUnsafeSlow(pageBytes), ends: new Int32Array(pageKeys), hashes: new Int32Array(pageKeys),
    }
    const at = index & (pageKeys - 1)
    const from = startOf(page, at)
    const to = from + end - start
    if (to > page.bytes.length) {
      const larger = Buffer.allocUnsafeSlow(page.bytes.length * 2)
      larger.set(page.bytes)
      page.bytes = larger
    }
    for (let i = 0; i < end - start; i++) page.bytes[from + i] = bytes[start + i]!
    page.ends[at] = to
    page.hashes[at] = hash
  }

  /** @returns the key's number from 1, 0 if there is none */
  #find (shard: number, bytes: Buffer, start: number, end: number, hash: number): number {
    const slots = this.#shards[shard]
    if (slots === undefined) return 0
    const mask = slots.length - 1
    for (let probe = 0, slot = hash >>> shardBits; probe < probesMax; probe++, slot++) {
      const number = slots[slot & mask]!
      if (number === 0) return 0
      if (this.#hashAt(number - 1) === hash && this.#isAt(number - 1, bytes, start, end)) return number
    }
    return this.#colliding[shard]?.get(bytes.toString('latin1', start, end)) ?? 0
  }

  #isAt (index: number, bytes: Buffer, start: number, end: number): boolean {
    const page = this.#pages[index >>> pageBits]!
    const from = startOf(page, index & (pageKeys - 1))
    if (page.ends[index & (pageKeys - 1)]! - from !== end - start) return false
    let i = 0
    while (i < end - start && page.bytes[from + i] === bytes[start + i]) i++
    return i === end - start
  }

  #place (slots: Int32Array, shard: number, number: number, hash: number): void {
    const mask = slots.length - 1
    for (let probe = 0, slot = hash >>> shardBits; probe < probesMax; probe++, slot++) {
      if (slots[slot & mask] !== 0) continue
      slots[slot & mask] = number
      this.#used[shard]!++
      return
    }
    const key: Slice = { bytes: noBytes, start: 0, end: 0 }
    this.locate(number - 1, key)
    const colliding = this.#colliding[shard] ??= new Map<string, number>()
    colliding.set(key.bytes.toString('latin1', key.start, key.end), number)
  }

  /** All keys of the shard are placed again: where one of its slots is empty, a key must not be in the Map. */
  #double (slots: Int32Array, shard: number): void {
    const colliding = this.#colliding[shard]
    const doubled = this.#shards[shard] = new Int32Array(slots.length * 2)
    this.#colliding[shard] = undefined
    this.#used[shard] = 0
    for (const number of slots) {
      if (number !== 0) this.#place(doubled, shard, number, this.#hashAt(number - 1))
    }
    for (const number of colliding?.values() ?? []) this.#place(doubled, shard, number, this.#hashAt(number - 1))
  }
}

function startOf (page: Page, at: number): number {
  return at === 0 ? 0 : page.ends[at - 1]!
}

/**
 * FNV-1a (Fowler, Noll, Vo: prime 16777619; here from a random basis), one `hashByte` for each byte from `hashBasis`
 * on, and then `hashEnd`, MurmurHash3's last step (Appleby: fmix32): with a mere fold of the high bits, an addition
 * among a million keys took a tenth longer.
 */
export const hashBasis = randomInt(2 ** 32) | 0

/** The hash after one more byte. */
export function hashByte (hash: number, byte: number): number {
  return Math.imul(hash ^ byte, 0x01000193)
}

/** The hash of all bytes, once the last was added: any 32 bits. */
export function hashEnd (hash: number): number {
  let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35)
  return mixed ^ (mixed >>> 16)
}

/** The hash of [start, end) of `bytes`. Another in each process, so that nobody can choose keys that collide. */
export function hashOf (bytes: Buffer, start: number, end: number): number {
  let hash = hashBasis
  for (let at = start; at < end; at++) hash = hashByte(hash, bytes[at]!)
  return hashEnd(hash)
}
