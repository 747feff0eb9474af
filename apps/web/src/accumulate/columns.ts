// What a body says, in columns: no object and no string a pair. Filled by the form, read by the accumulator.
import { add, type Sum } from '@gearbox/protocol/batch.ts'
import { noBytes } from './key-table.ts'

export interface Increment {
  readonly key: string
  readonly delta: Sum
}

const firstCapacity = 1024

/** Pairs in their order. Pair `i` adds `deltas[i]` to the key that bytes [starts[i], ends[i]) are, UTF-8, which hash to `hashes[i]`. */
export class IncrementColumns {
  bytes: Buffer = noBytes
  length = 0
  starts = new Int32Array(firstCapacity)
  ends = new Int32Array(firstCapacity)
  hashes = new Int32Array(firstCapacity)
  readonly deltas: Sum[] = []
  /** Whether all deltas are numbers. */
  areNumbers = true

  /** Makes it empty. @param bytes where the keys of what comes lie */
  begin (bytes: Buffer): void {
    this.bytes = bytes
    this.length = 0
    this.areNumbers = true
  }

  push (start: number, end: number, hash: number, delta: Sum): void {
    const i = this.length++
    if (i === this.starts.length) this.#double()
    this.starts[i] = start
    this.ends[i] = end
    this.hashes[i] = hash
    this.deltas[i] = delta
    if (typeof delta !== 'number') this.areNumbers = false
  }

  keyAt (i: number): string {
    return this.bytes.toString('utf8', this.starts[i], this.ends[i])
  }

  keys (): string[] {
    return Array.from({ length: this.length }, (_, i) => this.keyAt(i))
  }

  /** The sum a key. */
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
