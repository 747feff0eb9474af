// Whether the queue accepts batches, since when not, and why. The outbox reports the result of every attempt to it;
// /readyz, the 503s of count requests and the log are decided by it.
import { connecting, type ProducerQueue, type StoreFailure } from '@gearbox/queue/queue.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'

/** A failure shorter than this is not worth a line. */
const quietFailureMs = 1000

/** Which queue it is about, and where its failures are logged. */
export interface QueueHealthOptions {
  readonly queue: ProducerQueue
  readonly logger: Logger
  /** How long a queue that keeps no batches may store nothing before that counts as a failure. */
  readonly ackTimeoutMs: number
}

/**
 * The states of a queue, as a worker sees them:
 *
 * - failing: at the start, as nothing is known yet. Entered by `attemptFailed`, and by `check` where there is a
 *   `failure`. After 1 s `check` logs one warning for each reason.
 * - working: entered by `check`, and by nothing else, where there is no `failure`. If one was logged, one line says
 *   that it is over.
 */
export class QueueHealth {
  readonly #options: QueueHealthOptions
  /** When it began to fail (performance.now, ms); undefined while it works. */
  #failingSince: number | undefined = performance.now()
  /** Why the last attempt to push failed. */
  #attemptFailure: string | undefined
  /** Reasons of the present failure that were logged. */
  readonly #logged = new Set<string>()
  /** Why the last failed poll of progress failed. */
  #pollFailure = { reason: '', logged: false }

  constructor (options: QueueHealthOptions) {
    this.#options = options
  }

  /** Why the queue accepts no batches or, where it keeps none, why nothing is stored; undefined while all is well. */
  get failure (): string | undefined {
    return this.#options.queue.unreachable ?? this.#attemptFailure ?? this.storeFailure?.reason
  }

  /** Where the queue keeps no batches: that nothing could be stored for ACK_TIMEOUT_MS. */
  get storeFailure (): StoreFailure | undefined {
    const { queue: { storeFailure }, ackTimeoutMs } = this.#options
    if (storeFailure === undefined || performance.now() - storeFailure.since <= ackTimeoutMs) return undefined
    return storeFailure
  }

  /** For how many ms the queue has accepted no batches; 0 while it does. */
  get failingMs (): number {
    return this.#failingSince === undefined ? 0 : performance.now() - this.#failingSince
  }

  /** The queue did not accept what was pushed. */
  attemptFailed (reason: string): void {
    this.#attemptFailure = reason
    this.#failingSince ??= performance.now()
  }

  /** The queue accepted what was pushed. */
  attemptSucceeded (): void {
    this.#attemptFailure = undefined
  }

  /**
   * Progress could not be polled. Without polls a worker still gets most reports, and what it misses comes with the
   * next one. So one failure is a lost connection and not worth a line; the same one twice, while batches are accepted,
   * is a fault.
   */
  pollFailed (error: unknown): void {
    const reason = reasonOf(error)
    const repeated = reason === this.#pollFailure.reason && this.failure === undefined
    if (repeated && !this.#pollFailure.logged) this.#options.logger.warn(`progress can't be polled: ${reason}`)
    this.#pollFailure = { reason, logged: repeated }
  }

  /** Notices that the state has changed, and logs it. To be called many times a second. */
  check (): void {
    const { failure, storeFailure } = this
    const { logger } = this.#options
    if (failure === undefined) {
      if (this.#logged.size > 0) logger.info('queue available again: pushing batches')
      this.#logged.clear()
      this.#failingSince = undefined
      return
    }
    this.#failingSince ??= storeFailure?.since ?? performance.now()
    // Until the first attempt has ended there is nothing to report.
    if (failure === connecting || this.#logged.has(failure) || this.failingMs < quietFailureMs) return
    this.#logged.add(failure)
    logger.warn(storeFailure === undefined
      ? `queue unavailable (${failure}): keeping increments in memory and retrying`
      : `nothing is stored (${failure}): keeping increments in memory and retrying; ` +
        'requests at queued and stored get 503')
  }
}
