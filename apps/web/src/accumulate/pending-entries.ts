// Entries of plugins that wait for the next drain, and their part of a drain. The accumulator keeps them, and a batch's
// encoder reads them behind everything else.
import type { Source } from '@gearbox/protocol/batch.ts'

/** An entry of a plugin, as long as it is in no batch. */
export interface PendingEntry {
  /** Estimated bytes that it takes until then. */
  readonly bytes: number
  /** Whether it travels in a batch with nothing else in it, behind all else of its drain. */
  readonly alone: boolean
  /**
   * Called once, when its batch is encoded. Must not throw.
   * @returns its JSON, at most entryBytesMax of it; undefined if nothing is to be sent
   */
  encode (): string | undefined
  /** Called next, if it is sent: it is entry number `entry` (from 0) of batch `seq`. */
  onBatch (seq: number, entry: number): void
}

/** The entries of one drain. Each is read once. */
export class EntryDrain {
  readonly #shared: Iterator<PendingEntry, undefined>
  readonly #alone: Iterator<PendingEntry, undefined>
  readonly #onRead: (entry: PendingEntry) => void
  #aloneLeft: number
  /** What a batch is made of that has one entry and nothing else. */
  readonly aloneSource: Source = {
    nextSum: () => undefined,
    nextIdempotent: () => undefined,
    nextEntry: (seq, entry) => entry === 0 ? this.#next(this.#alone, seq, entry) : undefined,
    refusable: false,
  }

  /** @param onRead called with each entry that left, whether it is sent or not */
  constructor (entries: readonly PendingEntry[], onRead: (entry: PendingEntry) => void) {
    const alone = entries.filter((entry) => entry.alone)
    this.#shared = (alone.length === 0 ? entries : entries.filter((entry) => !entry.alone)).values()
    this.#alone = alone.values()
    this.#aloneLeft = alone.length
    this.#onRead = onRead
  }

  /** Entries that were not read and travel alone. */
  get aloneLeft (): number {
    return this.#aloneLeft
  }

  /** The next entry that shares a batch with others, as JSON; undefined at the end. */
  nextShared (seq: number, entry: number): string | undefined {
    return this.#next(this.#shared, seq, entry)
  }

  #next (entries: Iterator<PendingEntry, undefined>, seq: number, entry: number): string | undefined {
    for (;;) {
      const next = entries.next().value
      if (next === undefined) return undefined
      if (next.alone) this.#aloneLeft--
      this.#onRead(next)
      const json = next.encode()
      if (json === undefined) continue
      next.onBatch(seq, entry)
      return json
    }
  }
}
