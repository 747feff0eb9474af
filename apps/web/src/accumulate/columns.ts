// The pairs of a request's body in columns, without an object or a string per pair. Filled by the form, read by the
// accumulator.
import { add, type Sum } from '@gearbox/protocol/int64.ts'
import { noBytes } from './key-table.ts'

/** One pair, as the slow methods of IncrementColumns and tests have it. */
export interface Increment {
  readonly key: string
  readonly delta: Sum
}

const firstCapacity = 1024

/**
 * Pairs in their order. Pair `i` adds `deltas[i]` to a key: the bytes [starts[i], ends[i]), in UTF-8, whose `hashOf` is
 * `hashes[i]`. One object is used for every body: whoever gets it must not keep it.
 */
export class IncrementColumns {
  bytes: Buffer = noBytes
  length = 0
  starts = new Int32Array(firstCapacity)
  ends = new Int32Array(firstCapacity)
  hashes = new Int32Array(firstCapacity)
  readonly deltas: Sum[] = []
  /** Whether all deltas are numbers. */
  areNumbers = true

  /** Empties it. @param bytes that the keys of the next pairs are in */
  begin (bytes: Buffer): void {
    this.bytes = bytes
    this.length = 0
    this.areNumbers = true
  }

  /** Appends a pair. */
  append (start: number, end: number, hash: number, delta: Sum): void {
    const i = this.length++
    if (i === this.starts.length) this.#double()
    this.starts[i] = start
    this.ends[i] = end
    this.hashes[i] = hash
    this.deltas[i] = delta
    if (typeof delta !== 'number') this.areNumbers = false
  }

  /** The key of pair `i` as a string. */
  keyAt (i: number): string {
    return this.bytes.toString('utf8', this.starts[i], this.ends[i])
  }

  /** The keys of all pairs as strings: with repeats, in their order. */
  keys (): string[] {
    return Array.from({ length: this.length }, (_, i) => this.keyAt(i))
  }

  /** The exact sum per key. */
  sums (): Map<string, Sum> {
    const sums = new Map<string, Sum>()
    for (const { key, delta } of this) sums.set(key, add(sums.get(key) ?? 0, delta))
    return sums
  }

  * [Symbol.iterator] (): Generator<Increment, void> {
    for (let i = 0; i < this.length; i++) yield { key: this.keyAt(i), delta: this.deltas[i]! }
  }

  #double (): void {
    for (const column of ['starts', 'ends', 'hashes'] as const) {
      const doubled = new Int32Array(this[column].length * 2)
      doubled.set(this[column])
      this[column] = doubled
    }
  }
}
