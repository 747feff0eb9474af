// The first gear's memory: key → sum of all increments since the last drain. Fed by requests, drained by the flusher.
import { add, int64Max, int64Min, narrow, type Once, type Source, type Sum } from '@gearbox/queue/batch.ts'
import type { Increment } from './form.ts'
import { Table } from './table.ts'

/** Bytes that a key or an idempotent request is taken to need beside its text; what V8 needs for a Map's entry, a string and a number. */
const entryBytes = 48

/** The same for an idempotent request beside its keys: its id, its Map and itself. */
const onceBytes = 512

/** What was accumulated between two drains. Its entries can be drawn once, in any portions. */
export interface Drain extends Source {
  /** How many requests and increments it is made of; zeros from the second call on, so that only one batch says it. */
  takeCounts (): { requests: number, increments: number }
  /** Increments that no batch says it is made of yet. */
  readonly untakenIncrements: number
  /** When the oldest increment in it was accepted, Unix ms. */
  readonly oldestAt: number
  /** Keys and idempotent requests that were not drawn yet. */
  readonly pendingKeys: number
  readonly pendingBytes: number
}

export class Accumulator {
  #requests = 0
  #increments = 0
  #oldestAt = 0
  #bytes = 0
  #sums = new Table<Sum>()
  #once: Once[] = []
  #onceById = new Table<Once>()

  get isEmpty (): boolean {
    return this.#requests === 0
  }

  /** Distinct keys, those of idempotent requests included, which are not summed. */
  get pendingKeys (): number {
    return this.#sums.size + this.#once.length
  }

  get pendingBytes (): number {
    return this.#bytes
  }

  /** When the oldest increment was accepted, Unix ms; only if not empty. */
  get oldestAt (): number {
    return this.#oldestAt
  }

  has (key: string): boolean {
    return this.#sums.get(key) !== undefined
  }

  /** Adds a request's increments. Exact whatever the sums become. */
  add (increments: readonly Increment[], at: number): void {
    this.#count(increments.length, at)
    for (const { key, delta } of increments) this.#addOne(key, delta)
  }

  /** The idempotent request with this id that waits for the next drain. */
  pendingOnce (id: string): Once | undefined {
    return this.#onceById.get(id)
  }

  /** Keeps an idempotent request as it is. A repeat of one that waits here must not be added. */
  addOnce (once: Once, increments: number, at: number): void {
    this.#count(increments, at)
    this.#once.push(once)
    this.#onceById.put(once.id, once, () => once)
    this.#bytes += onceBytes
    for (const key of once.sums.keys()) this.#bytes += key.length + entryBytes
  }

  /** Takes everything out. What is added from now on is in the next drain. */
  drain (): Drain {
    const drain = new Drained(this.#sums, this.#once, this)
    this.#requests = this.#increments = this.#bytes = 0
    this.#sums = new Table()
    if (this.#once.length > 0) {
      this.#once = []
      this.#onceById = new Table()
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
    if (this.#requests === 0) this.#oldestAt = at
    this.#requests++
    this.#increments += increments
  }

  #addOne (key: string, delta: Sum): void {
    if (this.#sums.put(key, delta, add)) this.#bytes += key.length + entryBytes
  }
}

class Drained implements Drain {
  #counts: { requests: number, increments: number }
  readonly oldestAt: number
  #pendingKeys: number
  #pendingBytes: number
  #sums: Table<Sum>
  #drawnSums = 0
  /** What of a sum beyond 64 bits is left for later batches, where its key may stand again. */
  #leftOver = new Table<Sum>()
  readonly #once: Iterator<Once, undefined>

  constructor (sums: Table<Sum>, once: readonly Once[], { requests, increments, oldestAt, pendingKeys, pendingBytes }: Accumulator) {
    this.#counts = { requests, increments }
    this.oldestAt = oldestAt
    this.#pendingKeys = pendingKeys
    this.#pendingBytes = pendingBytes
    this.#sums = sums
    this.#once = once.values()
  }

  get pendingKeys (): number {
    return this.#pendingKeys
  }

  get pendingBytes (): number {
    return this.#pendingBytes
  }

  get untakenIncrements (): number {
    return this.#counts.increments
  }

  takeCounts (): { requests: number, increments: number } {
    const counts = this.#counts
    this.#counts = { requests: 0, increments: 0 }
    return counts
  }

  nextSum (): readonly [key: string, sum: Sum] | undefined {
    const next = this.#sums.at(this.#drawnSums)
    if (next === undefined) return this.#leftOver.size === 0 ? undefined : this.#startLeftOver()
    this.#drawnSums++
    const [key, sum] = next
    if (typeof sum === 'number' || (sum <= int64Max && sum >= int64Min)) {
      this.#pendingKeys--
      this.#pendingBytes -= key.length + entryBytes
      return next
    }
    const part = sum > 0n ? int64Max : int64Min
    this.#leftOver.put(key, narrow(sum - part), add)
    return [key, part]
  }

  nextOnce (): Once | undefined {
    const once = this.#once.next().value
    if (once === undefined) return undefined
    this.#pendingBytes -= onceBytes
    for (const key of once.sums.keys()) this.#pendingBytes -= key.length + entryBytes
    this.#pendingKeys--
    return once
  }

  /** Ends this batch's sums: a key may stand in it only once. The next call goes on with what was left over. */
  #startLeftOver (): undefined {
    this.#sums = this.#leftOver
    this.#drawnSums = 0
    this.#leftOver = new Table()
    return undefined
  }
}
