// The progress that is still to be reported to each producer: which of its sequences are stored, with the rejections of
// the last minute, and new outcomes of entries. Fed by the consumer's loop after each commit; reports by the queue.
import type { Progress, Rejection } from '@gearbox/protocol/progress.ts'
import type { Sequences } from '@gearbox/protocol/sequences.ts'
import { QueueUnavailableError, type ConsumerQueue } from '@gearbox/queue/queue.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { PendingResults } from './pending-results.ts'
import { omittedOf, reportedMax, reportedMs, reportOf, type Report } from './store/reports.ts'
import type { Applied } from './store/run.ts'
import type { Store } from './store/store.ts'

/**
 * A command of a dead connection can put older progress in the place of newer: while idle, it is reported this often.
 */
const reportAgainMs = 5000

/** Progress of a producer of which nothing was stored for this long is no longer reported. */
export const producerReportedMs = 7 * 24 * 3_600_000

/** What the reporter needs of the consumer. */
export interface ProgressOptions {
  readonly queue: ConsumerQueue
  readonly store: Store
  readonly logger: Logger
}

/**
 * Reports progress to producers. A producer's progress is pending from `add` (or `addFromStore`, `addAgain`) until a
 * `report` succeeds; a report that fails leaves it pending. Nothing that is lost here is lost for good: the store has
 * it.
 */
export class ProgressReporter {
  readonly #options: ProgressOptions
  /** By producer, its rejections that are part of every report. */
  readonly #rejections = new Map<string, RecentRejections>()
  /** By producer, what is stored and was not reported yet. */
  #pending = new Map<string, Sequences>()
  readonly #results = new PendingResults()
  /** Why progress can't be reported, as it was logged. */
  #failure: string | undefined
  /** performance.now ms */
  #addedAgainAt = performance.now()
  #mayHaveOldReports = true

  constructor (options: ProgressOptions) {
    this.#options = options
  }

  /** Whether the database may have reports that no reply waits for any more. */
  get mayHaveOldReports (): boolean {
    return this.#mayHaveOldReports
  }

  /** To be called when those were deleted. */
  oldReportsDeleted (): void {
    this.#mayHaveOldReports = this.#rejections.size > 0
  }

  /** At the start: a consumer before this one may have died between its commit and its report. */
  addFromStore (): void {
    const { store } = this.#options
    this.#pending = store.producersSeenSince(Date.now() - producerReportedMs)
    // Only where a reply may still wait is it worth reading what was rejected.
    for (const producer of store.producersSeenSince(Date.now() - reportedMs).keys()) {
      for (const report of store.reportsTo(producer)) this.#addReport(producer, report)
    }
  }

  /** What a commit has stored and rejected, and what became of its entries. */
  add ({ stored, rejections, repeated, results }: Applied): void {
    const byBatch = new Map<string, { producer: string, seq: number, rejections: Rejection[] }>()
    for (const { producer, ...rejection } of rejections) {
      if (producer === undefined) continue
      const { seq } = rejection
      const batch = byBatch.get(`${producer} ${seq}`) ?? { producer, seq, rejections: [] }
      batch.rejections.push(rejection)
      byBatch.set(`${producer} ${seq}`, batch)
    }
    for (const { producer, seq, rejections } of byBatch.values()) this.#addReport(producer, reportOf(seq, rejections))
    for (const { producer, ...report } of repeated) this.#addReport(producer, report)
    for (const [producer, sequences] of stored) this.#pending.set(producer, sequences)
    this.#results.add(results)
  }

  /** What a worker lacks: the outcomes of entries of stored batches. */
  addMissing (producer: string, sequences: readonly number[]): void {
    const { store } = this.#options
    for (const seq of sequences) {
      if (this.#results.isFull) break
      this.#results.add(store.results.read(producer, seq))
    }
  }

  /** While idle: makes what is stored of recent producers pending again, every few seconds. */
  addAgain (): void {
    const now = performance.now()
    if (now - this.#addedAgainAt <= reportAgainMs) return
    // Added to what is pending, not in its place.
    const recent = this.#options.store.producersSeenSince(Date.now() - reportedMs)
    for (const [producer, sequences] of recent) this.#pending.set(producer, sequences)
    this.#addedAgainAt = now
  }

  /**
   * Reports all that is pending. If the queue can't take it, it stays pending: at maxmemory Redis keeps no progress
   * until this consumer has made room.
   */
  async report (): Promise<void> {
    if (this.#pending.size === 0 && this.#results.isEmpty) return
    this.#expireRejections()
    const { queue, logger } = this.#options
    try {
      do {
        await queue.reportProgress(this.#nextMessage())
        this.#results.sent()
        this.#pending = new Map()
      } while (!this.#results.isEmpty)
      this.#failure = undefined
    } catch (error) {
      if (!(error instanceof QueueUnavailableError)) throw error
      const reason = queue.unreachable ?? error.message
      if (reason === this.#failure) return
      logger.warn(`progress can't be reported to workers: ${reason}; retrying with each commit`)
      this.#failure = reason
    }
  }

  /** What is stored of producers, with as many outcomes as one message may have. */
  #nextMessage (): Map<string, Progress> {
    const news = this.#results.next()
    const stored = new Map(this.#pending)
    for (const producer of news.keys()) {
      if (!stored.has(producer)) stored.set(producer, this.#options.store.storedOf(producer))
    }
    return new Map(Array.from(stored, ([producer, { high, gaps }]): [string, Progress] => {
      const { progress = { rejected: [], omittedRejections: [] } } = this.#rejections.get(producer) ?? {}
      const results = news.get(producer)
      return [producer, { high, gaps, ...progress, ...(results === undefined ? {} : { results }) }]
    }))
  }

  #addReport (producer: string, report: Report): void {
    const rejections = this.#rejections.get(producer) ?? new RecentRejections()
    rejections.add(report)
    this.#mayHaveOldReports = true
    this.#rejections.set(producer, rejections)
  }

  #expireRejections (): void {
    const now = performance.now()
    for (const [producer, rejections] of this.#rejections) {
      rejections.expire(now)
      if (rejections.isEmpty) this.#rejections.delete(producer)
    }
  }
}

interface Recent {
  report: Report
  /** performance.now ms */
  readonly until: number
}

/**
 * The rejections of one producer that are in every report of its progress: a report is complete, as any may be lost.
 */
class RecentRejections {
  /** By sequence, oldest first. */
  readonly #reports = new Map<number, Recent>()
  #rejections = 0

  get isEmpty (): boolean {
    return this.#reports.size === 0
  }

  /** Adds what was rejected of a batch, in the place of an earlier report of it. Of too many the oldest are omitted. */
  add (report: Report): void {
    this.#delete(report.seq)
    this.#reports.set(report.seq, { report, until: performance.now() + reportedMs })
    this.#rejections += report.rejections.length
    for (const recent of this.#reports.values()) {
      const excess = this.#rejections - reportedMax
      if (excess <= 0) break
      const { seq, rejections, omitted } = recent.report
      if (rejections.length === 0) continue
      const others = omittedOf(rejections.slice(0, excess))
      recent.report = { seq, rejections: rejections.slice(excess), omitted: omitted === 'filed' ? omitted : others }
      this.#rejections -= Math.min(excess, rejections.length)
    }
  }

  /** Removes what no reply can wait for any more. */
  expire (now: number): void {
    for (const [seq, { until }] of this.#reports) {
      if (until > now) break
      this.#delete(seq)
    }
  }

  /** As it is part of a progress message. */
  get progress (): Pick<Progress, 'rejected' | 'omittedRejections' | 'omittedFiled'> {
    const rejected: Rejection[] = []
    const omittedRejections: number[] = []
    const omittedFiled: number[] = []
    for (const { report: { seq, rejections, omitted } } of this.#reports.values()) {
      for (const rejection of rejections) rejected.push(rejection)
      if (omitted === undefined) continue
      omittedRejections.push(seq)
      if (omitted === 'filed') omittedFiled.push(seq)
    }
    return { rejected, omittedRejections, ...(omittedFiled.length === 0 ? {} : { omittedFiled }) }
  }

  #delete (seq: number): void {
    this.#rejections -= this.#reports.get(seq)?.report.rejections.length ?? 0
    this.#reports.delete(seq)
  }
}
