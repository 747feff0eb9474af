// The delivery protocol of one producer: every batch reaches the queue, and stays in the window until the database has
// it. The flusher passes it encoded batches one at a time; it reports back what is stored. It knows no requests,
// replies or intervals.
import { setTimeout as delay } from 'node:timers/promises'
import type { Batch } from '@gearbox/protocol/batch.ts'
import type { Progress } from '@gearbox/protocol/progress.ts'
import { QueueUnavailableError, type ProducerQueue } from '@gearbox/queue/queue.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { hurries, pushInGroups } from './push-groups.ts'
import { QueueHealth } from './queue-health.ts'
import { orAborted, retry } from './retry.ts'
import { Window } from './window.ts'

/**
 * While batches are unstored, progress is polled this often. A poll also notices that it is another queue than they
 * went to.
 */
const queuePollMs = 1000

/**
 * While nothing is unstored, it is polled this often, for the database that the queue belongs to; and every time until
 * that is known.
 */
const idlePollMs = 10_000

/**
 * A batch leaves the queue before it is reported as stored: at the end, that report is polled for this long and this
 * often.
 */
const lastReport = { withinMs: 1000, pollMs: 50 }

/** What an outbox works with, and whom it reports to. */
export interface OutboxOptions {
  readonly queue: ProducerQueue
  /** This process's random UUID. */
  readonly producer: string
  readonly logger: Logger
  /** How long a queue that keeps no batches may store nothing before that counts as a failure. */
  readonly ackTimeoutMs: number
  /** Bytes of unstored batches that the window has at most; beyond, the oldest are kept by the queue alone. */
  readonly unstoredBytesMax: number
  /** Ends all attempts, for good. What was not delivered by then is returned by `unaccounted`. */
  readonly abandon: AbortSignal
  /**
   * Called with every report of what is stored, after the window has dropped it. Reports can repeat, and can come out
   * of order.
   */
  readonly onProgress: (stored: Progress) => void
  /** Called when batches have to be pushed again: `repair` is to be called soon, between two deliveries. */
  readonly onLoss: () => void
  /** Whether somebody waits for a report although nothing is in the window. */
  readonly isAwaited: () => boolean
}

/**
 * One push is in flight at a time: the caller awaits `deliver` and `repair` and never calls both at once. The outbox
 * itself is in one of these states:
 *
 * - in step: at the start, and when the whole window is in the queue that is there now.
 * - to be replayed: entered when the queue has another incarnation than the window's pushed batches went to. Left when
 *   `deliver` or `repair` has pushed all of the window to it, from the start again if it changes meanwhile.
 * - to be refilled: entered when the window has found batches lost in the same queue. Left when `repair` has pushed
 *   exactly those again, or a replay has.
 * - abandoned: entered from every state when `abandon` aborts, for good: nothing is pushed any more.
 *
 * An unavailable queue changes none of these: what it did not accept is tried again until it does, with the same bytes.
 */
export class Outbox {
  readonly #options: OutboxOptions
  readonly #window = new Window()
  /** Whether the queue accepts batches. */
  readonly health: QueueHealth
  /** What the queue was when the window's batches were pushed to it. */
  #incarnation: string | undefined
  #trimming = false
  #timer: NodeJS.Timeout | undefined
  #polling = false
  /** When progress was polled last (performance.now, ms). */
  #polledAt = -Infinity
  /**
   * Batches pushed, with repeats; failed attempts; replays; batches refilled, and batches that left the window before
   * they were stored.
   */
  readonly counts = { pushed: 0, retries: 0, replays: 0, refilled: 0, trimmed: 0 }

  constructor (options: OutboxOptions) {
    this.#options = options
    this.health = new QueueHealth(options)
    options.queue.on('progress', (producer, stored) => { if (producer === options.producer) this.#onProgress(stored) })
    options.queue.on('incarnation', () => this.#noticeIncarnation())
  }

  /** Batches that are not known to be stored. */
  get unstoredBatches (): number {
    return this.#window.size
  }

  /** Whether a batch can still be pushed again: it is not known to be stored, and did not leave the window before. */
  has (seq: number): boolean {
    return this.#window.has(seq)
  }

  /** Bytes of their elements. */
  get unstoredBytes (): number {
    return this.#window.bytes
  }

  /** Increments in batches that are not known to be in the queue. */
  get unpushedIncrements (): number {
    return this.#window.unpushedIncrements
  }

  /** When the oldest increment was accepted that is in an unstored batch, Unix ms; undefined if there is none. */
  get oldestAt (): number | undefined {
    return this.#window.oldestAt
  }

  /** Whether the queue has lost batches, or may have: then `repair` has something to do. */
  get needsRepair (): boolean {
    return this.#needsReplay() || this.#window.lost > 0
  }

  /** Begins to poll progress. */
  start (): void {
    const poll = (): void => { this.pollProgress().catch((error: unknown) => this.health.pollFailed(error)) }
    this.#timer = setInterval(poll, queuePollMs)
  }

  /**
   * Adds a batch to the window and pushes it, always the same bytes, until the queue has it or it is reported as
   * stored. The first push leaves before this returns its promise, where no replay is due.
   * @returns false if that was abandoned
   */
  async deliver (batch: Batch): Promise<boolean> {
    this.#window.add(batch)
    const delivered = await this.#untilDone(async () => { await this.#push(batch) })
    if (delivered) this.#trimWindow()
    return delivered
  }

  /** Pushes again what the queue has lost, until it has that or it is abandoned. */
  async repair (): Promise<void> {
    await this.#untilDone(async () => { await this.#refill() })
  }

  /**
   * Polls what is stored: a report may have been lost, and a queue may lose its memory, or some of it, without closing
   * a connection. Does nothing while another poll is in progress, while the queue is out of reach, or where it has
   * nothing to find out yet.
   * @throws QueueUnavailableError
   */
  async pollProgress (): Promise<void> {
    const { queue, producer, isAwaited } = this.#options
    const { origin, incarnation } = queue
    const [askedAt, { lastPushed }] = [performance.now(), this.#window]
    const idle = this.#window.size === 0 && !isAwaited()
    const isEarly = idle && origin.database !== undefined && askedAt - this.#polledAt < idlePollMs
    if (isEarly || this.#polling || incarnation === undefined) return
    this.#polling = true
    this.#polledAt = askedAt
    try {
      const { stored, length } = await queue.pollProgress(producer)
      if (stored !== undefined) this.#onProgress(stored)
      this.#window.noteLength({ askedAt, answeredAt: performance.now(), length, lastPushed })
      this.#noticeIncarnation()
    } finally {
      this.#polling = false
    }
  }

  /**
   * Ends the polling. To be called once, when no more is delivered.
   * @returns the window's batches that neither wait in the queue nor are stored, in order, as far as that can be found
   * out before `abandon` aborts. A queue that is out of reach or another one may have lost all that was pushed to it.
   * What it has after all is skipped as applied before.
   */
  async unaccounted (): Promise<Batch[]> {
    clearInterval(this.#timer)
    const { queue, producer, abandon } = this.#options
    const pushed = this.#window.pushedSequences()
    if (pushed.length === 0) return this.#window.batches(true)
    try {
      if (abandon.aborted || queue.incarnation === undefined || this.#needsReplay()) return this.#window.batches()
      const missing = await orAborted(queue.missing(producer, pushed, abandon), abandon)
      const waiting = new Set(pushed.filter((seq) => !missing.has(seq)))
      const unaccounted = (): Batch[] => this.#window.batches().filter(({ seq }) => !waiting.has(seq))
      const until = performance.now() + lastReport.withinMs
      while (missing.size > 0 && unaccounted().length > 0) {
        const { stored } = await orAborted(queue.pollProgress(producer), abandon)
        if (stored !== undefined) this.#onProgress(stored)
        if (this.#needsReplay()) return this.#window.batches()
        if (performance.now() > until) break
        await delay(lastReport.pollMs, undefined, { signal: abandon })
      }
      return unaccounted()
    } catch (error) {
      if (error instanceof QueueUnavailableError || abandon.aborted) return this.#window.batches()
      throw error
    }
  }

  async #untilDone (action: () => Promise<void>): Promise<boolean> {
    const done = await retry(async () => { await action(); return true }, this.#options.abandon, (reason) => {
      this.health.attemptFailed(reason)
      this.counts.retries++
    })
    if (done === true) this.health.attemptSucceeded()
    return done === true
  }

  /** @throws QueueUnavailableError */
  async #push (batch: Batch): Promise<void> {
    const { queue } = this.#options
    while (this.#window.needsPush(batch.seq)) {
      // Without an event-loop iteration in between where no replay is due: then a push leaves at once.
      const inStep = queue.incarnation === this.#incarnation ? this.#incarnation : undefined
      const incarnation = inStep ?? await this.#catchUp()
      if (!this.#window.needsPush(batch.seq)) return
      if (await queue.push([batch.element], incarnation, hurries(batch)) === 'pushed') this.#markPushed([batch])
    }
  }

  #markPushed (batches: readonly Batch[]): void {
    this.#window.markPushed(batches)
    this.counts.pushed += batches.length
  }

  #needsReplay (): boolean {
    const { incarnation } = this.#options.queue
    return incarnation !== undefined && incarnation !== this.#incarnation && this.#window.hasPushed()
  }

  /**
   * Pushes what the queue has lost again: all of the window if it is another queue, or else the lost batches.
   * @throws QueueUnavailableError
   */
  async #refill (): Promise<void> {
    const { queue, logger, abandon } = this.#options
    const incarnation = await this.#catchUp()
    if (this.#window.lost === 0) return
    logger.warn(`the queue lost ${this.#window.lost} batches that are not stored yet: re-pushing them`)
    // Where it becomes another queue meanwhile, that one gets the whole window, in a moment.
    await pushInGroups(this.#window.batches(), {
      queue,
      incarnation,
      signal: abandon,
      isWanted: ({ seq }) => this.#window.isLost(seq),
      onPushed: (group) => {
        this.#window.markRefilled(group)
        this.counts.refilled += group.length
        this.counts.pushed += group.length
      },
    })
  }

  /**
   * Makes sure that the queue is the one that the window's pushed batches went to; if not, pushes all of the window
   * again, in order, from the start again if it changes meanwhile.
   * @returns the queue's incarnation
   * @throws QueueUnavailableError
   */
  async #catchUp (): Promise<string> {
    const { queue, logger, producer, abandon } = this.#options
    for (;;) {
      const { incarnation } = queue
      if (incarnation === undefined) throw new QueueUnavailableError(queue.unreachable ?? 'connecting')
      if (incarnation === this.#incarnation) return incarnation
      if (!this.#needsReplay()) {
        this.#incarnation = incarnation
        return incarnation
      }
      this.counts.replays++
      const stored = await queue.progress(producer)
      if (stored !== undefined) this.#onProgress(stored)
      const { size } = this.#window
      if (size > 0) logger.info(`queue was replaced or restarted: re-pushing ${size} unstored batches`)
      const whole = await pushInGroups(this.#window.batches(), {
        queue,
        incarnation,
        signal: abandon,
        isWanted: ({ seq }) => this.#window.has(seq),
        onPushed: (group) => this.#markPushed(group),
      })
      if (whole) this.#incarnation = incarnation
    }
  }

  #onProgress (stored: Progress): void {
    const { logger, onLoss, onProgress } = this.#options
    const gone = this.#window.dropStored(stored)
    if (gone > 0) {
      logger.error(`the queue lost ${gone} batches that had left this worker's window (UNSTORED_BYTES_MAX): ` +
        'they can not be pushed again and are not counted. "npm run verify" shows which')
    }
    if (this.#window.lost > 0) onLoss()
    onProgress(stored)
  }

  #noticeIncarnation (): void {
    if (this.needsRepair) this.#options.onLoss()
  }

  #trimWindow (): void {
    const dropped = this.#window.trim(this.#options.unstoredBytesMax)
    this.counts.trimmed += dropped
    if (dropped > 0 && !this.#trimming) {
      this.#options.logger.warn('too much is waiting to be stored (UNSTORED_BYTES_MAX): ' +
        'the oldest batches are now kept by the queue alone. Is the consumer running?')
    }
    this.#trimming = dropped > 0
  }
}
