// Batches from their first push until they are known to be stored. If the queue loses what it had, they are pushed again:
// all of them where it is another queue than before, and else those that a report or an empty queue shows to be lost.
import { batchBytesMax, type Batch } from '@gearbox/protocol/batch.ts'
import { has, type Sequences } from '@gearbox/protocol/sequences.ts'

interface Unstored extends Batch {
  pushed: boolean
  /** Whether it was pushed and the queue has lost it since. */
  lost: boolean
  /** Whether it was pushed again because it was lost. */
  refilled: boolean
}

/** What of the queue was seen when progress was polled. */
export interface Sight {
  /** When it was asked and when it had answered, ms of performance.now. */
  readonly askedAt: number
  readonly answeredAt: number
  /** Batches that waited in it. */
  readonly length: number
  /** `lastPushed` when it was asked. */
  readonly lastPushed: number
}

/**
 * The loss of a queue's tail leaves no gap. It shows where the queue is empty at two polls this far apart, and what was pushed before the
 * first is not reported as stored at the second: a report follows a batch's removal within milliseconds.
 */
const emptyForMs = 900

/** What was pushed again once may be waiting for a report that does not come. Only a queue that is empty this long has surely lost it again. */
const emptyAgainForMs = 30_000

/** Batches that one replaying push takes at most; by bytes it takes about as many as one largest batch has. */
const groupBatchesMax = 256

export class Window {
  /** By sequence, in order. */
  readonly #batches = new Map<number, Unstored>()
  #bytes = 0
  #lost = 0
  #lastPushed = 0
  /** Up to where gaps have been looked through. */
  #reportedTo = 0
  /** Since when every poll has found the queue empty, and the last of these polls. */
  #empty: { readonly since: number, readonly at: number, readonly lastPushed: number } | undefined

  get size (): number {
    return this.#batches.size
  }

  get bytes (): number {
    return this.#bytes
  }

  /** Batches that the queue is known to have lost, and that were not pushed again since. */
  get lost (): number {
    return this.#lost
  }

  /** The highest sequence that was pushed; 0: none yet. */
  get lastPushed (): number {
    return this.#lastPushed
  }

  /** Increments in batches that are not known to be in the queue. */
  get unpushedIncrements (): number {
    return this.batches(true).reduce((sum, { increments }) => sum + increments, 0)
  }

  /** When the oldest increment in it was accepted, Unix ms; undefined if it is empty. */
  get oldestAt (): number | undefined {
    const { value } = this.#batches.values().next()
    return value?.at
  }

  add (batch: Batch): void {
    this.#batches.set(batch.seq, { ...batch, pushed: false, lost: false, refilled: false })
    this.#bytes += batch.element.length
  }

  /** Whether a batch still has to be pushed: it was not yet, and is not known to be stored either. */
  needsPush (seq: number): boolean {
    return this.#batches.get(seq)?.pushed === false
  }

  markPushed (batches: readonly Batch[]): void {
    for (const { seq } of batches) {
      // Once more: it may now be on its way through the queue.
      if (seq <= this.#lastPushed) this.#empty = undefined
      else this.#lastPushed = seq
      const batch = this.#batches.get(seq)
      if (batch === undefined) continue
      batch.pushed = true
      this.#setLost(batch, false)
    }
  }

  /** The same for lost batches: they are not taken to be lost again before the queue was empty for long. */
  markRefilled (batches: readonly Batch[]): void {
    this.markPushed(batches)
    for (const { seq } of batches) {
      const batch = this.#batches.get(seq)
      if (batch !== undefined) batch.refilled = true
    }
  }

  hasPushed (): boolean {
    const { value } = this.#batches.values().next()
    return value?.pushed === true
  }

  /**
   * Drops exactly the sequences that are stored: never all below some number, for there may be gaps. What stays below the highest is lost, as
   * a queue gives its batches out in their order.
   * @returns how many batches a gap says are lost that it does not hold any more
   */
  dropStored (stored: Sequences): number {
    let held = 0
    for (const [seq, batch] of this.#batches) {
      if (seq > stored.high) break
      if (has(stored, seq)) {
        this.#drop(seq)
        continue
      }
      if (seq > this.#reportedTo) held++
      if (batch.pushed && !batch.refilled) this.#setLost(batch, true)
    }
    if (stored.high <= this.#reportedTo) return 0
    const fresh = stored.gaps.filter(([from]) => from > this.#reportedTo)
    this.#reportedTo = stored.high
    return fresh.reduce((sum, [from, to]) => sum + to - from + 1, 0) - held
  }

  /** Notices a tail that the queue has lost. To be called after what was reported as stored has been dropped. */
  noteLength ({ askedAt, answeredAt, length, lastPushed }: Sight): void {
    const before = this.#empty
    if (length > 0) {
      this.#empty = undefined
      return
    }
    if (before !== undefined && askedAt - before.at < emptyForMs) return
    const since = before?.since ?? answeredAt
    this.#empty = { since, at: answeredAt, lastPushed }
    if (before === undefined) return
    for (const batch of this.#batches.values()) {
      if (batch.seq > before.lastPushed) break
      if (batch.pushed && (!batch.refilled || askedAt - since >= emptyAgainForMs)) this.#setLost(batch, true)
    }
  }

  /** Lets the oldest pushed batches go until it has at most `bytes`. @returns how many went */
  trim (bytes: number): number {
    let dropped = 0
    for (const [seq, { pushed, lost }] of this.#batches) {
      if (this.#bytes <= bytes || !pushed || lost) break
      this.#drop(seq)
      dropped++
    }
    return dropped
  }

  /** All batches in order, or the lost ones, in groups that can be pushed at once. */
  * groups (lostOnly = false): Generator<Batch[]> {
    let group: Batch[] = []
    let bytes = 0
    for (const batch of [...this.#batches.values()]) {
      if (group.length === groupBatchesMax || (group.length > 0 && bytes + batch.element.length > batchBytesMax)) {
        yield group
        group = []
        bytes = 0
      }
      // It may have become known as stored since the first group.
      if (!this.#batches.has(batch.seq) || (lostOnly && !batch.lost)) continue
      group.push(batch)
      bytes += batch.element.length
    }
    if (group.length > 0) yield group
  }

  /** Its batches in order; with `unpushedOnly` those that are not known to be in the queue. */
  batches (unpushedOnly: boolean): Batch[] {
    return [...this.#batches.values()].filter(({ pushed, lost }) => !pushed || lost || !unpushedOnly)
  }

  /** Sequences of batches that were pushed, lost or not. */
  pushedSequences (): number[] {
    return Array.from(this.#batches.values()).filter(({ pushed }) => pushed).map(({ seq }) => seq)
  }

  #setLost (batch: Unstored, lost: boolean): void {
    if (batch.lost === lost) return
    batch.lost = lost
    this.#lost += lost ? 1 : -1
  }

  #drop (seq: number): void {
    const batch = this.#batches.get(seq)
    if (batch === undefined) return
    this.#setLost(batch, false)
    this.#bytes -= batch.element.length
    this.#batches.delete(seq)
  }
}
