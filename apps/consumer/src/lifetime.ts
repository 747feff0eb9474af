// From the first reason to stop to the end of the consumer: when it stops taking, and when it gives up.
import type { EmbeddedConsumerQueue } from '@gearbox/queue/embedded/consumer-queue.ts'
import { onStopSignal, stopDeadlineMs, type StopReason } from '@gearbox/runtime/process/shutdown.ts'

/**
 * The states of the process, each entered from the one before by itself:
 *
 * - running, until there is a reason to stop. An orphan (its parent was killed) with the embedded queue runs on until
 *   its last worker has left, or a signal comes: the workers flush once more, and what they push is answered.
 * - stopping: `stop` is aborted. The consumer empties the queue and ends.
 * - abandoned, when it has not ended after the deadline: `abandon` is aborted, too.
 */
export class Lifetime {
  readonly #stop = new AbortController()
  readonly #abandon = new AbortController()
  #orphaned = false
  /** Resolves with the reason when the state becomes stopping. */
  readonly reason: Promise<StopReason>

  /** @param stopping resolves with the first reason to stop */
  constructor (stopping: Promise<StopReason>, embedded: EmbeddedConsumerQueue | undefined) {
    this.reason = stopping.then(async (reason) => {
      if (reason === 'orphaned') await Promise.race([embedded?.lastWorkerGone(), signalled()])
      this.#orphaned = reason === 'orphaned'
      setTimeout(() => this.#abandon.abort(), stopDeadlineMs).unref()
      this.#stop.abort()
      return reason
    })
  }

  /** Aborted when the consumer is to end once the queue is empty. */
  get stop (): AbortSignal {
    return this.#stop.signal
  }

  /** Aborted when the consumer is to end whatever is in the queue. */
  get abandon (): AbortSignal {
    return this.#abandon.signal
  }

  /** Whether it stops as its parent was killed. */
  get orphaned (): boolean {
    return this.#orphaned
  }
}

/** Resolves at the next signal: an orphan has nobody else who could ask it to stop. */
async function signalled (): Promise<void> {
  await new Promise<void>((resolve) => onStopSignal(() => resolve()))
}
