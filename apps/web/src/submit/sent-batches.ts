// The batches whose entries have no outcome yet: matches outcomes with entries, and decides what to ask the consumer
// for. Submissions reports to it what was sent and what is stored.
import type { Progress, ResultRequest } from '@gearbox/protocol/progress.ts'
import { has } from '@gearbox/protocol/sequences.ts'
import { resultSequencesMax } from '@gearbox/queue/queue.ts'
import type { SubmittedEntry } from './submitted-entry.ts'

/** The message with the outcomes may be on its way, behind another that says what is stored. */
const onItsWayMs = 100

/** The consumer keeps outcomes for 10 minutes after it has reported a batch as stored. */
const keptMs = 600_000

/** Sequences that are kept to be reported as received, at most: what is dropped the consumer keeps for 10 minutes. */
const receivedMax = 100_000

interface SentBatch {
  readonly seq: number
  /** By their numbers; undefined once settled. */
  readonly entries: Array<SubmittedEntry | undefined>
  /** Entries without an outcome. */
  lacking: number
  /** When it became known as stored (performance.now, ms). */
  storedAt: number
}

/**
 * A batch is in one of these states:
 *
 * - sent: entered by `add`.
 * - stored: entered by `onProgress`. As long as it lacks outcomes, it is asked for.
 *
 * From both, `onProgress` removes it with its last outcome, and it is reported as received. From sent `onProgress` also
 * removes it where the queue lost it after it had left the window. `takeOld` removes it 10 minutes after it was stored.
 */
export class SentBatches {
  readonly #batches = new Map<number, SentBatch>()
  /** In the order of their sequences. */
  readonly #sent = new Set<SentBatch>()
  /** In the order in which they became known as stored. */
  readonly #stored = new Set<SentBatch>()
  readonly #received = new Set<number>()
  #lastSeq = 0

  /** Whether there is nothing to wait for and nothing to report. */
  get isEmpty (): boolean {
    return this.#batches.size === 0 && this.#received.size === 0
  }

  /** An entry is in a batch. Entries of a batch come in the order of their numbers, from 0. */
  add (entry: SubmittedEntry, seq: number): void {
    let batch = this.#batches.get(seq)
    if (batch === undefined) {
      batch = { seq, entries: [], lacking: 0, storedAt: 0 }
      this.#batches.set(seq, batch)
      this.#sent.add(batch)
      this.#lastSeq = seq
    }
    batch.entries.push(entry)
    batch.lacking++
  }

  /**
   * A report of what is stored. Reports can repeat, and can come out of order.
   * @param isKept whether a batch that is not stored can still be pushed again
   * @returns entries of batches that the queue has lost for good
   */
  onProgress (stored: Progress, now: number, isKept: (seq: number) => boolean = () => true): SubmittedEntry[] {
    const lost: SubmittedEntry[] = []
    for (const { seq, entry, outcome } of stored.results ?? []) {
      const batch = this.#batches.get(seq)
      const found = batch?.entries[entry]
      if (batch === undefined) {
        // The consumer still has it: that this worker has, too, was lost.
        if (seq > 0 && seq <= this.#lastSeq) this.#addReceived(seq)
      } else if (found !== undefined) {
        batch.entries[entry] = undefined
        batch.lacking--
        if (batch.lacking === 0) this.#complete(batch)
        found.settle(outcome)
      }
    }
    for (const batch of this.#sent) {
      if (batch.seq > stored.high) break
      const isStored = has(stored, batch.seq)
      if (!isStored && isKept(batch.seq)) continue
      this.#sent.delete(batch)
      if (isStored) {
        this.#stored.add(batch)
        batch.storedAt = now
      } else {
        this.#batches.delete(batch.seq)
        for (const entry of batch.entries) if (entry !== undefined) lost.push(entry)
      }
    }
    return lost
  }

  /** What is to be reported and asked for now; undefined: nothing. */
  request (producer: string, now: number): ResultRequest | undefined {
    const missing: number[] = []
    for (const { seq, storedAt } of this.#stored) {
      if (storedAt > now - onItsWayMs || missing.length === resultSequencesMax) break
      missing.push(seq)
    }
    const received: number[] = []
    for (const seq of this.#received) {
      if (received.length === resultSequencesMax) break
      received.push(seq)
    }
    return missing.length === 0 && received.length === 0 ? undefined : { producer, received, missing }
  }

  /** It was sent. */
  requested ({ received }: ResultRequest): void {
    for (const seq of received) this.#received.delete(seq)
  }

  /** Removes what was stored so long ago that its outcomes are gone. @returns its entries without one */
  takeOld (now: number): SubmittedEntry[] {
    const old: SubmittedEntry[] = []
    for (const batch of this.#stored) {
      if (batch.storedAt > now - keptMs) break
      this.#stored.delete(batch)
      this.#batches.delete(batch.seq)
      for (const entry of batch.entries) if (entry !== undefined) old.push(entry)
    }
    return old
  }

  #complete (batch: SentBatch): void {
    this.#batches.delete(batch.seq)
    this.#sent.delete(batch)
    this.#stored.delete(batch)
    this.#addReceived(batch.seq)
  }

  #addReceived (seq: number): void {
    if (this.#received.size < receivedMax) this.#received.add(seq)
  }
}
