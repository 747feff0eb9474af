// The first gear's memory: key → sum of all increments since the last drain. Fed by requests, drained by the flusher.
import { int64Max, int64Min, narrow, type SumEntry, type IdempotentRequest, type Source, type Sum } from '@gearbox/protocol/batch.ts'
import type { IncrementColumns } from './columns.ts'
import { keyOverheadBytes, Sums } from './sums.ts'
import { hashOf, KeyTable, noBytes } from './key-table.ts'

/** Bytes that an idempotent request is taken to need besides its keys: its id, its Map and itself. */
const idempotentOwnBytes = 512

/** The same for each of its keys, besides the text: a string's head and an entry in a Map that may be half empty. */
const idempotentKeyBytes = 112

/** Bytes that an idempotent request takes while it waits. */
export function idempotentBytes (once: IdempotentRequest): number {
  let bytes = idempotentOwnBytes
  for (const key of once.sums.keys()) bytes += 2 * key.length + idempotentKeyBytes
  return bytes
}

/** What was accumulated between two drains. Its entries can be entry once, in any portions. */
export interface Drain extends Source {
  /** How many requests and increments it is made of; zeros from the second call on, so that only one batch says it. */
  takeCounts (): { requests: number, increments: number }
  /** Increments that no batch says it is made of yet. */
  readonly untakenIncrements: number
  /** When the oldest increment in it was accepted, Unix ms. */
  readonly oldestAt: number
  /** Whether everything in its sums was asked for at level `stored`, so that nothing of it is promised and all of it can be refused. */
  readonly refusable: boolean
  /** Keys and idempotent requests that were not entry yet. */
  readonly pendingKeys: number
  readonly pendingBytes: number
}

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
  #refusable = true

  get isEmpty (): boolean {
    return this.#requests === 0 && this.pendingKeys === 0
  }

  /** Distinct keys, those of idempotent requests included, which are not summed. */
  get pendingKeys (): number {
    return this.#sums.size + this.#once.length + this.#idempotentAgain.length
  }

  /** Whether everything in the sums was asked for at level `stored`. */
  get refusable (): boolean {
    return this.#refusable
  }

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
   * @param at Unix ms, of no matter unless it is empty
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
    const bytes = Buffer.from(once.id, 'latin1')
    this.#idempotentIds.put(bytes, 0, bytes.length, hashOf(bytes, 0, bytes.length))
    this.#bytes += idempotentBytes(once)
  }

  /** Adds to a key what no batch has any more, and what was counted when it was first added. From here on it is promised. */
  addAgain (key: string, value: Sum, at: number): void {
    if (this.isEmpty) this.#oldestAt = at
    const bytes = Buffer.from(key)
    if (this.#sums.add(bytes, 0, bytes.length, hashOf(bytes, 0, bytes.length), value)) this.#bytes += bytes.length + keyOverheadBytes
    this.#refusable = false
  }

  /** The same for an idempotent request. */
  addIdempotentAgain (once: IdempotentRequest): void {
    if (this.isEmpty) this.#oldestAt = once.at
    once.storedWithinMs = undefined
    this.#idempotentAgain.push(once)
    this.#bytes += idempotentBytes(once)
  }

  /** Takes everything out. What is added from now on is in the next drain. */
  drain (): Drain {
    const sums = this.#sums
    const once = this.#idempotentAgain.length === 0 ? this.#once : [...this.#once, ...this.#idempotentAgain]
    const drain = new AccumulatorDrain(sums, once, this, () => { if (sums.clear()) this.#spare.push(sums) })
    this.#refusable = true
    if (this.#idempotentAgain.length > 0) this.#idempotentAgain = []
    this.#requests = this.#increments = this.#bytes = 0
    this.#sums = this.#spare.pop() ?? new Sums()
    if (this.#once.length > 0) {
      this.#once = []
      this.#idempotentIds = new KeyTable()
    }
    return drain
  }

  get requests (): number {
    return this.#requests
  }

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
  #sumsTaken = 0
  readonly #entry = { bytes: noBytes, start: 0, end: 0, sum: 0 as Sum }
  /** What of a sum beyond 64 bits is left for later batches, where its key may stand again. */
  #leftOver: Sums | undefined
  #release: (() => void) | undefined
  readonly #once: Iterator<IdempotentRequest, undefined>

  /** @param release called when nothing of `sums` is needed any more */
  constructor (sums: Sums, once: readonly IdempotentRequest[], { requests, increments, oldestAt, refusable, pendingKeys, pendingBytes }: Accumulator, release: () => void) {
    this.#counts = { requests, increments }
    this.oldestAt = oldestAt
    this.#refusable = refusable && sums.size > 0
    this.#pendingKeys = pendingKeys
    this.#pendingBytes = pendingBytes
    this.#sums = sums
    this.#once = once.values()
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

  get untakenIncrements (): number {
    return this.#counts.increments
  }

  takeCounts (): { requests: number, increments: number } {
    const counts = this.#counts
    this.#counts = { requests: 0, increments: 0 }
    return counts
  }

  nextSum (): SumEntry | undefined {
    if (this.#sumsTaken === this.#sums.size) return this.#startLeftOver()
    const index = this.#sumsTaken++
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
    this.#leftOver.add(entry.bytes, entry.start, entry.end, hashOf(entry.bytes, entry.start, entry.end), narrow(entry.sum - part))
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

  /** Ends this batch's sums: a key may stand in it only once. The next call goes on with what was left over. */
  #startLeftOver (): undefined {
    this.#release?.()
    this.#release = undefined
    this.#sums = this.#leftOver ?? noSums
    this.#sumsTaken = 0
    this.#leftOver = undefined
    return undefined
  }
}
