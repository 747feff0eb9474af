// What `submit` and `holdReply` of a plugin's context do: entries on their way to the consumer, and the replies that
// wait for what they come to. Plugins' routes feed it; it feeds the flusher, and learns outcomes from the reports of
// what is stored.
import type { Json } from '@gearbox/protocol/plugin-entry.ts'
import type { ProducerQueue } from '@gearbox/queue/queue.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import type { SubmitOptions, Submitted } from '@gearbox/runtime/plugin.ts'
import type { Flusher } from '../deliver/flusher.ts'
import { checkKey, idOf } from '../increment/idempotency.ts'
import { checkQueue, checkReplies, checkRoom, type PendingLimits } from '../increment/limits.ts'
import { SentBatches } from './sent-batches.ts'
import { SubmittedEntry, type EntryEvents, type Waiter } from './submitted-entry.ts'

/** Replies whose time is up are given this often, as those of the flusher. */
const sweepMs = 50

/** Outcomes are asked for and reported as received this often at most, however many batches there are. */
const requestMs = 1000

/** About what Node and Fastify keep of a request until it is answered. */
const usualReplyBytes = 4 * 1024

/** What submissions work with. */
export interface SubmissionsOptions {
  readonly flusher: Flusher
  readonly queue: Pick<ProducerQueue, 'requestResults'>
  /** The producer of this worker's batches. */
  readonly producer: string
  readonly limits: PendingLimits
}

/** How an entry is to be sent. */
export interface EntryOptions extends SubmitOptions {
  /** Whether it travels in a batch with nothing else in it, behind everything that was accepted before. */
  readonly alone?: boolean
}

/**
 * All entries of one worker's plugins.
 *
 * Working, from the start; a timer runs while anything waits. `stop` ends it for good: nothing more is accepted, every
 * reply is given as pending, and what is not known by then stays unknown here. What was accepted is still delivered.
 */
export class Submissions {
  readonly #options: SubmissionsOptions
  readonly #sent = new SentBatches()
  /** Accepted entries without an outcome. */
  readonly #entries = new Set<SubmittedEntry>()
  /** Those of them that have an id and whose data is known. */
  readonly #byId = new Map<string, SubmittedEntry>()
  readonly #events: EntryEvents = {
    onBatch: (entry, seq) => this.#sent.add(entry, seq),
    onSettled: (entry) => this.#settled(entry),
  }

  /** Replies in the order in which they began to wait. */
  readonly #waiters = new Set<Waiter>()
  #timer: NodeJS.Timeout | undefined
  /** performance.now ms */
  #requestedAt = -Infinity
  #requesting = false
  #stopped = false

  constructor (options: SubmissionsOptions) {
    this.#options = options
    options.flusher.watchProgress((stored, unstored) => {
      const lost = this.#sent.onProgress(stored, performance.now(), (seq) => unstored.has(seq))
      for (const entry of lost) entry.fail(unknown('the queue lost it (UNSTORED_BYTES_MAX)'))
    })
  }

  /** Entries that were accepted and whose outcomes are not known. */
  get unsettled (): number {
    return this.#entries.size
  }

  /**
   * Sends an entry to the consumer. It is accepted, in the order of the calls, before this returns its promise.
   * @throws RequestError nothing was sent; or why it was not applied
   */
  async submit (
    plugin: string, data: Json | (() => Json | undefined), options: EntryOptions = {}
  ): Promise<Submitted> {
    const { idempotencyKey, caller = '', scope = '', replyBytes = usualReplyBytes, alone = false } = options
    const identity = idempotencyKey === undefined
      ? {}
      : { id: idOf(caller, checkKey(idempotencyKey), plugin, scope), at: Date.now() }
    const entry = new SubmittedEntry({ plugin, data, alone, ...identity }, this.#events)
    const repeated = entry.id === undefined || !entry.isComparable ? undefined : this.#byId.get(entry.id)
    if (repeated !== undefined && !repeated.hasDataOf(entry)) {
      throw new RequestError('GBX_OTHER_BODY',
        'this Idempotency-Key was already used with a different body; nothing of this one was applied')
    }
    this.#check(replyBytes, repeated === undefined ? entry : undefined)
    if (repeated === undefined) this.#accept(entry)
    return await this.#wait(repeated ?? entry, replyBytes)
  }

  /** Counts a reply that waits for somebody else's entry. @returns to be called when it no longer waits */
  holdReply (bytes: number): () => void {
    this.#check(bytes)
    const { flusher } = this.#options
    flusher.addReplies(1, bytes)
    let held = true
    return () => {
      if (held) flusher.addReplies(-1, -bytes)
      held = false
    }
  }

  /** Ends it. To be called when no more requests come; what was accepted is the flusher's. */
  stop (): void {
    this.#stopped = true
    clearInterval(this.#timer)
    for (const waiter of this.#waiters) this.#giveLate(waiter)
    for (const entry of this.#entries) entry.fail(unknown('this worker stopped first'))
  }

  /** @param entry that is to be accepted, if any @throws RequestError (503) */
  #check (replyBytes: number, entry?: SubmittedEntry): void {
    const { flusher, limits } = this.#options
    if (this.#stopped) throw new RequestError('GBX_STOPPING', 'this worker is stopping; try again')
    checkQueue(flusher, limits)
    checkReplies(flusher, limits)
    // Their replies were given: nothing else limits how many wait for a consumer that is away.
    if (entry !== undefined && this.#entries.size >= limits.pendingRequestsMax) {
      throw new RequestError('GBX_OVERLOADED', 'too many requests wait to be stored (PENDING_REQUESTS_MAX); try again')
    }
    const bytes = entry === undefined ? 0 : entry.bytes + entry.keptBytes
    // As for other requests: where no other reply is pending, a small limit must not refuse all of them.
    const isOneOfMany = flusher.pendingReplies > 0
    checkRoom(flusher, entry === undefined ? 0 : 1, bytes + (isOneOfMany ? replyBytes : 0), limits)
  }

  #accept (entry: SubmittedEntry): void {
    const { flusher } = this.#options
    this.#entries.add(entry)
    if (entry.id !== undefined && entry.isComparable) this.#byId.set(entry.id, entry)
    flusher.addReplies(0, entry.keptBytes)
    flusher.acceptEntry(entry)
    this.#timer ??= setInterval(() => this.#sweep(), sweepMs)
  }

  async #wait (entry: SubmittedEntry, bytes: number): Promise<Submitted> {
    return await new Promise<Submitted>((resolve, reject) => {
      const waiter = { entry, since: performance.now(), bytes, resolve, reject }
      this.#waiters.add(waiter)
      this.#options.flusher.addReplies(1, bytes)
      entry.add(waiter)
    })
  }

  #settled (entry: SubmittedEntry): void {
    for (const waiter of entry.waiters) this.#release(waiter)
    this.#entries.delete(entry)
    if (entry.id !== undefined && this.#byId.get(entry.id) === entry) this.#byId.delete(entry.id)
    this.#options.flusher.addReplies(0, -entry.keptBytes)
  }

  #release (waiter: Waiter): void {
    this.#waiters.delete(waiter)
    this.#options.flusher.addReplies(-1, -waiter.bytes)
  }

  #giveLate (waiter: Waiter): void {
    this.#release(waiter)
    waiter.entry.giveLate(waiter)
  }

  #sweep (): void {
    const now = performance.now()
    for (const waiter of this.#waiters) {
      if (waiter.since > now - this.#options.limits.ackTimeoutMs) break
      this.#giveLate(waiter)
    }
    for (const entry of this.#sent.takeOld(now)) entry.fail(unknown('its outcome is not kept any longer'))
    if (now - this.#requestedAt >= requestMs && !this.#requesting) this.#request(now)
    if (this.#entries.size > 0 || !this.#sent.isEmpty) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  #request (now: number): void {
    const { queue, producer } = this.#options
    const request = this.#sent.request(producer, now)
    if (request === undefined) return
    this.#requestedAt = now
    this.#requesting = true
    queue.requestResults(request)
      // What could not be sent is sent next time.
      .then(() => this.#sent.requested(request), () => {})
      .finally(() => { this.#requesting = false })
  }
}

/** For an entry of which nobody can say what became of it: it may well be applied. */
function unknown (why: string): RequestError {
  return new RequestError('GBX_INTERNAL', `what became of this request is not known here: ${why}`)
}
