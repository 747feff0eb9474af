// Outcomes of entries of plugins that are still to be reported to their workers, cut into messages. They are only news:
// what is left out here is in the database, and its worker asks for it.
import type { EntryResult } from '@gearbox/protocol/plugin-entry.ts'
import type { StoredResult } from './store/results.ts'

/** JSON of outcomes in one message, at most: every worker gets every message. */
const messageBytesMax = 256 * 1024

/** JSON of outcomes that wait, at most: what a run of the usual size comes to. */
const pendingBytesMax = 4 * 1024 * 1024

/** JSON of an outcome apart from what is in it: its numbers, and the names of its fields. */
const ownBytes = 48

/** Outcomes that wait to be reported. They stay pending from `add` until `sent`. */
export class PendingResults {
  #results: StoredResult[] = []
  #bytes = 0
  /** How many of them are in the message that is being sent. */
  #sending = 0

  /** Whether nothing is pending. */
  get isEmpty (): boolean {
    return this.#results.length === 0
  }

  /** Whether no more is taken. */
  get isFull (): boolean {
    return this.#bytes >= pendingBytesMax
  }

  /** Adds outcomes, as many as there is room for. */
  add (results: readonly StoredResult[]): void {
    for (const result of results) {
      if (this.isFull) return
      this.#results.push(result)
      this.#bytes += ownBytes + result.bytes
    }
  }

  /** The outcomes of the next message, by producer. */
  next (): ReadonlyMap<string, readonly EntryResult[]> {
    const message = new Map<string, EntryResult[]>()
    let bytes = 0
    this.#sending = 0
    for (const result of this.#results) {
      bytes += ownBytes + result.bytes
      if (bytes > messageBytesMax && this.#sending > 0) break
      this.#sending++
      const { producer, seq, entry, outcome } = result
      const news = message.get(producer)
      if (news === undefined) message.set(producer, [{ seq, entry, outcome }])
      else news.push({ seq, entry, outcome })
    }
    return message
  }

  /** To be called when the message of `next` was sent. */
  sent (): void {
    for (const { bytes } of this.#results.splice(0, this.#sending)) this.#bytes -= ownBytes + bytes
    this.#sending = 0
  }
}
