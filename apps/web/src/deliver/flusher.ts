// The first gear: drains the accumulator into batches and pushes them, one push in flight, until the queue has them and
// the database too. Fed by requests through `accept`; feeds the queue; settles the replies it holds.
//
// With an interval of `auto` a flush leaves as soon as the one before is acknowledged: batches are small and fast under
// light load and grow by themselves under heavy load. With a number of ms, flushes leave that far apart.
import { setTimeout as delay } from 'node:timers/promises'
import { encodeBatch, narrow, withoutRefusals, type Batch, type IdempotentRequest } from '@gearbox/protocol/batch.ts'
import type { Rejection, Progress } from '@gearbox/protocol/progress.ts'
import { connecting, QueueUnavailableError, type ProducerQueue, type StoreFailure } from '@gearbox/queue/queue.ts'
import { hasAll, isSubset } from '@gearbox/protocol/sequences.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { Accumulator, type Drain } from '../accumulate/accumulator.ts'
import { PendingReplies, type PendingCounts, type PendingReply } from './pending-replies.ts'
import type { IncrementColumns } from '../accumulate/columns.ts'
import { LateReplies } from './late-replies.ts'
import { costOf, RejectionIndex, type Verdict } from './verdict.ts'
import { Window } from './window.ts'

/** After a failed push: first pause and longest one. */
const retryMs = { first: 20, most: 500 }

/** While batches are unstored the queue is asked this often whether they are now, and whether it is still the one they went to. */
const queuePollMs = 1000

/** While nothing is unstored it is asked this often which database the queue belongs to, and every time until that is known. */
const idlePollMs = 10_000

/** A batch leaves the queue before it is reported as stored: at the end this long, and this often, the report is asked for. */
const lastReport = { withinMs: 1000, pollMs: 50 }

/** Held replies are looked through this often for ones whose time is up. */
const sweepMs = 50

/** A failure shorter than this is not worth a line. */
const quietFailureMs = 1000

/** Keys of held replies that are compared with what was rejected in one event-loop iteration: about 5 ms of work. */
const settledKeysMax = 100_000

export interface FlusherOptions {
  readonly queue: ProducerQueue
  /** This process's own random UUID. */
  readonly producer: string
  readonly logger: Logger
  readonly flushIntervalMs: number | 'auto'
  readonly ackTimeoutMs: number
  readonly unstoredBytesMax: number
  /** Called with the seconds that each flush took, from the drain to the last acknowledged push. */
  readonly observeFlush: (seconds: number) => void
}

/** One drain on its way, with the replies that wait for it. */
class FlushGroup {
  readonly queued: PendingReplies
  readonly stored: PendingReplies
  /**
   * Whether a reply of level `stored` was given before that was reached. Then nothing in its batches is refused any more:
   * what the database can't take was promised to one of their clients, who were told that it is on its way.
   */
  late = false
  /** Whether a batch of it says that it may be refused. */
  refusable = false
  /** The first sequence of the last flush before it of which the same is true. */
  refusableBefore = 0
  firstSeq = 0
  /** Not known before its last batch is encoded: until then nothing that is told can settle the group. */
  lastSeq = Number.POSITIVE_INFINITY

  constructor (held: PendingCounts) {
    this.queued = new PendingReplies(held)
    this.stored = new PendingReplies(held)
  }
}

export class Flusher {
  readonly #options: FlusherOptions
  readonly #accumulator = new Accumulator()
  readonly #window = new Window()
  /** The drain whose batches are being pushed. */
  #drain: Drain | undefined
  /** Replies to what is in the accumulator. */
  readonly #held: PendingCounts = { replies: 0, bytes: 0, answered: { requests: 0, increments: 0 } }
  #group = new FlushGroup(this.#held)
  /** The group that the last flush got into the queue, while its replies at level `queued` are due: see #flush. */
  #reached: FlushGroup | undefined
  /** Groups on their way or waiting to be stored, oldest first. */
  readonly #groups = new Set<FlushGroup>()
  /** Groups all of whose batches are stored, some of whose entries were rejected: they are settled a part at a time. */
  #settling: Array<{ readonly group: FlushGroup, readonly verdict: Verdict }> = []
  readonly #lateReplies = new LateReplies()
  /** First sequences of the last flush that may be refused, and of the last one of them whose replies were late. */
  #lastRefusable = 0
  #lastLate = 0
  #seq = 0
  /** What the queue was when the window's batches were pushed to it. */
  #incarnation: string | undefined
  #failingSince: number | undefined = performance.now()
  #failure: string | undefined
  #flushedAt = -Infinity
  /** Reasons that were said of the failure under way. */
  readonly #saidFailures = new Set<string>()
  #pollFailure = { reason: '', said: false }
  #trimming = false
  /** The newest word of what is stored. */
  #progress: Progress | undefined
  #wake: (() => void) | undefined
  #due = false
  #finishing = false
  #skippingInterval = false
  readonly #abandon = new AbortController()
  #running: Promise<void> | undefined
  #timers: NodeJS.Timeout[] = []
  #polling = false
  /** When progress was polled last. */
  #polledAt = -Infinity
  readonly counts = { increments: 0, pushed: 0, retries: 0, replays: 0, refilled: 0, trimmed: 0, setAside: 0 }

  constructor (options: FlusherOptions) {
    this.#options = options
    options.queue.on('progress', (producer, stored) => { if (producer === options.producer) this.#onProgress(stored) })
    options.queue.on('incarnation', () => this.#noticeIncarnation())
  }

  /** Distinct keys and idempotent requests that are in no batch yet. */
  get pendingKeys (): number {
    return this.#accumulator.pendingKeys + (this.#drain?.pendingKeys ?? 0)
  }

  get pendingBytes (): number {
    return this.#accumulator.pendingBytes + (this.#drain?.pendingBytes ?? 0)
  }

  /** Bytes that held replies take, with the keys and requests that they hold. */
  get heldBytes (): number {
    return this.#held.bytes
  }

  /** Counts bytes as held that a lane keeps for replies that are known and can't be written yet; with a minus, as no longer. */
  holdBytes (bytes: number): void {
    this.#held.bytes += bytes
  }

  /** Bytes that would have to be written down if the queue stayed away. */
  get unsentBytes (): number {
    return this.pendingBytes + this.#window.bytes
  }

  get heldReplies (): number {
    return this.#held.replies
  }

  /** Requests that were answered with 2xx, and the increments in them. */
  get answered (): Readonly<PendingCounts['answered']> {
    return this.#held.answered
  }

  get unstoredBatches (): number {
    return this.#window.size
  }

  /** Increments accepted that are in no batch yet, and those in batches that were never known to be in the queue. */
  get onTheWay (): { readonly pending: number, readonly window: number } {
    return { pending: this.#accumulator.increments + (this.#drain?.untakenIncrements ?? 0), window: this.#window.unpushedIncrements }
  }

  /** Age in seconds of the oldest increment that is not known to be stored; 0 if there is none. */
  get lagSeconds (): number {
    const oldest = this.#window.oldestAt ?? this.#drain?.oldestAt ?? (this.#accumulator.isEmpty ? undefined : this.#accumulator.oldestAt)
    return oldest === undefined ? 0 : Math.max(0, Date.now() - oldest) / 1000
  }

  /** Why the queue takes no batches, or where it keeps none why nothing is stored; undefined while all is well. */
  get failure (): string | undefined {
    return this.#options.queue.unreachable ?? this.#failure ?? this.storeFailure?.reason
  }

  /** Where the queue keeps no batches: that nothing could be stored for ACK_TIMEOUT_MS. */
  get storeFailure (): StoreFailure | undefined {
    const failure = this.#options.queue.storeFailure
    return failure !== undefined && performance.now() - failure.since > this.#options.ackTimeoutMs ? failure : undefined
  }

  /** For how many ms the queue has taken no batches. */
  get failingMs (): number {
    return this.#failingSince === undefined ? 0 : performance.now() - this.#failingSince
  }

  /** The idempotent request with this id that no batch has yet: a repeat is answered with it, another body is refused. */
  pendingIdempotent (id: string): IdempotentRequest | undefined {
    return this.#accumulator.pendingIdempotent(id)
  }

  /** Whether the key of a request's pair `i` is in no batch yet. */
  isPending (increments: IncrementColumns, i: number): boolean {
    return this.#accumulator.has(increments, i)
  }

  start (): void {
    this.#timers = [
      setInterval(() => this.#sweep(), sweepMs),
      setInterval(() => { this.#pollProgress().catch((error: unknown) => this.#pollFailed(error)) }, queuePollMs),
    ]
    this.#running = this.#run()
  }

  /**
   * Takes a request's increments in: from here on they are on their way, whatever happens to the reply.
   * @param reply settled when `level` is reached, late, or refused; undefined at level `memory`, which is reached now
   */
  accept (increments: IncrementColumns, once: IdempotentRequest | undefined, level: 'memory' | 'queued' | 'stored', reply: PendingReply | undefined): void {
    // Only the oldest increment's time is kept.
    const at = once?.at ?? (this.#accumulator.isEmpty ? Date.now() : 0)
    const pending = once === undefined ? undefined : this.#accumulator.pendingIdempotent(once.id)
    if (once === undefined) {
      this.#accumulator.add(increments, at, level === 'stored')
    } else if (pending === undefined) {
      once.storedWithinMs = level === 'stored' ? this.#options.ackTimeoutMs : undefined
      this.#accumulator.addIdempotent(once, increments.length, at)
    } else if (level !== 'stored') {
      pending.storedWithinMs = undefined
    }
    if (pending === undefined) this.counts.increments += increments.length
    if (reply !== undefined && level !== 'memory') {
      reply.increments = increments.length
      this.#group[level].hold(reply)
    } else {
      this.#held.answered.requests++
      this.#held.answered.increments += increments.length
    }
    this.#wakeUp()
  }

  /** From here on no flush waits for its interval: a stop waits for the replies that wait for it. */
  skipInterval (): void {
    this.#skippingInterval = true
    this.#wake?.()
  }

  /**
   * Flushes what is left.
   * @param deadline aborts the attempt
   * @returns the batches that are not known to be in the queue or stored, in order, under the identities they keep
   */
  async finish (deadline: AbortSignal): Promise<Batch[]> {
    this.#finishing = true
    this.#wakeUp()
    deadline.addEventListener('abort', () => this.#abandon.abort(), { once: true })
    if (deadline.aborted) this.#abandon.abort()
    await this.#running
    for (const timer of this.#timers) clearInterval(timer)
    this.#settleReached()
    while (this.#settling.length > 0) this.#settleSlice()
    for (const group of [...this.#groups, this.#group]) {
      group.queued.settleAll(() => 'late')
      group.stored.settleAll(() => 'late')
    }
    const unsent = await this.#unaccounted()
    for (const drain of [this.#drain, this.#accumulator.isEmpty ? undefined : this.#accumulator.drain()]) {
      if (drain !== undefined) unsent.push(...this.#encodeAll(drain))
    }
    // All replies have been given: nothing of it may be refused.
    return unsent.map((batch) => ({ ...batch, element: withoutRefusals(batch.element) }))
  }

  /**
   * The window's batches that neither wait in the queue nor are stored, as far as that can be found out before the work is abandoned. A queue
   * that is out of reach or another one may have lost what was pushed to it. What it has after all is skipped as applied before.
   */
  async #unaccounted (): Promise<Batch[]> {
    const { queue, producer } = this.#options
    const { signal } = this.#abandon
    const pushed = this.#window.pushedSequences()
    if (pushed.length === 0) return this.#window.batches(true)
    try {
      if (signal.aborted || queue.incarnation === undefined || this.#needsReplay()) return this.#window.batches(false)
      const missing = await this.#orAbandoned(queue.missing(producer, pushed, signal))
      const waiting = new Set(pushed.filter((seq) => !missing.has(seq)))
      const unaccounted = (): Batch[] => this.#window.batches(false).filter(({ seq }) => !waiting.has(seq))
      const until = performance.now() + lastReport.withinMs
      while (missing.size > 0 && unaccounted().length > 0) {
        const { stored } = await this.#orAbandoned(queue.pollProgress(producer))
        if (stored !== undefined) this.#onProgress(stored)
        if (this.#needsReplay()) return this.#window.batches(false)
        if (performance.now() > until) break
        await delay(lastReport.pollMs, undefined, { signal })
      }
      return unaccounted()
    } catch (error) {
      if (error instanceof QueueUnavailableError || signal.aborted) return this.#window.batches(false)
      throw error
    }
  }

  async #run (): Promise<void> {
    let asked = false
    while (!this.#abandon.signal.aborted) {
      if (!this.#due || this.#needsRepair() || this.#options.flushIntervalMs !== 'auto') this.#settleReached()
      await this.#untilDue()
      if (this.#needsRepair()) await this.#attempt(async () => { await this.#refill() })
      if (!this.#accumulator.isEmpty) {
        await this.#flush()
      } else if (this.#finishing) {
        // What was rejected after its reply has to be sent on its way again.
        if (this.#lateReplies.isEmpty || asked) return
        asked = true
        await this.#pollProgress().catch(() => {})
      }
    }
  }

  /** Resolves when a flush may leave and there is something to do. */
  async #untilDue (): Promise<void> {
    const { flushIntervalMs } = this.#options
    if (flushIntervalMs !== 'auto' && !this.#skippingInterval && !this.#finishing) {
      const restMs = Math.max(0, Math.min(flushIntervalMs, this.#flushedAt + flushIntervalMs - performance.now()))
      if (restMs > 0) await this.#pause(restMs, true)
    }
    while (!this.#due && !this.#finishing) await this.#pause(undefined, false)
    this.#due = false
    this.#flushedAt = performance.now()
    // What else arrived in the same turn of the event loop leaves with it. During the push before, all had time to arrive.
    if (flushIntervalMs === 'auto' && !this.#finishing && this.#reached === undefined) await new Promise((resolve) => setImmediate(resolve))
  }

  /** Waits for a wake-up or, with `untilFinish`, only for the time or the end. */
  async #pause (ms: number | undefined, untilFinish: boolean): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = ms === undefined ? undefined : setTimeout(() => done(), ms)
      const done = (): void => {
        clearTimeout(timer)
        this.#wake = undefined
        resolve()
      }
      this.#wake = () => { if (!untilFinish || this.#skippingInterval || this.#finishing) done() }
    })
  }

  #wakeUp (): void {
    this.#due = true
    this.#wake?.()
  }

  async #flush (): Promise<void> {
    const startedAt = performance.now()
    const group = this.#group
    const drain = this.#accumulator.drain()
    this.#group = new FlushGroup(this.#held)
    this.#drain = drain
    this.#groups.add(group)
    group.firstSeq = this.#seq + 1
    while (drain.pendingKeys > 0) {
      const batch = this.#encode(drain, group)
      this.#window.add(batch)
      const delivered = this.#attempt(async () => { await this.#deliver(batch) })
      // Writing hundreds of replies takes about as long as the disk takes for the push that has just left.
      this.#settleReached()
      if (!await delivered) return
      this.#trimWindow()
    }
    group.lastSeq = this.#seq
    this.#drain = undefined
    this.#reached = group
    // One that was late goes with the next sweep.
    if (group.stored.size === 0 && !group.late) this.#groups.delete(group)
    // The last batch may have been told as stored before its push was known to have worked.
    else if (this.#progress !== undefined) this.#settleStored(this.#progress)
    this.#options.observeFlush((performance.now() - startedAt) / 1000)
  }

  #settleReached (): void {
    const group = this.#reached
    this.#reached = undefined
    group?.queued.settleAll(() => 'reached')
  }

  #encode (drain: Drain, group: FlushGroup): Batch {
    this.#seq++
    const { producer, ackTimeoutMs } = this.#options
    const refusable = drain.refusable && !group.late
    if (refusable && !group.refusable) {
      group.refusable = true
      group.refusableBefore = this.#lastRefusable
      this.#lastRefusable = group.firstSeq
    }
    return encodeBatch({
      producer, seq: this.#seq, at: drain.oldestAt, ...drain.takeCounts(), ...(refusable ? { storedWithinMs: ackTimeoutMs } : {}),
    }, drain)
  }

  /** Encodes what is left at the end: all replies have been given. */
  #encodeAll (drain: Drain): Batch[] {
    const batches: Batch[] = []
    const group = new FlushGroup(this.#held)
    group.late = true
    while (drain.pendingKeys > 0) batches.push(this.#encode(drain, group))
    return batches
  }

  /** Tries until it works. @returns false if abandoned meanwhile */
  async #attempt (action: () => Promise<void>): Promise<boolean> {
    let pauseMs = retryMs.first
    while (!this.#abandon.signal.aborted) {
      try {
        await this.#orAbandoned(action())
        this.#failure = undefined
        return true
      } catch (error) {
        if (!(error instanceof QueueUnavailableError)) throw error
        if (this.#abandon.signal.aborted) break
        this.#failure = error.message
        this.#failingSince ??= performance.now()
        this.counts.retries++
        await delay(pauseMs, undefined, { signal: this.#abandon.signal }).catch(() => {})
        pauseMs = Math.min(pauseMs * 2, retryMs.most)
      }
    }
    return false
  }

  /** Awaits, but no longer than until the work is abandoned: an embedded push may wait for a full disk. */
  async #orAbandoned<T> (action: Promise<T>): Promise<T> {
    const { signal } = this.#abandon
    let abandoned = (): void => {}
    try {
      return await Promise.race([action, new Promise<never>((_resolve, reject) => {
        abandoned = () => reject(new QueueUnavailableError('abandoned'))
        signal.addEventListener('abort', abandoned)
      })])
    } finally {
      signal.removeEventListener('abort', abandoned)
    }
  }

  /** Pushes a batch of the window, always the same bytes, until the queue has it. @throws QueueUnavailableError */
  async #deliver (batch: Batch): Promise<void> {
    while (this.#window.needsPush(batch.seq)) {
      // Without a turn of the event loop where nothing is to be caught up with: then a push leaves at once.
      const incarnation = this.#options.queue.incarnation === this.#incarnation ? this.#incarnation ?? await this.#catchUp() : await this.#catchUp()
      if (!this.#window.needsPush(batch.seq)) return
      if (await this.#options.queue.push([batch.element], incarnation) === 'pushed') this.#markPushed([batch])
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

  #needsRepair (): boolean {
    return this.#needsReplay() || this.#window.lost > 0
  }

  /**
   * Pushes what the queue has lost again: all of the window if it is another queue, or else the lost batches.
   * @throws QueueUnavailableError
   */
  async #refill (): Promise<void> {
    const { queue, logger } = this.#options
    const incarnation = await this.#catchUp()
    if (this.#window.lost === 0) return
    logger.warn(`the queue lost ${this.#window.lost} batches that are not stored yet: re-pushing them`)
    for (const group of this.#window.groups(true)) {
      // Another queue than a moment ago gets the whole window, in a moment.
      if (await queue.push(group.map(({ element }) => element), incarnation) === 'moved') return
      this.#window.markRefilled(group)
      this.counts.refilled += group.length
      this.counts.pushed += group.length
    }
  }

  /**
   * Makes sure that the queue is the one that the window's pushed batches went to; if not, pushes all of the window again, in order.
   * @returns the queue's incarnation @throws QueueUnavailableError
   */
  async #catchUp (): Promise<string> {
    const { queue, logger, producer } = this.#options
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
      if (this.#window.size > 0) logger.info(`the queue is a new one or was restarted: ${this.#window.size} batches that are not stored yet are pushed again`)
      if (await this.#pushWindow(incarnation)) this.#incarnation = incarnation
    }
  }

  /** @returns false if the queue changed meanwhile: all has to be pushed again, from the start */
  async #pushWindow (incarnation: string): Promise<boolean> {
    for (const group of this.#window.groups()) {
      if (await this.#options.queue.push(group.map(({ element }) => element), incarnation) === 'moved') return false
      this.#markPushed(group)
    }
    return true
  }

  #onProgress (stored: Progress): void {
    // An answer can come in behind news that are newer.
    if (this.#progress === undefined || isSubset(this.#progress, stored)) this.#progress = stored
    const gone = this.#window.dropStored(stored)
    if (gone > 0) {
      this.#options.logger.error(`the queue lost ${gone} batches that had left this worker's window (UNSTORED_BYTES_MAX): ` +
        'they can not be pushed again and are not counted. "npm run verify" shows which')
    }
    if (this.#window.lost > 0) this.#wakeUp()
    this.#settleStored(stored)
    this.#settleLateReplies(stored)
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
      this.#sendAgain(verdict.kept)
      this.#noteUnknown(verdict.unknown)
      if (this.#settling.push({ group, verdict }) === 1) this.#settleSlice()
    }
  }

  /** Settles as many replies as an event-loop iteration should; the others follow in the next ones. */
  #settleSlice (): void {
    let left = settledKeysMax
    for (const { group, verdict } of this.#settling) {
      left -= group.stored.settleSome((reply) => verdict.outcomeOf(reply, (once) => this.#sendOnceAgain(once)), left, costOf)
      if (group.stored.size > 0) break
    }
    this.#settling = this.#settling.filter(({ group }) => group.stored.size > 0)
    if (this.#settling.length > 0) setImmediate(() => this.#settleSlice())
  }

  #addLate (group: FlushGroup): void {
    this.#lateReplies.add(group, group.refusableBefore === this.#lastLate)
    if (group.refusable) this.#lastLate = group.firstSeq
  }

  /** What was rejected and not filed, though the replies were late: their clients were told that it is on its way. */
  #settleLateReplies (stored: Progress): void {
    if (this.#lateReplies.isEmpty) return
    const { rejections, once, unknown } = this.#lateReplies.settle(stored)
    this.#sendAgain(rejections)
    for (const request of once) this.#sendOnceAgain(request)
    this.#noteUnknown(unknown)
  }

  #noteUnknown (batches: number): void {
    if (batches === 0) return
    this.counts.setAside += batches
    this.#options.logger.warn(`${batches} batches of requests that were answered with 202 had more entries that could not be applied than are reported`)
  }

  /** Sends rejected sums on their way again, as what was promised in memory. What comes back then is kept in `rejected`. */
  #sendAgain (rejections: readonly Rejection[]): void {
    for (const { key, value } of rejections) {
      if (key !== undefined && value !== undefined) this.#accumulator.addAgain(key, narrow(BigInt(value)), Date.now())
    }
    if (rejections.length > 0) this.#wakeUp()
  }

  #sendOnceAgain (once: IdempotentRequest): void {
    this.#accumulator.addIdempotentAgain(once)
    this.#wakeUp()
  }

  #trimWindow (): void {
    const dropped = this.#window.trim(this.#options.unstoredBytesMax)
    this.counts.trimmed += dropped
    if (dropped > 0 && !this.#trimming) this.#options.logger.warn('too much is waiting to be stored (UNSTORED_BYTES_MAX): the oldest batches are now kept by the queue alone. Is the consumer running?')
    this.#trimming = dropped > 0
  }

  #noticeIncarnation (): void {
    if (this.#needsRepair()) this.#wakeUp()
  }

  /** Asks what is stored: word of it may have been lost, and a queue may lose its memory, or some of it, without closing a connection. */
  async #pollProgress (): Promise<void> {
    const { origin, incarnation } = this.#options.queue
    const [askedAt, { lastPushed }] = [performance.now(), this.#window]
    const idle = this.#window.size === 0 && this.#groups.size === 0
    if ((idle && origin.database !== undefined && askedAt - this.#polledAt < idlePollMs) || this.#polling || incarnation === undefined) return
    this.#polling = true
    this.#polledAt = askedAt
    try {
      const { stored, length } = await this.#options.queue.pollProgress(this.#options.producer)
      if (stored !== undefined) this.#onProgress(stored)
      this.#window.noteLength({ askedAt, answeredAt: performance.now(), length, lastPushed })
      this.#noticeIncarnation()
    } finally {
      this.#polling = false
    }
  }

  /** Without looks a worker hears of most that is stored, and of what it misses with the next message. Once is a lost connection, twice a fault. */
  #pollFailed (error: unknown): void {
    const reason = error instanceof Error ? error.message : String(error)
    const repeated = reason === this.#pollFailure.reason && this.failure === undefined
    if (repeated && !this.#pollFailure.said) this.#options.logger.warn(`what is stored can't be asked for: ${reason}`)
    this.#pollFailure = { reason, said: repeated }
  }

  #sweep (): void {
    const before = performance.now() - this.#options.ackTimeoutMs
    for (const group of [this.#group, ...this.#groups]) {
      group.queued.settleLate(before)
      group.stored.settleLate(before, ({ once }) => {
        group.late = true
        if (once === undefined) return
        // Until it is encoded it can still become one that is not refused.
        if (group.firstSeq === 0) once.storedWithinMs = undefined
        else this.#lateReplies.keepOnce(once, group)
      })
      if (group.lastSeq === Number.POSITIVE_INFINITY || group.stored.size > 0) continue
      // Nobody waits for it any more: a consumer that is away for hours must not make this grow.
      this.#groups.delete(group)
      if (group.late) this.#addLate(group)
    }
    this.#lateReplies.forgetOld()
    this.#watchFailure()
  }

  #watchFailure (): void {
    const { failure } = this
    const { logger } = this.#options
    if (failure === undefined) {
      if (this.#saidFailures.size > 0) logger.info('the queue takes batches again')
      this.#saidFailures.clear()
      this.#failingSince = undefined
      return
    }
    this.#failingSince ??= this.storeFailure?.since ?? performance.now()
    // Until the first attempt has ended there is nothing to say.
    if (failure === connecting || this.#saidFailures.has(failure) || this.failingMs < quietFailureMs) return
    this.#saidFailures.add(failure)
    logger.warn(this.storeFailure === undefined
      ? `the queue takes no batches (${failure}): increments are kept in memory and tried until it does`
      : `nothing is stored (${failure}): keeping increments in memory and retrying; requests at queued and stored get 503`)
  }
}
