// The second gear: many batches become one transaction. Takes batches from the queue, applies them to the store,
// acknowledges them, tells their producers. A crash between any two of these steps repeats the first ones, and the
// store skips what it has applied before.
import { setTimeout as delay } from 'node:timers/promises'
import { readHeader } from '@gearbox/protocol/batch.ts'
import { SupersededError } from '@gearbox/protocol/owner.ts'
import type { Rejection, RejectReason, Progress } from '@gearbox/protocol/progress.ts'
import type { StoreTrouble } from '@gearbox/protocol/trouble.ts'
import { QueueUnavailableError, type ConsumerQueue } from '@gearbox/queue/queue.ts'
import type { Sequences } from '@gearbox/protocol/sequences.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { CurrentReports } from './progress.ts'
import { DatabaseMovedError } from './store/database-file.ts'
import { reportedMs, reportOf, type Report } from './store/reports.ts'
import { isBusy } from './store/open.ts'
import type { Applied } from './store/run.ts'
import type { Store } from './store/store.ts'

/** Without a wake-up the queue is looked at this often: a wake-up is only a hint and can be lost. */
const queuePollMs = 250

/** After a failure: first pause and longest one. */
const retryMs = { first: 50, most: 1000 }

const pruneIntervalMs = 10_000

/** Rejections of one commit that are logged one by one. */
const rejectionsLoggedMax = 10

/** A command of a dead connection can put older word in the place of newer: while idle, it is told again this often. */
const reportAgainMs = 5000

/** What is stored of a producer that was not heard of for this long is no longer told. */
const producerReportedMs = 7 * 24 * 3_600_000

type Trouble = 'the queue is out of reach' | 'nothing can be stored' | "the database's file is not in its place"

export interface ConsumerOptions {
  readonly queue: ConsumerQueue
  readonly store: Store
  readonly logger: Logger
  readonly commitIntervalMs: number
  /** What to do before stopping while nothing can be stored and the queue keeps nothing. */
  readonly stopAdvice?: () => string
  /** Called with the seconds that each commit took. */
  readonly observeCommit: (seconds: number) => void
}

export class Consumer {
  readonly #options: ConsumerOptions
  /** By producer, what of its rejections is still reported. */
  readonly #reports = new Map<string, CurrentReports>()
  /** Before this (performance.now ms) the queue was seen to be empty, or all of it was taken. */
  #emptiedAt = -Infinity
  /** What could not be told yet. */
  #unreported = new Map<string, Sequences>()
  /** When the oldest increment that was taken and is not stored was accepted, Unix ms; between two runs, that of the run before's end. */
  #oldestInHand: number | undefined
  #trouble: Trouble | undefined
  readonly #saidReasons = new Set<string>()
  /** Why progress can't be reported, as far as it was said. */
  #reportFailure: string | undefined
  #storeTrouble: StoreTrouble | undefined
  #committedAt = -Infinity
  #prunedAt = performance.now()
  /** Whether the database may have reports that nobody waits for any more. */
  #hasReported = true
  #forgotAt = -Infinity
  #reportedAgainAt = performance.now()
  readonly counts = { applied: 0, duplicates: 0, gaps: 0, rejected: new Map<string, number>(), setAside: 0, dropped: 0 }

  constructor (options: ConsumerOptions) {
    this.#options = options
  }

  /** Age in seconds of the oldest increment in the queue that is not stored; 0 if there is none. */
  get lagSeconds (): number {
    return this.#oldestInHand === undefined ? 0 : Math.max(0, Date.now() - this.#oldestInHand) / 1000
  }

  /**
   * Works until `stop` aborts and the queue is empty, or until `abandon` aborts.
   * @throws SupersededError when another consumer has taken over
   */
  async run (stop: AbortSignal, abandon: AbortSignal): Promise<void> {
    const { queue, store } = this.#options
    let pauseMs = retryMs.first
    this.#tellFromBefore()
    while (!abandon.aborted) {
      try {
        const { elements, queuedMs } = await this.#take()
        // Also while idle: whoever counts or reads next should know. Only the owner comes to this.
        store.checkFile()
        if (elements.length > 0) {
          await this.#handle(elements, queuedMs, abandon)
          if (!stop.aborted) await this.#keepInterval(stop)
        } else {
          this.#oldestInHand = undefined
          await this.#reportProgress()
          await this.#housekeep()
          if (stop.aborted) return
          await queue.waitForPush(queuePollMs, stop)
        }
        await this.#recovered()
        pauseMs = retryMs.first
      } catch (error) {
        if (error instanceof SupersededError) throw error
        // What is not stored yet is safe in Redis, or in the unsent files of workers that have left before.
        if (stop.aborted) return
        await this.#failed(error)
        await sleep(pauseMs, abandon)
        pauseMs = Math.min(pauseMs * 2, retryMs.most)
      }
    }
  }

  /** Takes a run. @returns with it the longest that any of it can have been in the queue */
  async #take (): Promise<{ elements: Buffer[], queuedMs: number }> {
    const { queue } = this.#options
    const before = performance.now()
    const elements = await queue.take()
    const queuedMs = performance.now() - this.#emptiedAt
    if (queue.length <= elements.length) this.#emptiedAt = before
    return { elements, queuedMs }
  }

  /** Take came before; here follow apply, acknowledge, tell. Nothing that fails loses the run: it is taken again. */
  async #handle (elements: readonly Buffer[], queuedMs: number, abandon: AbortSignal): Promise<void> {
    const { queue, store, observeCommit } = this.#options
    const acceptedAt = elements.map((element) => {
      const header = readHeader(element)
      return typeof header === 'string' ? Date.now() : header.at
    })
    this.#oldestInHand = Math.min(...acceptedAt)
    const startedAt = performance.now()
    let applied: Applied
    try {
      applied = store.apply(elements, queuedMs)
    } catch (error) {
      // A full disk or an I/O error; what the connection cached may be wrong now.
      const stands = error instanceof SupersededError || error instanceof DatabaseMovedError || isBusy(error)
      if (!stands && !abandon.aborted) store.reopen()
      throw error
    }
    this.#committedAt = performance.now()
    this.#oldestInHand = undefined
    observeCommit((this.#committedAt - startedAt) / 1000)
    this.#count(applied)
    for (const [producer, sequences] of applied.stored) this.#unreported.set(producer, sequences)
    await queue.acknowledge(elements)
    // What still waits came after this run's last batch. Without it a consumer that is far behind would show no lag between two runs.
    if (queue.length > 0) this.#oldestInHand = acceptedAt.at(-1)
    await this.#reportProgress()
  }

  /** A consumer before this one may have died between its commit and telling of it. */
  #tellFromBefore (): void {
    const { store } = this.#options
    this.#unreported = store.producersSeenSince(Date.now() - producerReportedMs)
    // Only where a reply may still wait is it worth reading what was rejected.
    for (const producer of store.producersSeenSince(Date.now() - reportedMs).keys()) {
      for (const report of store.reportsTo(producer)) this.#report(producer, report)
    }
  }

  #report (producer: string, report: Report): void {
    const reports = this.#reports.get(producer) ?? new CurrentReports()
    reports.add(report)
    this.#hasReported = true
    this.#reports.set(producer, reports)
  }

  #count ({ batches, duplicates, gaps, rejections, repeated, dropped, evicted }: Applied): void {
    const { logger } = this.#options
    this.counts.applied += batches
    this.counts.duplicates += duplicates
    for (const { producer, from, to } of gaps) {
      this.counts.gaps += to - from + 1
      logger.warn({ producer, from, to }, `sequences ${from} to ${to} of worker ${producer} did not arrive: the queue lost them. If the worker lives it sends them again`)
    }
    const byBatch = new Map<string, { producer: string, seq: number, rejections: Rejection[] }>()
    for (const [i, { producer, ...rejection }] of rejections.entries()) {
      const { filed = true, reason, seq } = rejection
      this.counts.rejected.set(reason, (this.counts.rejected.get(reason) ?? 0) + 1)
      if (filed && reason !== 'unreadable') this.counts.setAside++
      if (i < rejectionsLoggedMax) {
        if (filed) logger.warn({ producer, ...rejection }, `could not be applied: ${describe(rejection)}. "npm run rejected" lists it and can try it again`)
        else logger.warn({ producer, ...rejection }, `refused: ${describe(rejection)}; its clients are told so`)
      }
      if (producer === undefined) continue
      const batch = byBatch.get(`${producer} ${seq}`) ?? { producer, seq, rejections: [] }
      batch.rejections.push(rejection)
      byBatch.set(`${producer} ${seq}`, batch)
    }
    if (rejections.length > rejectionsLoggedMax) logger.warn(`${rejections.length - rejectionsLoggedMax} more could not be applied or were refused in the same commit`)
    for (const { producer, seq, rejections } of byBatch.values()) this.#report(producer, reportOf(seq, rejections))
    for (const { producer, ...report } of repeated) this.#report(producer, report)
    this.#countDropped(dropped, evicted)
  }

  /** What was promised and is nowhere now is said, as far as a log can. */
  #countDropped (dropped: Applied['dropped'], evicted: number): void {
    const { logger } = this.#options
    this.counts.dropped += dropped.length + evicted
    const limits = '"npm run rejected" lists as much as it may (REJECTED_ROWS_MAX, REJECTED_BYTES_MAX)'
    for (const { value, ...entry } of dropped.slice(0, rejectionsLoggedMax)) {
      logger.error({ ...entry, ...(value === undefined ? {} : { value: String(value) }) }, `not kept: ${describe(entry)}, and ${limits}`)
    }
    if (dropped.length > rejectionsLoggedMax) logger.error(`${dropped.length - rejectionsLoggedMax} more were not kept in the same commit`)
    if (evicted > 0) logger.error({ evicted }, `${evicted} of the oldest entries made room for others, as ${limits}`)
  }

  /** Tells all that is left to tell. If that fails it stays, for the next round: at maxmemory Redis keeps no word of it until this consumer made room. */
  async #reportProgress (): Promise<void> {
    if (this.#unreported.size === 0) return
    const now = performance.now()
    for (const [producer, reports] of this.#reports) {
      reports.expire(now)
      if (reports.isEmpty) this.#reports.delete(producer)
    }
    try {
      await this.#options.queue.reportProgress(new Map(Array.from(this.#unreported, ([producer, sequences]) => [producer, this.#storedOf(producer, sequences)])))
      this.#unreported = new Map()
      this.#reportFailure = undefined
    } catch (error) {
      if (!(error instanceof QueueUnavailableError)) throw error
      const reason = this.#options.queue.unreachable ?? error.message
      if (reason !== this.#reportFailure) this.#options.logger.warn(`workers can't be told what is stored: ${reason}. It is tried again with each commit`)
      this.#reportFailure = reason
    }
  }

  #storedOf (producer: string, { high, gaps }: Sequences): Progress {
    return { high, gaps, ...this.#reports.get(producer)?.stored ?? { rejected: [], omittedRejections: [] } }
  }

  async #housekeep (): Promise<void> {
    const { store, queue } = this.#options
    const now = performance.now()
    if (now - this.#reportedAgainAt > reportAgainMs) {
      // Added to what could not be told yet, not in its place.
      for (const [producer, sequences] of store.producersSeenSince(Date.now() - reportedMs)) this.#unreported.set(producer, sequences)
      this.#reportedAgainAt = now
    }
    if ((store.idempotencyRows > 0 || this.#hasReported) && now - this.#prunedAt > pruneIntervalMs && !store.prune()) {
      this.#prunedAt = now
      this.#hasReported = this.#reports.size > 0
    }
    if (now - this.#forgotAt > producerReportedMs / 24) {
      await queue.forget(store.producersUnseenSince(Date.now() - producerReportedMs))
      this.#forgotAt = now
    }
  }

  async #keepInterval (stop: AbortSignal): Promise<void> {
    const restMs = this.#committedAt + this.#options.commitIntervalMs - performance.now()
    if (restMs > 0) await sleep(restMs, stop)
  }

  /** Logs what is wrong once, not at every try, and reports it to the workers. */
  async #failed (error: unknown): Promise<void> {
    const { queue, logger } = this.#options
    const queueFailed = error instanceof QueueUnavailableError
    const reason = (queueFailed ? queue.unreachable : undefined) ?? reasonOf(error)
    const moved = error instanceof DatabaseMovedError
    const trouble: Trouble = queueFailed
      ? 'the queue is out of reach'
      : moved ? "the database's file is not in its place" : 'nothing can be stored'
    // The reason can change while the trouble lasts: a Redis that comes back with another password is another trouble.
    if (trouble !== this.#trouble || !this.#saidReasons.has(reason)) {
      logger.error(queueFailed ? `${trouble}: ${queue.name}, ${reason}; no data is lost; retrying` : `${trouble} (${reason}): ${this.#advice(moved)}`)
      this.#storeTrouble = queueFailed ? undefined : { reason: moved ? `${trouble} (${reason})` : reason, moved }
    }
    this.#trouble = trouble
    this.#saidReasons.add(reason)
    await queue.reportTrouble(this.#storeTrouble)
  }

  #advice (moved: boolean): string {
    const { queue, stopAdvice } = this.#options
    const cure = moved ? 'put it back' : "check the database's disk and who else has it open"
    return queue.keepsBatches ? `no data is lost; retrying; ${cure}` : `retrying; ${cure}. ${stopAdvice?.() ?? beforeStopping}`
  }

  async #recovered (): Promise<void> {
    if (this.#trouble === undefined) return
    this.#options.logger.info('storing batches again')
    this.#trouble = undefined
    this.#saidReasons.clear()
    this.#storeTrouble = undefined
    await this.#options.queue.reportTrouble(undefined)
  }
}

/** An embedded queue keeps nothing on a disk. */
const beforeStopping = 'Do so before stopping: what waits is in memory only'

function describe (rejection: { reason: RejectReason, key?: string | undefined }): string {
  if (rejection.reason === 'overflow') return `the total of ${JSON.stringify(rejection.key)} would leave 64 bits`
  if (rejection.reason === 'other body') return 'an Idempotency-Key came again with another body'
  if (rejection.reason === 'too late') return 'an Idempotency-Key came so late that it may be a repeat'
  if (rejection.reason === 'trigger') return `a trigger or an index of the database refuses ${rejection.key === undefined ? 'a request with an Idempotency-Key' : JSON.stringify(rejection.key)}`
  return 'a batch that can not be read'
}

async function sleep (ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch(() => {})
}
