// Batches from their first push until they are known to be stored. If the queue loses what it had, they are pushed again.
import { batchBytesMax, type Batch } from '@gearbox/queue/batch.ts'
import { has, type Sequences } from '@gearbox/queue/sequences.ts'

interface Unstored extends Batch {
  pushed: boolean
}

/** Batches that one replaying push takes at most; by bytes it takes about as many as one largest batch has. */
const groupBatchesMax = 256

export class Window {
  /** By sequence, in order. */
  readonly #batches = new Map<number, Unstored>()
  #bytes = 0

  get size (): number {
    return this.#batches.size
  }

  get bytes (): number {
    return this.#bytes
  }

  /** Increments in batches that were never known to be in the queue. */
  get unpushedIncrements (): number {
    return this.batches(true).reduce((sum, { increments }) => sum + increments, 0)
  }

  /** When the oldest increment in it was accepted, Unix ms; undefined if it is empty. */
  get oldestAt (): number | undefined {
    const { value } = this.#batches.values().next()
    return value?.at
  }

  add (batch: Batch): void {
    this.#batches.set(batch.seq, { ...batch, pushed: false })
    this.#bytes += batch.element.length
  }

  /** Whether a batch still has to be pushed: it was not yet, and is not known to be stored either. */
  needsPush (seq: number): boolean {
    return this.#batches.get(seq)?.pushed === false
  }

  markPushed (batches: readonly Batch[]): void {
    for (const { seq } of batches) {
      const batch = this.#batches.get(seq)
      if (batch !== undefined) batch.pushed = true
    }
  }

  hasPushed (): boolean {
    const { value } = this.#batches.values().next()
    return value?.pushed === true
  }

  /** Drops exactly the sequences that are stored: never all below some number, for there may be gaps. */
  dropStored (stored: Sequences): void {
    for (const seq of this.#batches.keys()) {
      if (seq > stored.high) break
      if (has(stored, seq)) this.#drop(seq)
    }
  }

  /** Lets the oldest pushed batches go until it has at most `bytes`. @returns how many went */
  trim (bytes: number): number {
    let dropped = 0
    for (const [seq, { pushed }] of this.#batches) {
      if (this.#bytes <= bytes || !pushed) break
      this.#drop(seq)
      dropped++
    }
    return dropped
  }

  /** All batches in order, in groups that can be pushed at once. */
  * groups (): Generator<Batch[]> {
    let group: Batch[] = []
    let bytes = 0
    for (const batch of [...this.#batches.values()]) {
      if (group.length === groupBatchesMax || (group.length > 0 && bytes + batch.element.length > batchBytesMax)) {
        yield group
        group = []
        bytes = 0
      }
      // It may have become known as stored since the first group.
      if (!this.#batches.has(batch.seq)) continue
      group.push(batch)
      bytes += batch.element.length
    }
    if (group.length > 0) yield group
  }

  /** Its batches in order; with `unpushedOnly` those that were never known to be in the queue. */
  batches (unpushedOnly: boolean): Batch[] {
    return [...this.#batches.values()].filter(({ pushed }) => !pushed || !unpushedOnly)
  }

  #drop (seq: number): void {
    this.#bytes -= this.#batches.get(seq)?.element.length ?? 0
    this.#batches.delete(seq)
  }
}
