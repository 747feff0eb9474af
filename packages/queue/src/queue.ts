// What a queue promises to the web workers that push batches and to the one consumer that takes them.
// Redis and the embedded channel both keep these promises; test/conformance.ts holds them to it.
import { EventEmitter } from 'node:events'
import type { Owner } from '@gearbox/protocol/owner.ts'
import type { Progress } from '@gearbox/protocol/progress.ts'
import type { Sequences } from '@gearbox/protocol/sequences.ts'
import type { StoreTrouble } from '@gearbox/protocol/trouble.ts'
import type { Origin } from './spool-file.ts'

/** The queue could not be asked or did not answer in time. What was sent may or may not have been done. */
export class QueueUnavailableError extends Error {
  readonly code = 'GBX_QUEUE_UNAVAILABLE'
  override name = 'QueueUnavailableError'
}

/** A queue's answer to how far a producer's batches have come. */
export interface Polled {
  /** What is stored of the producer; undefined if the queue knows nothing of it. */
  readonly stored: Progress | undefined
  /** Batches that wait in the queue, of all producers; counted before `stored` was read. */
  readonly length: number
}

/** `unreachable` until the first attempt to connect has ended. */
export const connecting = 'not connected yet'

/** The same as a worker knows it, and since when (performance.now, ms). */
export interface StoreFailure extends StoreTrouble {
  readonly since: number
}

interface ProducerEvents {
  /** What is stored of a producer changed. Hints only: any of them may be lost, so poll as well. */
  progress: [producer: string, progress: Progress]
  /** `incarnation` changed. */
  incarnation: []
}

/** A web worker's end. */
export abstract class ProducerQueue extends EventEmitter<ProducerEvents> {
  /** Whether a pushed batch is as good as stored: the queue has no place of its own to keep it in. */
  abstract readonly pushIsStored: boolean

  /**
   * Names what the queue remembers. Undefined until it was reached, and while a connection is made anew.
   * Any other value than before means: it may have lost everything that was pushed, in part or whole.
   */
  abstract readonly incarnation: string | undefined

  /** Why the queue is out of reach; undefined while it can be reached. */
  abstract readonly unreachable: string | undefined

  /** Where what is pushed belongs, as it was when that was last seen. */
  abstract readonly origin: Origin

  /** The same as it is now; without a database while the queue has none, although it had one before. @throws QueueUnavailableError */
  abstract readOrigin (): Promise<Origin>

  /** Where a push is as good as stored: why none can be stored, as the consumer reported. Queues that keep batches take them meanwhile. */
  get storeFailure (): StoreFailure | undefined {
    return undefined
  }

  /** Begins to connect and keeps at it until closed. Resolves without waiting for success. */
  abstract start (): Promise<void>

  /**
   * Appends elements at the tail, in their order, all or none.
   * @returns 'pushed' once the queue has them; 'moved' if `incarnation` is no longer the queue's: nothing was appended
   * @throws QueueUnavailableError they may or may not have been appended: push the same bytes again
   */
  abstract push (elements: readonly Buffer[], incarnation: string): Promise<'pushed' | 'moved'>

  /**
   * How far a producer's batches have come. Also notices a changed incarnation, whether or not a connection was closed.
   * @throws QueueUnavailableError
   */
  abstract pollProgress (producer: string): Promise<Polled>

  /** What is stored of a producer; undefined if the queue knows nothing of it. @throws QueueUnavailableError */
  async progress (producer: string): Promise<Progress | undefined> {
    return (await this.pollProgress(producer)).stored
  }

  /**
   * Of sequences that were pushed, those that do not wait in the queue. They are stored, or about to be reported as stored, or lost.
   * @throws QueueUnavailableError
   */
  abstract missing (producer: string, sequences: readonly number[], signal: AbortSignal): Promise<ReadonlySet<number>>

  /**
   * Resolves if the queue answers.
   * @returns what a consumer has reported that keeps it from storing until a person puts it right
   * @throws QueueUnavailableError with the reason
   */
  abstract check (): Promise<string | undefined>

  /** Batches waiting. @throws QueueUnavailableError */
  abstract length (): Promise<number>

  /** Whether what was pushed survives the queue's own death, as far as its settings tell. */
  abstract readonly durable: boolean

  /** Ends the connection. A push under way is not waited for. */
  abstract close (): Promise<void>
}

/** The consumer's end. Only one consumer owns it; whoever finds out that it is not the owner any more leaves. */
export interface ConsumerQueue {
  /** Where the queue is, for messages. */
  readonly name: string

  /** Whether batches that wait are kept by the queue; otherwise only by the memory of the workers that push them. */
  readonly keepsBatches: boolean

  /** @throws QueueUnavailableError */
  start (): Promise<void>

  /** Who owns the queue, and what it tells as stored. */
  readOwner (): Promise<{ owner: Owner | undefined, stored: ReadonlyMap<string, Sequences> }>

  /** Makes `owner` the owner if it is still `expected` that owns the queue. @returns whether it is now */
  bind (expected: Owner | undefined, owner: Owner): Promise<boolean>

  /** Forgets what was told as stored: it was told of another database. */
  forgetProgress (): Promise<void>

  /**
   * A run of elements from the head, in order, without removing them: at most 256 and about 4 MiB, at least one if there is any.
   * @throws SupersededError, QueueUnavailableError
   */
  take (): Promise<Buffer[]>

  /**
   * Removes handled elements from the head, for as long as the head is, byte for byte, the next of them.
   * Can be repeated or come late: it never removes anything else.
   * @throws SupersededError, QueueUnavailableError
   */
  acknowledge (elements: readonly Buffer[]): Promise<void>

  /** Tells producers what is stored of them. Telling again what was told is harmless. @throws QueueUnavailableError */
  reportProgress (stored: ReadonlyMap<string, Progress>): Promise<void>

  /** Ends telling of producers that are long gone. */
  forget (producers: readonly string[]): Promise<void>

  /**
   * Reports to producers why nothing can be stored, or with undefined that it can be again. To be repeated every few seconds while it lasts.
   * Never fails: it is a hint.
   */
  reportTrouble (trouble: StoreTrouble | undefined): Promise<void>

  /** Resolves when something may have been pushed, after `ms` at the latest, or when `signal` aborts. */
  waitForPush (ms: number, signal: AbortSignal): Promise<void>

  /** Why the queue can't be used, in one line; undefined while it can, as far as is known without asking. */
  readonly unreachable: string | undefined

  /** Batches waiting, as far as is known without asking. */
  readonly length: number

  readonly durable: boolean

  close (): Promise<void>
}

/** At most this many elements and bytes make a run: acknowledging 4 MiB takes Redis about 14 ms, in which nobody can push. */
export const runElementsMax = 256
export const runBytesMax = 4 * 1024 * 1024

/** No element that a worker pushes is as large as this (see idempotentBytesMax); what is larger is not taken whole. */
export const elementBytesMax = 8 * 1024 * 1024
