// Batches from the moment they are encoded until they are known to be stored. The outbox pushes again from here what
// the queue has lost: all of it where it is another queue than before, or else those batches that a report or an empty
// queue shows to be lost.
import type { Batch } from '@gearbox/protocol/batch.ts'
import { has, type Sequences } from '@gearbox/protocol/sequences.ts'

interface Unstored extends Batch {
  pushed: boolean
  /** Whether it was pushed and the queue has lost it since. */
  lost: boolean
  /** Whether it was pushed again because it was lost. */
  refilled: boolean
}

/** How many batches a queue had when progress was polled. */
export interface LengthPoll {
  /** When the poll was sent and when it was answered, ms of performance.now. */
  readonly askedAt: number
  readonly answeredAt: number
  /** Batches that waited in the queue, of all producers. */
  readonly length: number
  /** `lastPushed` when the poll was sent. */
  readonly lastPushed: number
}

/**
 * The loss of a queue's tail leaves no gap. It shows where the queue is empty at two polls this far apart, and what was
 * pushed before the first is not reported as stored at the second: a report follows a batch's removal within
 * milliseconds.
 */
const emptyForMs = 900

/**
 * What was pushed again once may be waiting for a report that does not come. Only a queue that is empty for this long
 * has surely lost it again.
 */
const emptyAgainForMs = 30_000

/**
 * One producer's unstored batches, by sequence and in order. It has no clock and no connection: the outbox reports to
 * it what it pushed and what it polled. A batch in it is in one of these states:
 *
 * - waiting: entered by `add`, left by `markPushed`.
 * - pushed: entered by `markPushed` or `markRefilled`. Left when `dropStored` or `noteLength` find it lost; `trim` may
 *   drop it.
 * - lost: entered when a report has a gap there, or the queue was empty at two polls. Left by `markPushed` or
 *   `markRefilled`.
 *
 * From every state `dropStored` drops it once it is stored. A batch that was refilled is found lost again only where
 * the queue was empty for 30 s, so that a report that does not come can't make it circulate.
 */
export class Window {
  readonly #batches = new Map<number, Unstored>()
  #bytes = 0
  #lost = 0
  #lastPushed = 0
  /** The highest sequence whose gaps have been counted. */
  #reportedTo = 0
  /** Since when every poll has found the queue empty, and the last of these polls. */
  #empty: { readonly since: number, readonly at: number, readonly lastPushed: number } | undefined

  /** Batches in it. */
  get size (): number {
    return this.#batches.size
  }

  /** Bytes of all its elements. */
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

  /** Adds a batch whose sequence is higher than all before. */
  add (batch: Batch): void {
    this.#batches.set(batch.seq, { ...batch, pushed: false, lost: false, refilled: false })
    this.#bytes += batch.element.length
  }

  /** Whether it has the batch: it is not known to be stored, and was not trimmed. */
  has (seq: number): boolean {
    return this.#batches.has(seq)
  }

  /** Whether the queue is known to have lost the batch. */
  isLost (seq: number): boolean {
    return this.#batches.get(seq)?.lost === true
  }

  /** Whether a batch still has to be pushed: it was not yet, and is not known to be stored either. */
  needsPush (seq: number): boolean {
    return this.#batches.get(seq)?.pushed === false
  }

  /** The queue has these batches: they were pushed for the first time, or with the whole window. */
  markPushed (batches: readonly Batch[]): void {
    for (const { seq } of batches) {
      // Pushed once more: it may be in the queue again.
      if (seq <= this.#lastPushed) this.#empty = undefined
      else this.#lastPushed = seq
      const batch = this.#batches.get(seq)
      if (batch === undefined) continue
      batch.pushed = true
      this.#setLost(batch, false)
    }
  }

  /** The same for lost batches: they are not found lost again before the queue was empty for long. */
  markRefilled (batches: readonly Batch[]): void {
    this.markPushed(batches)
    for (const { seq } of batches) {
      const batch = this.#batches.get(seq)
      if (batch !== undefined) batch.refilled = true
    }
  }

  /** Whether any batch in it was pushed. The oldest is pushed first, so it decides. */
  hasPushed (): boolean {
    const { value } = this.#batches.values().next()
    return value?.pushed === true
  }

  /**
   * Drops exactly the sequences that are stored: never all below some number, for there may be gaps. What remains below
   * the highest is lost, as a queue gives its batches out in their order.
   * @returns how many batches a gap shows to be lost that the window does not have any more
   */
  dropStored (stored: Sequences): number {
    let remaining = 0
    for (const [seq, batch] of this.#batches) {
      if (seq > stored.high) break
      if (has(stored, seq)) {
        this.#drop(seq)
        continue
      }
      if (seq > this.#reportedTo) remaining++
      if (batch.pushed && !batch.refilled) this.#setLost(batch, true)
    }
    if (stored.high <= this.#reportedTo) return 0
    const fresh = stored.gaps.filter(([from]) => from > this.#reportedTo)
    this.#reportedTo = stored.high
    return fresh.reduce((sum, [from, to]) => sum + to - from + 1, 0) - remaining
  }

  /** Notices a tail that the queue has lost. To be called after what was reported as stored has been dropped. */
  noteLength ({ askedAt, answeredAt, length, lastPushed }: LengthPoll): void {
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

  /**
   * Drops the oldest pushed batches until it has at most `bytes`; none that is waiting or lost.
   * @returns how many were dropped
   */
  trim (bytes: number): number {
    let dropped = 0
    for (const [seq, { pushed, lost }] of this.#batches) {
      if (this.#bytes <= bytes || !pushed || lost) break
      this.#drop(seq)
      dropped++
    }
    return dropped
  }

  /** A copy of its batches in order; with `unpushedOnly` those that are not known to be in the queue. */
  batches (unpushedOnly = false): Batch[] {
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
