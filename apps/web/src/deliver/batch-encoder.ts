// Turns drains into batches: gives each its sequence and freezes its bytes. The flusher feeds it and passes the batches
// to the outbox.
import { encodeBatch, type Batch } from '@gearbox/protocol/batch.ts'
import type { Drain } from '../accumulate/accumulator.ts'

/** Whose batches they are, and what one that may be refused says. */
export interface BatchEncoderOptions {
  /** This process's random UUID. */
  readonly producer: string
  /** How long a reply waits for level `stored`: what a batch that may be refused says of itself. */
  readonly ackTimeoutMs: number
}

/** Encodes one producer's batches. Sequences count from 1, without holes, in the order of the calls. */
export class BatchEncoder {
  readonly #options: BatchEncoderOptions
  #lastSeq = 0

  constructor (options: BatchEncoderOptions) {
    this.#options = options
  }

  /** The sequence of the batch that was encoded last; 0: none yet. */
  get lastSeq (): number {
    return this.#lastSeq
  }

  /**
   * Encodes as much of a drain as fits into one batch; the drain has the rest.
   * @param refusable whether the batch says that its sums may be refused
   */
  encode (drain: Drain, refusable: boolean): Batch {
    const { producer, ackTimeoutMs } = this.#options
    this.#lastSeq++
    return encodeBatch({
      producer,
      seq: this.#lastSeq,
      at: drain.oldestAt,
      ...drain.readCounts(),
      ...(refusable ? { storedWithinMs: ackTimeoutMs } : {}),
    }, drain.alone ?? drain)
  }

  /** Encodes all that is left of a drain at the end. All of its replies were given, so none of it may be refused. */
  encodeAll (drain: Drain): Batch[] {
    const batches: Batch[] = []
    while (drain.pendingKeys > 0) batches.push(this.encode(drain, false))
    return batches
  }
}
