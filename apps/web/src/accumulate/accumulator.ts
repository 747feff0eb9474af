// The first gear's memory: key → sum of all increments since the last drain, and next to the sums what is not summed.
// Fed by requests, drained by the flusher. It has no clock and knows neither batches nor replies.
import type { IdempotentRequest, Source } from '@gearbox/protocol/batch.ts'
import { int64Max, int64Min, narrow, type Sum } from '@gearbox/protocol/int64.ts'
import type { SumEntry } from '@gearbox/protocol/json-bytes.ts'
import type { IncrementColumns } from './columns.ts'
import { keyOverheadBytes, Sums } from './sums.ts'
import { hashOf, KeyTable, noBytes } from './key-table.ts'
import { EntryDrain, type PendingEntry } from './pending-entries.ts'

/** Estimated bytes of an idempotent request besides its keys: its id, its Map and itself. */
const idempotentOwnBytes = 512

/** The same per key, besides the text: a string's header and an entry in a Map that may be half empty. */
const idempotentKeyBytes = 112

/** Estimated bytes that an idempotent request takes while it waits. */
export function idempotentBytes (once: IdempotentRequest): number {
  let bytes = idempotentOwnBytes
  for (const key of once.sums.keys()) bytes += 2 * key.length + idempotentKeyBytes
  return bytes
}

/** What was accumulated between two drains. Each of its entries is read once, as many at a time as the reader likes. */
export interface Drain extends Source {
  /**
   * How many requests and increments it is made of; zeros from the second call on, so that only one batch has these
   * numbers.
   */
  readCounts (): { requests: number, increments: number }
  /** Increments of it that are in the numbers of no batch yet. */
  readonly unreadIncrements: number
  /** When the oldest increment in it was accepted, Unix ms. */
  readonly oldestAt: number
  /**
   * Whether all of its sums were asked for at level `stored`, so that nothing of it is promised and all of it can be
   * refused.
   */
  readonly refusable: boolean
  /** Keys, idempotent requests and entries that were not read yet. */
  readonly pendingKeys: number
  /** Estimated bytes that they take. */
  readonly pendingBytes: number
  /** What the next batch is made of in place of this drain: defined if only entries are left that travel alone. */
  readonly alone: Source | undefined
}

/** Sums of one worker. All of it is synchronous, and no call takes long, however many keys there are. */
export class Accumulator {
  #requests = 0
  #increments = 0
  #oldestAt = 0
  #bytes = 0
  #sums = new Sums()
  /** A drain's sums come back here empty, so that a small flush costs no new memory. */
  readonly #spare: Sums[] = []
  #once: IdempotentRequest[] = []
  /** The ids of `#once`, in the same order. */
  #idempotentIds = new KeyTable()
  /** Idempotent requests that travel once more. */
  #idempotentAgain: IdempotentRequest[] = []
  #entries: PendingEntry[] = []
  /** How many are in these three. */
  #unsummed = 0
  #refusable = true

  /** Whether nothing was added since the last drain. */
  get isEmpty (): boolean {
    return this.#requests === 0 && this.pendingKeys === 0
  }

  /** Distinct keys of the sums, and idempotent requests and entries of plugins, which are not summed. */
  get pendingKeys (): number {
    return this.#sums.size + this.#unsummed
  }

  /** Whether everything in the sums was asked for at level `stored`. */
  get refusable (): boolean {
    return this.#refusable
  }

  /** Estimated bytes that they take. */
  get pendingBytes (): number {
    return this.#bytes
  }

  /** When the oldest increment was accepted, Unix ms; only if not empty. */
  get oldestAt (): number {
    return this.#oldestAt
  }

  /** Whether the key of a request's pair `i` is pending. */
  has ({ bytes, starts, ends, hashes }: IncrementColumns, i: number): boolean {
    return this.#sums.has(bytes, starts[i]!, ends[i]!, hashes[i]!)
  }

  /**
   * Adds a request's increments. Exact whatever the sums become.
   * @param at Unix ms; ignored unless the accumulator is empty
   * @param refusable whether the request asked for level `stored`
   */
  add (increments: IncrementColumns, at: number, refusable = false): void {
    const { bytes, length, starts, ends, hashes, deltas } = increments
    this.#count(length, at)
    if (!refusable) this.#refusable = false
    for (let i = 0; i < length; i++) {
      const start = starts[i]!
      const end = ends[i]!
      if (this.#sums.add(bytes, start, end, hashes[i]!, deltas[i]!)) this.#bytes += end - start + keyOverheadBytes
    }
  }

  /** The idempotent request with this id that waits for the next drain. */
  pendingIdempotent (id: string): IdempotentRequest | undefined {
    if (this.#once.length === 0) return undefined
    const bytes = Buffer.from(id, 'latin1')
    return this.#once[this.#idempotentIds.find(bytes, 0, bytes.length, hashOf(bytes, 0, bytes.length))]
  }

  /** Keeps an idempotent request as it is. A repeat of one that waits here must not be added. */
  addIdempotent (once: IdempotentRequest, increments: number, at: number): void {
    this.#count(increments, at)
    this.#once.push(once)
    this.#unsummed++
    const bytes = Buffer.from(once.id, 'latin1')
    this.#idempotentIds.put(bytes, 0, bytes.length, hashOf(bytes, 0, bytes.length))
    this.#bytes += idempotentBytes(once)
  }

  /**
   * Adds a sum that was rejected once more; its increments were counted when it was first added. From here on it is
   * promised.
   */
  addAgain (key: string, value: Sum, at: number): void {
    if (this.isEmpty) this.#oldestAt = at
    const bytes = Buffer.from(key)
    const hash = hashOf(bytes, 0, bytes.length)
    if (this.#sums.add(bytes, 0, bytes.length, hash, value)) this.#bytes += bytes.length + keyOverheadBytes
    this.#refusable = false
  }

  /** The same for an idempotent request. */
  addIdempotentAgain (once: IdempotentRequest): void {
    if (this.isEmpty) this.#oldestAt = once.at
    once.storedWithinMs = undefined
    this.#idempotentAgain.push(once)
    this.#unsummed++
    this.#bytes += idempotentBytes(once)
  }

  /** Keeps an entry of a plugin. @param at Unix ms; ignored unless the accumulator is empty */
  addEntry (entry: PendingEntry, at: number): void {
    if (this.isEmpty) this.#oldestAt = at
    this.#entries.push(entry)
    this.#unsummed++
    this.#bytes += entry.bytes
  }

  /** Empties it. What is added from now on is in the next drain. */
  drain (): Drain {
    const sums = this.#sums
    const once = this.#idempotentAgain.length === 0 ? this.#once : [...this.#once, ...this.#idempotentAgain]
    const release = (): void => { if (sums.clear()) this.#spare.push(sums) }
    const drain = new AccumulatorDrain(sums, once, this.#entries, this, release)
    this.#refusable = true
    if (this.#idempotentAgain.length > 0) this.#idempotentAgain = []
    if (this.#entries.length > 0) this.#entries = []
    this.#requests = this.#increments = this.#unsummed = this.#bytes = 0
    this.#sums = this.#spare.pop() ?? new Sums()
    if (this.#once.length > 0) {
      this.#once = []
      this.#idempotentIds = new KeyTable()
    }
    return drain
  }

  /** Requests since the last drain. */
  get requests (): number {
    return this.#requests
  }

  /** Increments since the last drain. */
  get increments (): number {
    return this.#increments
  }

  #count (increments: number, at: number): void {
    if (this.isEmpty) this.#oldestAt = at
    this.#requests++
    this.#increments += increments
  }
}

const noSums = new Sums()

class AccumulatorDrain implements Drain {
  #counts: { requests: number, increments: number }
  readonly oldestAt: number
  #refusable: boolean
  #pendingKeys: number
  #pendingBytes: number
  #sums: Sums
  #sumsRead = 0
  readonly #entry = { bytes: noBytes, start: 0, end: 0, sum: 0 as Sum }
  /** The rest of sums beyond 64 bits, for later batches, in which their keys may be again. */
  #leftOver: Sums | undefined
  #release: (() => void) | undefined
  readonly #once: Iterator<IdempotentRequest, undefined>
  readonly #entries: EntryDrain | undefined

  /** @param release called when nothing of `sums` is needed any more */
  constructor (
    sums: Sums, once: readonly IdempotentRequest[], entries: readonly PendingEntry[],
    { requests, increments, oldestAt, refusable, pendingKeys, pendingBytes }: Accumulator, release: () => void
  ) {
    this.#counts = { requests, increments }
    this.oldestAt = oldestAt
    this.#refusable = refusable && sums.size > 0
    this.#pendingKeys = pendingKeys
    this.#pendingBytes = pendingBytes
    this.#sums = sums
    this.#once = once.values()
    this.#entries = entries.length === 0
      ? undefined
      : new EntryDrain(entries, ({ bytes }) => {
        this.#pendingKeys--
        this.#pendingBytes -= bytes
      })
    this.#release = release
  }

  get pendingKeys (): number {
    return this.#pendingKeys
  }

  get pendingBytes (): number {
    return this.#pendingBytes
  }

  get refusable (): boolean {
    return this.#refusable
  }

  get unreadIncrements (): number {
    return this.#counts.increments
  }

  readCounts (): { requests: number, increments: number } {
    const counts = this.#counts
    this.#counts = { requests: 0, increments: 0 }
    return counts
  }

  nextSum (): SumEntry | undefined {
    if (this.#sumsRead === this.#sums.size) return this.#startLeftOver()
    const index = this.#sumsRead++
    const entry = this.#entry
    this.#sums.locate(index, entry)
    entry.sum = this.#sums.sumAt(index)
    if (typeof entry.sum === 'number' || (entry.sum <= int64Max && entry.sum >= int64Min)) {
      this.#pendingKeys--
      this.#pendingBytes -= entry.end - entry.start + keyOverheadBytes
      return entry
    }
    const part = entry.sum > 0n ? int64Max : int64Min
    // One part of it may count and another not: a refusal would be wrong.
    this.#refusable = false
    this.#leftOver ??= new Sums()
    const { bytes, start, end } = entry
    this.#leftOver.add(bytes, start, end, hashOf(bytes, start, end), narrow(entry.sum - part))
    entry.sum = part
    return entry
  }

  nextIdempotent (): IdempotentRequest | undefined {
    const once = this.#once.next().value
    if (once === undefined) return undefined
    this.#pendingBytes -= idempotentBytes(once)
    this.#pendingKeys--
    return once
  }

  nextEntry (seq: number, entry: number): string | undefined {
    return this.#entries?.nextShared(seq, entry)
  }

  get alone (): Source | undefined {
    const entries = this.#entries
    if (entries === undefined || entries.aloneLeft === 0) return undefined
    return entries.aloneLeft === this.#pendingKeys ? entries.aloneSource : undefined
  }

  /** Ends this batch's sums: a key may be in it only once. The next call goes on with what was left over. */
  #startLeftOver (): undefined {
    this.#release?.()
    this.#release = undefined
    this.#sums = this.#leftOver ?? noSums
    this.#sumsRead = 0
    this.#leftOver = undefined
    return undefined
  }
}
