// What keeps the consumer from its work: logged once per reason, not at every try, and reported to the workers.
import type { StoreTrouble } from '@gearbox/protocol/trouble.ts'
import { QueueUnavailableError, type ConsumerQueue } from '@gearbox/queue/queue.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { DatabaseMovedError } from './store/database-file.ts'
import { PluginFailedError } from './store/plugins/consumer-plugins.ts'

/** An embedded queue keeps nothing on a disk. */
const beforeStopping = 'Do so before stopping: what waits is in memory only'

type Kind = 'the queue is out of reach' | 'nothing can be stored' | "the database's file is not in its place"

/** What the reporter needs of the consumer. */
export interface TroubleOptions {
  readonly queue: ConsumerQueue
  readonly logger: Logger
  /** What to do before stopping while nothing can be stored and the queue keeps nothing. */
  readonly stopAdvice?: () => string
}

/**
 * Two states, which the consumer's loop sets: well, and in trouble from the first `failed` until `recovered`. While in
 * trouble each kind and each reason is logged once; it is reported to the workers at every `failed`, as any report may
 * be lost.
 */
export class TroubleReporter {
  readonly #options: TroubleOptions
  /** Undefined while well. */
  #kind: Kind | undefined
  readonly #loggedReasons = new Set<string>()
  /** What is reported to the workers; undefined where only the queue has failed, which they see for themselves. */
  #reported: StoreTrouble | undefined

  constructor (options: TroubleOptions) {
    this.#options = options
  }

  /** An attempt to take, store or acknowledge has failed. Never fails itself. */
  async failed (error: unknown): Promise<void> {
    const { queue, logger } = this.#options
    const kind = kindOf(error)
    const isQueue = error instanceof QueueUnavailableError
    const reason = (isQueue ? queue.unreachable : undefined) ?? reasonOf(error)
    // The reason can change while the trouble lasts: a Redis that comes back with another password is another trouble.
    if (kind !== this.#kind || !this.#loggedReasons.has(reason)) {
      const moved = error instanceof DatabaseMovedError
      logger.error(isQueue
        ? `${kind}: ${queue.name}, ${reason}; no data is lost; retrying`
        : `${kind} (${reason}): ${this.#advice(error)}`)
      this.#reported = isQueue ? undefined : { reason: moved ? `${kind} (${reason})` : reason, moved }
    }
    this.#kind = kind
    this.#loggedReasons.add(reason)
    await queue.reportTrouble(this.#reported)
  }

  /** An attempt has succeeded. Never fails. */
  async recovered (): Promise<void> {
    if (this.#kind === undefined) return
    const { queue, logger } = this.#options
    logger.info('storing batches again')
    this.#kind = undefined
    this.#loggedReasons.clear()
    this.#reported = undefined
    await queue.reportTrouble(undefined)
  }

  #advice (error: unknown): string {
    const { queue, stopAdvice } = this.#options
    const cure = cureOf(error)
    if (queue.keepsBatches) return `no data is lost; retrying; ${cure}`
    return `retrying; ${cure}. ${stopAdvice?.() ?? beforeStopping}`
  }
}

function cureOf (error: unknown): string {
  if (error instanceof PluginFailedError) return 'fix it, or start without it (PLUGINS)'
  return error instanceof DatabaseMovedError ? 'put it back' : "check the database's disk and who else has it open"
}

function kindOf (error: unknown): Kind {
  if (error instanceof QueueUnavailableError) return 'the queue is out of reach'
  return error instanceof DatabaseMovedError ? "the database's file is not in its place" : 'nothing can be stored'
}
