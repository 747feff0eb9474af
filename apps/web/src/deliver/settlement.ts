// Decides when each pending reply is given and what it is: when its flush has reached the queue or the database, was
// refused in part, or took too long. The flusher adds replies and reports how far each flush has come; the outbox's
// reports say what is stored.
import type { IdempotentRequest } from '@gearbox/protocol/batch.ts'
import type { Progress, Rejection } from '@gearbox/protocol/progress.ts'
import { hasAll, isSubset } from '@gearbox/protocol/sequences.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { LateReplies, type LateFlush } from './late-replies.ts'
import { PendingReplies, type PendingCounts, type PendingReply } from './pending-replies.ts'
import { costOf, RejectionIndex, type Verdict } from './verdict.ts'

/** Keys of pending replies that are compared with what was rejected in one event-loop iteration: about 5 ms of work. */
const settledKeysMax = 100_000

/**
 * One flush and the replies that wait for it. It is open while its requests are still in the accumulator, then being
 * encoded, then encoded: all of its batches are in the queue. Only its Settlement changes it.
 */
export class FlushGroup implements LateFlush {
  readonly queued: PendingReplies
  readonly stored: PendingReplies
  /**
   * Whether a reply of level `stored` was given before that was reached. Then nothing in its batches is refused any
   * more: what the database can't apply was promised to one of their clients by a 202.
   */
  late = false
  /** Whether a batch of it says that it may be refused. */
  refusable = false
  /** The first sequence of the last flush before it of which the same is true. */
  refusableBefore = 0
  /** 0 while it is open. */
  firstSeq = 0
  /** Infinite until its last batch is encoded and in the queue: until then no report can settle the group. */
  lastSeq = Number.POSITIVE_INFINITY

  constructor (counts: PendingCounts) {
    this.queued = new PendingReplies(counts)
    this.stored = new PendingReplies(counts)
  }
}

/** What a settlement works with, and who delivers again what it has to send once more. */
export interface SettlementOptions {
  readonly logger: Logger
  /** How long a reply waits for its ack level. */
  readonly ackTimeoutMs: number
  /** Sends a sum once more that was promised by a 202 and not applied. */
  readonly sendSumAgain: (rejection: Rejection) => void
  /** The same for an idempotent request. */
  readonly sendRequestAgain: (once: IdempotentRequest) => void
}

/**
 * All pending replies of one worker, by the flush that they wait for. A group of them goes this way:
 *
 * - open: one group always is, and `add` puts replies into it. Left by `begin`, when its flush begins; then another is
 *   open.
 * - being delivered: entered by `begin`. Left by `reached`, when all of its batches are in the queue.
 * - due: entered by `reached`. Left by `settleReached`, which gives its replies at level `queued`.
 * - waiting to be stored: while it has replies at level `stored`, until a report covers its sequences.
 * - being settled: it is stored, and entries of it were rejected. A slice of its replies is given in each event-loop
 *   iteration.
 *
 * In each of these `sweep` gives replies as late whose time is up, and `finish` all that are left.
 */
export class Settlement {
  readonly #options: SettlementOptions
  readonly #counts: PendingCounts = { replies: 0, bytes: 0, answered: { requests: 0, increments: 0 } }
  #open = new FlushGroup(this.#counts)
  /** The group whose replies at level `queued` are due. */
  #due: FlushGroup | undefined
  /** Groups that are being delivered or wait to be stored, oldest first. */
  readonly #groups = new Set<FlushGroup>()
  /** Groups that are being settled. */
  #settling: Array<{ readonly group: FlushGroup, readonly verdict: Verdict }> = []
  readonly #lateReplies = new LateReplies()
  /** First sequences of the last flush that may be refused, and of the last one of them whose replies were late. */
  #lastRefusable = 0
  #lastLate = 0
  /** The newest report of what is stored. */
  #progress: Progress | undefined
  #setAside = 0

  constructor (options: SettlementOptions) {
    this.#options = options
  }

  /** How many replies are pending, how many bytes they take, and what was answered with 2xx. */
  get counts (): Readonly<PendingCounts> {
    return this.#counts
  }

  /** Batches with entries that were promised, could not be applied, and are not known one by one. */
  get setAside (): number {
    return this.#setAside
  }

  /** Whether replies at level `queued` are due that `settleReached` has not given yet. */
  get hasReached (): boolean {
    return this.#due !== undefined
  }

  /** Whether a flush is being delivered, or waits to be stored. */
  get isWaiting (): boolean {
    return this.#groups.size > 0
  }

  /** Whether the consumer may still refuse what was answered with 202, which then has to be sent once more. */
  get awaitsRejections (): boolean {
    return !this.#lateReplies.isEmpty
  }

  /** Adds the reply of a request that is in the accumulator: it waits for the next flush. */
  add (level: 'queued' | 'stored', reply: PendingReply): void {
    this.#open[level].add(reply)
  }

  /** Counts a request that is answered at once, as it asked for level `memory`. */
  countAnswered (increments: number): void {
    this.#counts.answered.requests++
    this.#counts.answered.increments += increments
  }

  /**
   * Counts replies that wait for something else than a flush, and bytes of any; with a minus, as given or written.
   */
  addReplies (replies: number, bytes: number): void {
    this.#counts.replies += replies
    this.#counts.bytes += bytes
  }

  /** A flush begins: it is of all replies that were added since the last one. @param firstSeq of its first batch */
  begin (firstSeq: number): FlushGroup {
    const group = this.#open
    this.#open = new FlushGroup(this.#counts)
    group.firstSeq = firstSeq
    this.#groups.add(group)
    return group
  }

  /**
   * Decides whether a batch that is about to be encoded may say that its sums can be refused.
   * @param allStored whether all of its sums were asked for at level `stored`
   */
  allowRefusal (group: FlushGroup, allStored: boolean): boolean {
    if (!allStored || group.late) return false
    if (!group.refusable) {
      group.refusable = true
      group.refusableBefore = this.#lastRefusable
      this.#lastRefusable = group.firstSeq
    }
    return true
  }

  /** All of a flush is in the queue. Its replies at level `queued` are given by the next call of `settleReached`. */
  reached (group: FlushGroup, lastSeq: number): void {
    group.lastSeq = lastSeq
    this.#due = group
    // One that was late is removed by the next sweep.
    if (group.stored.size === 0 && !group.late) this.#groups.delete(group)
    // The last batch may have been reported as stored before its push was known to have worked.
    else if (this.#progress !== undefined) this.#settleStored(this.#progress)
  }

  /**
   * Gives the replies at level `queued` that are due. Hundreds of them take about as long as the disk takes for a push.
   */
  settleReached (): void {
    const group = this.#due
    this.#due = undefined
    group?.queued.settleAll(() => 'reached')
  }

  /** A report of what is stored. Reports can repeat, and can come out of order. */
  onProgress (stored: Progress): void {
    if (this.#progress === undefined || isSubset(this.#progress, stored)) this.#progress = stored
    this.#settleStored(stored)
    this.#settleLateReplies(stored)
  }

  /** Gives replies as late whose time is up. To be called many times a second. */
  sweep (): void {
    const before = performance.now() - this.#options.ackTimeoutMs
    for (const group of [this.#open, ...this.#groups]) {
      group.queued.settleLate(before)
      group.stored.settleLate(before, ({ once }) => {
        group.late = true
        if (once === undefined) return
        // Until it is encoded it can still become one that is not refused.
        if (group.firstSeq === 0) once.storedWithinMs = undefined
        else this.#lateReplies.keepRequest(once, group)
      })
      if (group.lastSeq === Number.POSITIVE_INFINITY || group.stored.size > 0) continue
      // Nobody waits for it any more: a consumer that is away for hours must not make this grow.
      this.#groups.delete(group)
      if (group.late) this.#addLate(group)
    }
    this.#lateReplies.dropOld()
  }

  /** Gives all replies that are left at the end: as what is known of them, or else as late. */
  finish (): void {
    this.settleReached()
    while (this.#settling.length > 0) this.#settleSlice()
    for (const group of [...this.#groups, this.#open]) {
      group.queued.settleAll(() => 'late')
      group.stored.settleAll(() => 'late')
    }
  }

  #settleStored (stored: Progress): void {
    let rejections: RejectionIndex | undefined
    for (const group of this.#groups) {
      const { firstSeq, lastSeq } = group
      // The groups behind it have higher sequences, or none yet.
      if (firstSeq > stored.high) break
      if (!hasAll(stored, firstSeq, lastSeq)) continue
      this.#groups.delete(group)
      rejections ??= new RejectionIndex(stored)
      const verdict = rejections.between(firstSeq, lastSeq, group.late)
      if (verdict === undefined) {
        group.stored.settleAll(() => 'reached')
        continue
      }
      for (const rejection of verdict.promised) this.#options.sendSumAgain(rejection)
      this.#countSetAside(verdict.unknown)
      if (this.#settling.push({ group, verdict }) === 1) this.#settleSlice()
    }
  }

  /** Settles as many replies as an event-loop iteration should; the others follow in the next ones. */
  #settleSlice (): void {
    let left = settledKeysMax
    for (const { group, verdict } of this.#settling) {
      left -= group.stored.settleSome((reply) => verdict.outcomeOf(reply, this.#options.sendRequestAgain), left, costOf)
      if (group.stored.size > 0) break
    }
    this.#settling = this.#settling.filter(({ group }) => group.stored.size > 0)
    if (this.#settling.length > 0) setImmediate(() => this.#settleSlice())
  }

  #addLate (group: FlushGroup): void {
    this.#lateReplies.add(group, group.refusableBefore === this.#lastLate)
    if (group.refusable) this.#lastLate = group.firstSeq
  }

  /**
   * What was rejected and not filed although the replies were late: their 202 promised that it would be counted or
   * kept.
   */
  #settleLateReplies (stored: Progress): void {
    if (this.#lateReplies.isEmpty) return
    const { rejections, requests, unknown } = this.#lateReplies.settle(stored)
    for (const rejection of rejections) this.#options.sendSumAgain(rejection)
    for (const request of requests) this.#options.sendRequestAgain(request)
    this.#countSetAside(unknown)
  }

  #countSetAside (batches: number): void {
    if (batches === 0) return
    this.#setAside += batches
    this.#options.logger.warn(`${batches} batches of requests that were answered with 202 had more entries that ` +
      'could not be applied than are reported')
  }
}
