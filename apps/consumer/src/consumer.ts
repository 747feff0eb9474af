// The consumer's loop: takes batches from the queue, applies them to the store, acknowledges them, reports progress to
// their producers. A crash between any two of these steps repeats the first ones, and the store skips what it has
// applied.
import { setTimeout as delay } from 'node:timers/promises'
import { SupersededError } from '@gearbox/protocol/owner.ts'
import { CommitLog } from './commit-log.ts'
import { Housekeeping } from './housekeeping.ts'
import { NewerBatchError, nextRun } from './next-run.ts'
import { ProgressReporter, type ProgressOptions } from './progress.ts'
import { DatabaseMovedError } from './store/database-file.ts'
import { isBusy } from './store/open.ts'
import type { Applied } from './store/run.ts'
import { TroubleReporter, type TroubleOptions } from './trouble.ts'

/** The queue is polled this often even without a wake-up, which is only a hint and can be lost. */
const queuePollMs = 250

/** After a failure: the first pause and the longest one. */
const retryMs = { first: 50, most: 1000 }

/**
 * The parts of a consumer and its pace. The queue is started and owned; the consumer closes neither queue nor store.
 */
export interface ConsumerOptions extends ProgressOptions, TroubleOptions {
  /** The least time from one commit to the next, so that under load one transaction takes many batches. */
  readonly commitIntervalMs: number
  /** Called with the seconds that each commit took. */
  readonly observeCommit: (seconds: number) => void
}

/** What was taken at once. */
interface Taken {
  readonly elements: readonly Buffer[]
  /** The longest that any of it can have been in the queue. */
  readonly queuedMs: number
  /** Before this (performance.now ms) nothing was in the queue but what was taken; undefined: there was more. */
  readonly emptiedAt: number | undefined
}

/**
 * Many batches become one transaction. `run` may be called once; its states:
 *
 * - working: a run was taken; it is applied, acknowledged, reported, and after the commit interval the next is taken.
 * - idle: the queue was empty. Housekeeping is done, and a push or the poll interval leads back to working.
 * - retrying, after anything failed: nothing was acknowledged that is not stored, so the same run is taken again after
 *   a pause that doubles. The first success ends it.
 * - ended: `stop` aborted and the queue is empty or something failed; `abandon` aborted; or another consumer superseded
 *   this one, or the next batch is of a newer version, which rejects.
 *
 * Only the loop changes them.
 */
export class Consumer {
  readonly #options: ConsumerOptions
  readonly #progress: ProgressReporter
  readonly #housekeeping: Housekeeping
  readonly #trouble: TroubleReporter
  /** Before this (performance.now ms) nothing was in the queue that is not handled. */
  #emptiedAt = -Infinity
  /** performance.now ms */
  #committedAt = -Infinity
  /**
   * When the oldest increment that was taken and is not stored was accepted, Unix ms. Between two runs, when the last
   * one of the run before was accepted, while more wait.
   */
  #oldestAcceptedAt: number | undefined
  /** What the commits did. */
  readonly counts: CommitLog

  constructor (options: ConsumerOptions) {
    this.#options = options
    this.counts = new CommitLog(options.logger)
    this.#progress = new ProgressReporter(options)
    this.#housekeeping = new Housekeeping(options.queue, options.store, this.#progress)
    this.#trouble = new TroubleReporter(options)
  }

  /** Age in seconds of the oldest increment in the queue that is not stored; 0 if there is none. */
  get lagSeconds (): number {
    return this.#oldestAcceptedAt === undefined ? 0 : Math.max(0, Date.now() - this.#oldestAcceptedAt) / 1000
  }

  /**
   * Works until `stop` aborts and the queue is empty, or until `abandon` aborts.
   * @throws SupersededError when another consumer owns database or queue; NewerBatchError when the next batch is of a
   * newer version
   */
  async run (stop: AbortSignal, abandon: AbortSignal): Promise<void> {
    const { queue, store } = this.#options
    let pauseMs = retryMs.first
    this.#progress.addFromStore()
    while (!abandon.aborted) {
      try {
        const taken = await this.#take()
        // Also while idle: whoever counts or reads next should know. Only the owner gets this far.
        store.checkFile()
        this.#readResultRequests()
        if (taken.elements.length > 0) {
          const isWhole = await this.#handle(taken, abandon)
          if (isWhole && taken.emptiedAt !== undefined) this.#emptiedAt = taken.emptiedAt
          // A correction waits for its run; so does what is behind it.
          if (isWhole && !stop.aborted) await this.#keepInterval(stop)
        } else {
          this.#emptiedAt = taken.emptiedAt ?? this.#emptiedAt
          this.#oldestAcceptedAt = undefined
          await this.#progress.report()
          await this.#housekeeping.run()
          if (stop.aborted) return
          await queue.waitForPush(queuePollMs, stop)
        }
        await this.#trouble.recovered()
        pauseMs = retryMs.first
      } catch (error) {
        if (error instanceof SupersededError || (error instanceof NewerBatchError && !stop.aborted)) throw error
        // What is not stored yet is safe in Redis, or in the unsent files of workers that have left before.
        if (stop.aborted) return
        await this.#trouble.failed(error)
        await sleep(pauseMs, abandon)
        pauseMs = Math.min(pauseMs * 2, retryMs.most)
      }
    }
  }

  async #take (): Promise<Taken> {
    const { queue } = this.#options
    const before = performance.now()
    const elements = await queue.take()
    const queuedMs = performance.now() - this.#emptiedAt
    return { elements, queuedMs, emptiedAt: queue.length <= elements.length ? before : undefined }
  }

  #readResultRequests (): void {
    const { queue, store } = this.#options
    for (const { producer, received, missing } of queue.takeResultRequests()) {
      store.results.noteReceived(producer, received)
      this.#progress.addMissing(producer, missing)
    }
  }

  /**
   * Applies, acknowledges and reports a run. If anything fails nothing is lost: the run is taken again.
   * @returns whether it was all that was taken
   */
  async #handle ({ elements: taken, queuedMs }: Taken, abandon: AbortSignal): Promise<boolean> {
    const { queue, observeCommit } = this.#options
    const { elements, acceptedAt } = nextRun(taken, queue.name)
    this.#oldestAcceptedAt = Math.min(...acceptedAt)
    const startedAt = performance.now()
    const applied = this.#apply(elements, queuedMs, abandon)
    this.#committedAt = performance.now()
    this.#oldestAcceptedAt = undefined
    observeCommit((this.#committedAt - startedAt) / 1000)
    this.counts.add(applied)
    this.#progress.add(applied)
    await queue.acknowledge(elements)
    // What still waits came after this run's last batch: a consumer that is far behind shows a lag between two runs,
    // too.
    if (queue.length > 0) this.#oldestAcceptedAt = acceptedAt.at(-1)
    await this.#progress.report()
    return elements.length === taken.length
  }

  #apply (elements: readonly Buffer[], queuedMs: number, abandon: AbortSignal): Applied {
    const { store } = this.#options
    try {
      return store.apply(elements, queuedMs)
    } catch (error) {
      // A full disk or an I/O error; what the connection cached may be wrong now.
      const isSound = error instanceof SupersededError || error instanceof DatabaseMovedError || isBusy(error)
      if (!isSound && !abandon.aborted) store.reopen()
      throw error
    }
  }

  async #keepInterval (stop: AbortSignal): Promise<void> {
    const restMs = this.#committedAt + this.#options.commitIntervalMs - performance.now()
    if (restMs > 0) await this.#options.queue.waitForHurry(restMs, stop)
  }
}

async function sleep (ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch(() => {})
}
