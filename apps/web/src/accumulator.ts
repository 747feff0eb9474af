// The first gear's memory: key → sum of all increments since the last drain. Fed by requests, drained by the flusher.
import { add, int64Max, int64Min, narrow, type Once, type Source, type Sum } from '@gearbox/queue/batch.ts'
import type { Increment } from './form.ts'

/**
 * A JavaScript Map doubles by copying itself in one go: 95 ms on its way past 524,288 keys. So keys beyond the first
 * few thousand are spread over many small ones, which double one at a time: at a million keys the longest copy takes under 1 ms.
 */
const firstMapKeysMax = 8192
const shardCount = 256

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
  #first = new Map<string, Sum>()
  #shards: Array<Map<string, Sum>> | undefined
  #shardKeys = 0
  #once = new Map<string, Once>()

  get isEmpty (): boolean {
    return this.#requests === 0
  }

  /** Distinct keys, those of idempotent requests included, which are not summed. */
  get pendingKeys (): number {
    return this.#first.size + this.#shardKeys + this.#once.size
  }

  get pendingBytes (): number {
    return this.#bytes
  }

  /** When the oldest increment was accepted, Unix ms; only if not empty. */
  get oldestAt (): number {
    return this.#oldestAt
  }

  has (key: string): boolean {
    return this.#first.has(key) || this.#shards?.[shardOf(key)]?.has(key) === true
  }

  /** Adds a request's increments. Exact whatever the sums become. */
  add (increments: readonly Increment[], at: number): void {
    this.#count(increments.length, at)
    for (const { key, delta } of increments) this.#addOne(key, delta)
  }

  /** The idempotent request with this id that waits for the next drain. */
  pendingOnce (id: string): Once | undefined {
    return this.#once.get(id)
  }

  /** Keeps an idempotent request as it is. A repeat of one that waits here must not be added. */
  addOnce (once: Once, increments: number, at: number): void {
    this.#count(increments, at)
    this.#once.set(once.id, once)
    this.#bytes += onceBytes
    for (const key of once.sums.keys()) this.#bytes += key.length + entryBytes
  }

  /** Takes everything out. What is added from now on is in the next drain. */
  drain (): Drain {
    const maps = [this.#first, ...this.#shards ?? []]
    const drain = new Drained(maps, [...this.#once.values()], this)
    this.#requests = this.#increments = this.#bytes = this.#shardKeys = 0
    this.#first = new Map()
    this.#shards = undefined
    this.#once = new Map()
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
    const sum = this.#first.get(key)
    if (sum !== undefined) {
      this.#first.set(key, add(sum, delta))
    } else if (this.#first.size < firstMapKeysMax) {
      this.#first.set(key, delta)
      this.#bytes += key.length + entryBytes
    } else {
      this.#addToShard(key, delta)
    }
  }

  #addToShard (key: string, delta: Sum): void {
    this.#shards ??= Array.from({ length: shardCount }, () => new Map<string, Sum>())
    const shard = this.#shards[shardOf(key)]!
    const sum = shard.get(key)
    shard.set(key, sum === undefined ? delta : add(sum, delta))
    if (sum === undefined) {
      this.#shardKeys++
      this.#bytes += key.length + entryBytes
    }
  }
}

/** FNV-1a over the key's UTF-16 units (Fowler, Noll, Vo: offset basis 2166136261, prime 16777619), folded to a shard. */
function shardOf (key: string): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193)
  return (hash ^ (hash >>> 16)) & (shardCount - 1)
}

class Drained implements Drain {
  #counts: { requests: number, increments: number }
  readonly oldestAt: number
  #pendingKeys: number
  #pendingBytes: number
  #maps: Array<Map<string, Sum>>
  #sums: Iterator<[string, Sum]>
  /** What of a sum beyond 64 bits is left for later batches, where its key may stand again. */
  #leftOver: Array<[string, bigint]> = []
  #once: readonly Once[]
  #onceAt = 0

  constructor (maps: Array<Map<string, Sum>>, once: readonly Once[], { requests, increments, oldestAt, pendingKeys, pendingBytes }: Accumulator) {
    this.#counts = { requests, increments }
    this.oldestAt = oldestAt
    this.#pendingKeys = pendingKeys
    this.#pendingBytes = pendingBytes
    this.#maps = maps
    this.#sums = maps.shift()!.entries()
    this.#once = once
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
    for (;;) {
      const { done, value } = this.#sums.next()
      if (done === true) {
        const next = this.#maps.shift()
        if (next === undefined) return this.#leftOver.length === 0 ? undefined : this.#startLeftOver()
        this.#sums = next.entries()
        continue
      }
      const [key, sum] = value
      if (typeof sum === 'number' || (sum <= int64Max && sum >= int64Min)) {
        this.#drawn(key)
        return value
      }
      const part = sum > 0n ? int64Max : int64Min
      this.#leftOver.push([key, sum - part])
      return [key, part]
    }
  }

  nextOnce (): Once | undefined {
    const once = this.#once[this.#onceAt]
    if (once === undefined) return undefined
    this.#onceAt++
    this.#pendingBytes -= onceBytes
    for (const key of once.sums.keys()) this.#pendingBytes -= key.length + entryBytes
    this.#pendingKeys--
    return once
  }

  /** Ends this batch's sums: a key may stand in it only once. The next call goes on with what was left over. */
  #startLeftOver (): undefined {
    this.#maps = [new Map(this.#leftOver.map(([key, sum]) => [key, narrow(sum)]))]
    this.#leftOver = []
    this.#sums = this.#maps.shift()!.entries()
    return undefined
  }

  #drawn (key: string): void {
    this.#pendingKeys--
    this.#pendingBytes -= key.length + entryBytes
  }
}
