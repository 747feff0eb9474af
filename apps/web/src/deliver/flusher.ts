// The first gear: fed by requests through `accept`, it drains the accumulator into batches, passes those to the outbox
// one at a time, and reports to the settlement of replies how far each flush has come.
//
// With an interval of `auto` a flush leaves as soon as the one before is acknowledged: batches are small and fast under
// light load and grow by themselves under heavy load. With a number of ms, flushes leave that far apart.
import type { AckLevel } from '@gearbox/protocol/ack-levels.ts'
import { withoutRefusals, type Batch, type IdempotentRequest } from '@gearbox/protocol/batch.ts'
import { narrow } from '@gearbox/protocol/int64.ts'
import type { Progress, Rejection } from '@gearbox/protocol/progress.ts'
import type { ProducerQueue, StoreFailure } from '@gearbox/queue/queue.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { Accumulator, type Drain } from '../accumulate/accumulator.ts'
import type { IncrementColumns } from '../accumulate/columns.ts'
import type { PendingEntry } from '../accumulate/pending-entries.ts'
import { BatchEncoder } from './batch-encoder.ts'
import { Outbox } from './outbox.ts'
import { Pacer } from './pacer.ts'
import type { PendingCounts, PendingReply } from './pending-replies.ts'
import { Settlement } from './settlement.ts'

/** Pending replies are checked this often for ones whose time is up, and the queue for whether it works. */
const sweepMs = 50

/** Gets reports of what is stored, and which batches can still be pushed again. */
export type ProgressWatcher = (stored: Progress, unstored: Pick<Outbox, 'has'>) => void

/** What a flusher works with; the settings are those of the worker. */
export interface FlusherOptions {
  readonly queue: ProducerQueue
  /** This process's random UUID. */
  readonly producer: string
  readonly logger: Logger
  /** Between two flushes; `auto`: a flush leaves as soon as the one before is acknowledged. */
  readonly flushIntervalMs: number | 'auto'
  /** How long a reply waits for its ack level. */
  readonly ackTimeoutMs: number
  /** Bytes of unstored batches that are kept in memory at most. */
  readonly unstoredBytesMax: number
  /** Called with the seconds that each flush took, from the drain to the last acknowledged push. */
  readonly observeFlush: (seconds: number) => void
}

/** What a worker has counted since its start. */
export interface FlusherCounts {
  /** Increments accepted. */
  readonly increments: number
  /** Batches pushed, with replays and refills; attempts to push that failed. */
  readonly pushed: number
  readonly retries: number
  /**
   * Times that the whole window was pushed again, and batches that were pushed again because the queue had lost them.
   */
  readonly replays: number
  readonly refilled: number
  /** Batches that left the window before they were stored. */
  readonly trimmed: number
  /** Batches with entries that were promised (2xx) and could not be applied. */
  readonly setAside: number
}

/**
 * One loop, begun by `start`, goes through these states:
 *
 * - waiting: at the start and after every flush, until the pacer lets a flush leave, as something was accepted or the
 *   queue lost batches.
 * - repairing: while the outbox has batches that the queue lost, until it has pushed them again.
 * - flushing: while the accumulator is not empty, until all batches of its drain are in the queue.
 * - ended: after `finish`, when nothing is left to flush; from every state when the deadline of `finish` aborts. For
 *   good.
 *
 * `accept` may be called in every state, also while finishing; it never waits.
 */
export class Flusher {
  readonly #options: FlusherOptions
  readonly #accumulator = new Accumulator()
  readonly #encoder: BatchEncoder
  readonly #outbox: Outbox
  readonly #settlement: Settlement
  /** The drain whose batches are being delivered. */
  #drain: Drain | undefined
  readonly #pacer: Pacer
  #accepted = 0
  readonly #abandon = new AbortController()
  #running: Promise<void> | undefined
  #sweeping: NodeJS.Timeout | undefined
  #watcher: ProgressWatcher | undefined

  constructor (options: FlusherOptions) {
    this.#options = options
    this.#pacer = new Pacer(options.flushIntervalMs)
    this.#encoder = new BatchEncoder(options)
    this.#settlement = new Settlement({
      ...options,
      sendSumAgain: (rejection) => this.#sendSumAgain(rejection),
      sendRequestAgain: (once) => this.#sendRequestAgain(once),
    })
    this.#outbox = new Outbox({
      ...options,
      abandon: this.#abandon.signal,
      onProgress: (stored) => {
        this.#settlement.onProgress(stored)
        this.#watcher?.(stored, this.#outbox)
      },
      onLoss: () => this.#pacer.wakeUp(),
      isAwaited: () => this.#settlement.isWaiting,
    })
  }

  /** A copy of the counts. */
  get counts (): FlusherCounts {
    return { increments: this.#accepted, ...this.#outbox.counts, setAside: this.#settlement.setAside }
  }

  /** Distinct keys, idempotent requests and entries of plugins that are in no batch yet. */
  get pendingKeys (): number {
    return this.#accumulator.pendingKeys + (this.#drain?.pendingKeys ?? 0)
  }

  /** Estimated bytes that they take. */
  get pendingBytes (): number {
    return this.#accumulator.pendingBytes + (this.#drain?.pendingBytes ?? 0)
  }

  /** Bytes that pending replies take, with their keys and requests, and those of replies that can't be written yet. */
  get replyBytes (): number {
    return this.#settlement.counts.bytes
  }

  /**
   * Counts replies that wait for something else than a flush, and bytes of replies that are known and can't be written
   * yet; with a minus, as given or written.
   */
  addReplies (replies: number, bytes: number): void {
    this.#settlement.addReplies(replies, bytes)
  }

  /** Bytes that would have to be written to a spool file if the queue stayed away. */
  get unsentBytes (): number {
    return this.pendingBytes + this.#outbox.unstoredBytes
  }

  /** Replies that wait for their ack level. */
  get pendingReplies (): number {
    return this.#settlement.counts.replies
  }

  /** Requests that were answered with 2xx, and the increments in them. */
  get answered (): Readonly<PendingCounts['answered']> {
    return this.#settlement.counts.answered
  }

  /** Batches that are not known to be stored. */
  get unstoredBatches (): number {
    return this.#outbox.unstoredBatches
  }

  /** Increments accepted that are in no batch yet, and those in batches that are not known to be in the queue. */
  get undelivered (): { readonly pending: number, readonly window: number } {
    return {
      pending: this.#accumulator.increments + (this.#drain?.unreadIncrements ?? 0),
      window: this.#outbox.unpushedIncrements,
    }
  }

  /** Age in seconds of the oldest increment that is not known to be stored; 0 if there is none. */
  get lagSeconds (): number {
    const pending = this.#accumulator.isEmpty ? undefined : this.#accumulator.oldestAt
    const oldest = this.#outbox.oldestAt ?? this.#drain?.oldestAt ?? pending
    return oldest === undefined ? 0 : Math.max(0, Date.now() - oldest) / 1000
  }

  /** Why the queue accepts no batches or, where it keeps none, why nothing is stored; undefined while all is well. */
  get failure (): string | undefined {
    return this.#outbox.health.failure
  }

  /** Where the queue keeps no batches: that nothing could be stored for ACK_TIMEOUT_MS. */
  get storeFailure (): StoreFailure | undefined {
    return this.#outbox.health.storeFailure
  }

  /** For how many ms the queue has accepted no batches; 0 while it does. */
  get failingMs (): number {
    return this.#outbox.health.failingMs
  }

  /**
   * The idempotent request with this id that is in no batch yet: a repeat shares its reply, another body is refused.
   */
  pendingIdempotent (id: string): IdempotentRequest | undefined {
    return this.#accumulator.pendingIdempotent(id)
  }

  /** Whether the key of a request's pair `i` is in no batch yet. */
  isPending (increments: IncrementColumns, i: number): boolean {
    return this.#accumulator.has(increments, i)
  }

  /** Calls `watcher` with every report of what is stored, outcomes included. To be called once. */
  watchProgress (watcher: ProgressWatcher): void {
    this.#watcher = watcher
  }

  /** Begins to flush. To be called once. */
  start (): void {
    this.#sweeping = setInterval(() => {
      this.#settlement.sweep()
      this.#outbox.health.check()
    }, sweepMs)
    this.#outbox.start()
    this.#running = this.#run()
  }

  /**
   * Accepts a request's increments: from here on they are being delivered, whatever happens to the reply.
   * @param increments not kept: they may change once this returns
   * @param once the request itself, if it has an Idempotency-Key: then its sums count, and are kept
   * @param reply settled when `level` is reached, is late, or is refused; undefined at level `memory`, which is reached
   * now
   */
  accept (
    increments: IncrementColumns, once: IdempotentRequest | undefined, level: AckLevel, reply: PendingReply | undefined
  ): void {
    // Only the oldest increment's time is kept.
    const at = once?.at ?? (this.#accumulator.isEmpty ? Date.now() : 0)
    const pending = once === undefined ? undefined : this.#accumulator.pendingIdempotent(once.id)
    if (once === undefined) {
      this.#accumulator.add(increments, at, level === 'stored')
    } else if (pending === undefined) {
      once.storedWithinMs = level === 'stored' ? this.#options.ackTimeoutMs : undefined
      this.#accumulator.addIdempotent(once, increments.length, at)
    } else if (level !== 'stored') {
      pending.storedWithinMs = undefined
    }
    if (pending === undefined) this.#accepted += increments.length
    if (reply !== undefined && level !== 'memory') {
      reply.increments = increments.length
      this.#settlement.add(level, reply)
    } else {
      this.#settlement.countAnswered(increments.length)
    }
    this.#pacer.wakeUp()
  }

  /** Accepts an entry of a plugin: it leaves with the next flush, and its batch asks for its commit at once. */
  acceptEntry (entry: PendingEntry): void {
    this.#accumulator.addEntry(entry, this.#accumulator.isEmpty ? Date.now() : 0)
    this.#pacer.wakeUp()
  }

  /** From here on no flush waits for its interval: a stop waits for the replies that wait for it. */
  skipInterval (): void {
    this.#pacer.skipInterval()
  }

  /**
   * Flushes what is left, and gives all replies.
   * @param deadline aborts the attempt
   * @returns the batches that are not known to be in the queue or stored, in order, under the identities they keep
   */
  async finish (deadline: AbortSignal): Promise<Batch[]> {
    this.#pacer.finish()
    deadline.addEventListener('abort', () => this.#abandon.abort(), { once: true })
    if (deadline.aborted) this.#abandon.abort()
    await this.#running
    clearInterval(this.#sweeping)
    this.#settlement.finish()
    const unsent = await this.#outbox.unaccounted()
    for (const drain of [this.#drain, this.#accumulator.isEmpty ? undefined : this.#accumulator.drain()]) {
      if (drain !== undefined) unsent.push(...this.#encoder.encodeAll(drain))
    }
    // All replies have been given: nothing of it may be refused.
    return unsent.map((batch) => ({ ...batch, element: withoutRefusals(batch.element) }))
  }

  async #run (): Promise<void> {
    let polled = false
    while (!this.#abandon.signal.aborted) {
      // Replies that are due are given while the next push is in flight, or now if none leaves at once.
      if (!this.#pacer.isDue || this.#outbox.needsRepair) this.#settlement.settleReached()
      await this.#pacer.untilDue(this.#settlement.hasReached)
      if (this.#outbox.needsRepair) await this.#outbox.repair()
      if (!this.#accumulator.isEmpty) {
        await this.#flush()
      } else if (this.#pacer.finishing) {
        // What was rejected after its reply has to be sent once more.
        if (!this.#settlement.awaitsRejections || polled) return
        polled = true
        await this.#outbox.pollProgress().catch(() => {})
      }
    }
  }

  async #flush (): Promise<void> {
    const startedAt = performance.now()
    const drain = this.#accumulator.drain()
    const group = this.#settlement.begin(this.#encoder.lastSeq + 1)
    this.#drain = drain
    while (drain.pendingKeys > 0) {
      const batch = this.#encoder.encode(drain, this.#settlement.allowRefusal(group, drain.refusable))
      const delivered = this.#outbox.deliver(batch)
      // Writing hundreds of replies takes about as long as the disk takes for the push that has just left.
      this.#settlement.settleReached()
      if (!await delivered) return
    }
    this.#drain = undefined
    this.#settlement.reached(group, this.#encoder.lastSeq)
    this.#options.observeFlush((performance.now() - startedAt) / 1000)
  }

  /** A rejected sum is added once more, as what was promised. If it comes back then, it is kept in `rejected`. */
  #sendSumAgain ({ key, value }: Rejection): void {
    if (key === undefined || value === undefined) return
    this.#accumulator.addAgain(key, narrow(BigInt(value)), Date.now())
    this.#pacer.wakeUp()
  }

  #sendRequestAgain (once: IdempotentRequest): void {
    this.#accumulator.addIdempotentAgain(once)
    this.#pacer.wakeUp()
  }
}
