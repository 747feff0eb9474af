// What the consumer does while the queue is empty: deletes what the database need not remember, and what the queue
// keeps of producers that are long gone.
import type { ConsumerQueue } from '@gearbox/queue/queue.ts'
import { producerReportedMs, type ProgressReporter } from './progress.ts'
import type { Store } from './store/store.ts'

const pruneIntervalMs = 10_000

const forgetIntervalMs = producerReportedMs / 24

/** Keeps database and queue small. Each task has its own interval; one that fails is tried again at the next `run`. */
export class Housekeeping {
  readonly #queue: ConsumerQueue
  readonly #store: Store
  readonly #progress: ProgressReporter
  /** performance.now ms */
  #prunedAt = performance.now()
  /** performance.now ms */
  #forgotAt = -Infinity

  constructor (queue: ConsumerQueue, store: Store, progress: ProgressReporter) {
    this.#queue = queue
    this.#store = store
    this.#progress = progress
  }

  /** Does what is due: some 20 ms of work at most. @throws SupersededError, QueueUnavailableError, any SQLite error */
  async run (): Promise<void> {
    const now = performance.now()
    this.#progress.addAgain()
    this.#prune(now)
    if (now - this.#forgotAt > forgetIntervalMs) {
      await this.#queue.forget(this.#store.producersUnseenSince(Date.now() - producerReportedMs))
      this.#forgotAt = now
    }
  }

  #prune (now: number): void {
    const hasAny = this.#store.idempotencyRows > 0 || this.#progress.mayHaveOldReports ||
      this.#store.results.mayHaveRows
    if (!hasAny || now - this.#prunedAt <= pruneIntervalMs) return
    // Where there may be more, the next run goes on.
    if (this.#store.prune()) return
    this.#prunedAt = now
    this.#progress.oldReportsDeleted()
  }
}
