// The second gear: many batches become one transaction. Takes batches from the queue, applies them to the store,
// acknowledges them, tells their producers. A crash between any two of these steps repeats the first ones, and the
// store skips what it has applied before.
import { setTimeout as delay } from 'node:timers/promises'
import { readHeader } from '@gearbox/queue/batch.ts'
import { QueueUnavailableError, SupersededError, type ConsumerQueue, type Rejection, type RejectReason, type Stored } from '@gearbox/queue/queue.ts'
import type { Sequences } from '@gearbox/queue/sequences.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import type { Logger } from '@gearbox/runtime/logger.ts'
import { isBusy, type Applied, type Store } from './store.ts'

/** Without a wake-up the queue is looked at this often: a wake-up is only a hint and can be lost. */
const lookMs = 250

/** After a failure: first pause and longest one. */
const retryMs = { first: 50, most: 1000 }

const pruneIntervalMs = 10_000

/** A rejection is told for this long, and so many of one producer: its `stored` requests wait at most 30 s for it. */
const rejectionToldMs = 60_000
const rejectionsToldMax = 1000

/** Rejections of one commit that are logged one by one. */
const rejectionsLoggedMax = 10

/** A command of a dead connection can put older word in the place of newer: while idle, it is told again this often. */
const tellAgainMs = 5000

/** What is stored of a producer that was not heard of for this long is no longer told. */
const producerToldMs = 7 * 24 * 3_600_000

interface ToldRejections {
  readonly told: Array<{ readonly rejection: Rejection, readonly until: number }>
  /** Sequences with rejections beyond the most that are told, and until when that is said of them. */
  readonly untold: Map<number, number>
}

type Trouble = 'the queue is out of reach' | 'nothing can be stored'

export interface ConsumerOptions {
  readonly queue: ConsumerQueue
  readonly store: Store
  readonly logger: Logger
  readonly commitIntervalMs: number
  /** Called with the seconds that each commit took. */
  readonly observeCommit: (seconds: number) => void
}

export class Consumer {
  readonly #options: ConsumerOptions
  /** By producer, what of its rejections is still told, oldest first. */
  readonly #rejections = new Map<string, ToldRejections>()
  /** What could not be told yet. */
  #toTell = new Map<string, Sequences>()
  /** When the oldest increment that was taken and is not stored was accepted, Unix ms; between two runs, that of the run before's end. */
  #oldestInHand: number | undefined
  #trouble: Trouble | undefined
  #committedAt = -Infinity
  #prunedAt = performance.now()
  #forgotAt = -Infinity
  #toldAgainAt = performance.now()
  readonly counts = { applied: 0, duplicates: 0, gaps: 0, rejected: new Map<string, number>() }

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
    const { queue } = this.#options
    let pauseMs = retryMs.first
    this.#tellFromBefore()
    while (!abandon.aborted) {
      try {
        const elements = await queue.take()
        if (elements.length > 0) {
          await this.#handle(elements, abandon)
          if (!stop.aborted) await this.#keepInterval(stop)
        } else {
          this.#oldestInHand = undefined
          await this.#tell()
          await this.#housekeep()
          if (stop.aborted) return
          await queue.waitForPush(lookMs, stop)
        }
        this.#recovered()
        pauseMs = retryMs.first
      } catch (error) {
        if (error instanceof SupersededError) throw error
        // What is not stored yet is safe in Redis, or in the unsent files of workers that have left before.
        if (stop.aborted) return
        this.#failed(error instanceof QueueUnavailableError ? 'the queue is out of reach' : 'nothing can be stored', reasonOf(error))
        await sleep(pauseMs, abandon)
        pauseMs = Math.min(pauseMs * 2, retryMs.most)
      }
    }
  }

  /** Take came before; here follow apply, acknowledge, tell. Nothing that fails loses the run: it is taken again. */
  async #handle (elements: readonly Buffer[], abandon: AbortSignal): Promise<void> {
    const { queue, store, observeCommit } = this.#options
    const acceptedAt = elements.map((element) => {
      const header = readHeader(element)
      return typeof header === 'string' ? Date.now() : header.at
    })
    this.#oldestInHand = Math.min(...acceptedAt)
    const startedAt = performance.now()
    let applied: Applied
    try {
      applied = store.apply(elements)
    } catch (error) {
      // A full disk or an I/O error; what the connection cached may be wrong now.
      if (!(error instanceof SupersededError) && !isBusy(error) && !abandon.aborted) store.reopen()
      throw error
    }
    this.#committedAt = performance.now()
    this.#oldestInHand = undefined
    observeCommit((this.#committedAt - startedAt) / 1000)
    this.#count(applied)
    for (const [producer, sequences] of applied.stored) this.#toTell.set(producer, sequences)
    await queue.acknowledge(elements)
    // What still waits came after this run's last batch. Without it a consumer that is far behind would show no lag between two runs.
    if (queue.length > 0) this.#oldestInHand = acceptedAt.at(-1)
    await this.#tell()
  }

  /** A consumer before this one may have died between its commit and telling of it. */
  #tellFromBefore (): void {
    const { store } = this.#options
    this.#toTell = store.producersSeenSince(Date.now() - producerToldMs)
    // Only where a reply may still wait is it worth reading what was rejected.
    for (const producer of store.producersSeenSince(Date.now() - rejectionToldMs).keys()) {
      for (const rejection of store.rejectionsOf(producer, rejectionsToldMax)) this.#keepTelling(producer, rejection)
    }
  }

  #keepTelling (producer: string, rejection: Rejection): void {
    const rejections: ToldRejections = this.#rejections.get(producer) ?? { told: [], untold: new Map() }
    const until = performance.now() + rejectionToldMs
    rejections.told.push({ rejection, until })
    if (rejections.told.length > rejectionsToldMax) rejections.untold.set(rejections.told.shift()!.rejection.seq, until)
    this.#rejections.set(producer, rejections)
  }

  #count ({ batches, duplicates, gaps, rejections, repeated }: Applied): void {
    const { logger } = this.#options
    this.counts.applied += batches
    this.counts.duplicates += duplicates
    for (const { producer, from, to } of gaps) {
      this.counts.gaps += to - from + 1
      logger.warn({ producer, from, to }, `sequences ${from} to ${to} of worker ${producer} did not arrive: the queue lost them. If the worker lives it sends them again`)
    }
    for (const [i, { producer, ...rejection }] of rejections.entries()) {
      this.counts.rejected.set(rejection.reason, (this.counts.rejected.get(rejection.reason) ?? 0) + 1)
      if (i < rejectionsLoggedMax) logger.warn({ producer, ...rejection }, `rejected: ${describe(rejection)}. "npm run rejected" lists it and can try it again`)
      if (producer !== undefined) this.#keepTelling(producer, rejection)
    }
    if (rejections.length > rejectionsLoggedMax) logger.warn(`${rejections.length - rejectionsLoggedMax} more were rejected in the same commit`)
    for (const { producer, ...rejection } of repeated) this.#keepTelling(producer, rejection)
  }

  /** Tells all that is left to tell. If that fails it stays, for the next round: at maxmemory Redis keeps no word of it until this consumer made room. */
  async #tell (): Promise<void> {
    if (this.#toTell.size === 0) return
    const now = performance.now()
    for (const [producer, { told, untold }] of this.#rejections) {
      while (told[0] !== undefined && told[0].until <= now) told.shift()
      for (const [seq, until] of untold) if (until <= now) untold.delete(seq)
      if (told.length === 0 && untold.size === 0) this.#rejections.delete(producer)
    }
    try {
      await this.#options.queue.tell(new Map(Array.from(this.#toTell, ([producer, sequences]) => [producer, this.#storedOf(producer, sequences)])))
      this.#toTell = new Map()
    } catch (error) {
      if (!(error instanceof QueueUnavailableError)) throw error
      this.#options.logger.debug({ err: error }, 'what is stored could not be told')
    }
  }

  #storedOf (producer: string, { high, gaps }: Sequences): Stored {
    const { told, untold } = this.#rejections.get(producer) ?? { told: [], untold: new Map() }
    return { high, gaps, rejected: told.map(({ rejection }) => rejection), untold: [...untold.keys()] }
  }

  async #housekeep (): Promise<void> {
    const { store, queue } = this.#options
    const now = performance.now()
    if (now - this.#toldAgainAt > tellAgainMs) {
      // Added to what could not be told yet, not in its place.
      for (const [producer, sequences] of store.producersSeenSince(Date.now() - rejectionToldMs)) this.#toTell.set(producer, sequences)
      this.#toldAgainAt = now
    }
    if (store.onceRows > 0 && now - this.#prunedAt > pruneIntervalMs && !store.prune()) this.#prunedAt = now
    if (now - this.#forgotAt > producerToldMs / 24) {
      await queue.forget(store.producersUnseenSince(Date.now() - producerToldMs))
      this.#forgotAt = now
    }
  }

  async #keepInterval (stop: AbortSignal): Promise<void> {
    const restMs = this.#committedAt + this.#options.commitIntervalMs - performance.now()
    if (restMs > 0) await sleep(restMs, stop)
  }

  /** Says what is wrong once, not at every try. */
  #failed (trouble: Trouble, reason: string): void {
    if (trouble !== this.#trouble) {
      this.#options.logger.error(`${trouble} (${reason}). Nothing is lost, and it is tried until it works; ${trouble === 'nothing can be stored' ? "check the database's disk and who else has it open" : `is ${this.#options.queue.name} running?`}`)
    }
    this.#trouble = trouble
  }

  #recovered (): void {
    if (this.#trouble !== undefined) this.#options.logger.info('works again')
    this.#trouble = undefined
  }
}

function describe (rejection: { reason: RejectReason, key?: string, once?: string }): string {
  if (rejection.reason === 'overflow') return `the total of ${JSON.stringify(rejection.key)} would leave 64 bits`
  if (rejection.reason === 'other body') return 'an Idempotency-Key came again with another body'
  if (rejection.reason === 'too late') return 'an Idempotency-Key came so late that it may be a repeat'
  return 'a batch that can not be read'
}

async function sleep (ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch(() => {})
}
