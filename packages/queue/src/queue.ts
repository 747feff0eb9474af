// What a queue promises to the web workers that push batches and to the one consumer that takes them.
// Redis, the embedded channel and memory.ts (for tests) keep these promises; test/conformance.ts checks them.
import { EventEmitter } from 'node:events'
import type { Owner } from '@gearbox/protocol/owner.ts'
import type { Progress, ResultRequest } from '@gearbox/protocol/progress.ts'
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

/** Why nothing can be stored, as a worker knows it, and since when (performance.now, ms). */
export interface StoreFailure extends StoreTrouble {
  readonly since: number
}

interface ProducerEvents {
  /** What is stored of a producer changed. Hints only: any of them may be lost, so poll as well. */
  progress: [producer: string, progress: Progress]
  /** `incarnation` changed. */
  incarnation: []
}

/** A web worker's end of a queue: it pushes batches, and learns which of them are stored. */
export abstract class ProducerQueue extends EventEmitter<ProducerEvents> {
  /** Whether a push resolves only when its batches are stored: the queue itself keeps nothing. */
  abstract readonly pushIsStored: boolean

  /**
   * Names what the queue remembers. Undefined until it was reached, and while it is reconnecting.
   * A different value than before means that the queue may have lost any of what was pushed.
   */
  abstract readonly incarnation: string | undefined

  /** Why the queue is out of reach; undefined while it can be reached. */
  abstract readonly unreachable: string | undefined

  /** Where what is pushed belongs, as last seen. */
  abstract readonly origin: Origin

  /** The same as it is now; without a database while the queue has none. @throws QueueUnavailableError */
  abstract readOrigin (): Promise<Origin>

  /**
   * Why nothing can be stored, as the consumer reported; undefined if it can. Only where `pushIsStored`: other queues
   * keep batches meanwhile.
   */
  get storeFailure (): StoreFailure | undefined {
    return undefined
  }

  /** Begins to connect, and reconnects until closed. Resolves without waiting for a connection. */
  abstract start (): Promise<void>

  /**
   * Appends elements at the tail, in their order, all or none. One push at a time.
   * @param hurry whether they ask for their commit at once: it ends the consumer's pause between two commits
   * @returns 'pushed' once the queue has them; 'moved' if `incarnation` is no longer the queue's: nothing was appended
   * @throws QueueUnavailableError they may or may not have been appended: push the same bytes again
   */
  abstract push (elements: readonly Buffer[], incarnation: string, hurry?: boolean): Promise<'pushed' | 'moved'>

  /**
   * How far a producer's batches have come. Also notices a changed incarnation, whether or not a connection was closed.
   * @throws QueueUnavailableError
   */
  abstract pollProgress (producer: string): Promise<Polled>

  /**
   * Sends the consumer a request about outcomes of entries, of at most resultSequencesMax sequences of each kind. It
   * may be lost, also if this resolves.
   * @throws QueueUnavailableError
   */
  abstract requestResults (request: ResultRequest): Promise<void>

  /** What is stored of a producer; undefined if the queue knows nothing of it. @throws QueueUnavailableError */
  async progress (producer: string): Promise<Progress | undefined> {
    return (await this.pollProgress(producer)).stored
  }

  /**
   * Which of the sequences that were pushed do not wait in the queue: they are stored, about to be reported, or lost.
   * @throws QueueUnavailableError
   */
  abstract missing (producer: string, sequences: readonly number[], signal: AbortSignal): Promise<ReadonlySet<number>>

  /**
   * Resolves if the queue answers.
   * @returns what keeps the consumer from storing until a person fixes it, as it reported; undefined if nothing does
   * @throws QueueUnavailableError with the reason
   */
  abstract check (): Promise<string | undefined>

  /** How many batches wait, of all producers. @throws QueueUnavailableError */
  abstract length (): Promise<number>

  /** Whether what was pushed survives the queue's own death, as far as its settings tell. */
  abstract readonly durable: boolean

  /** Ends the connection. A push in flight is not waited for. */
  abstract close (): Promise<void>
}

/** The consumer's end. Only one consumer owns the queue; one that is not the owner any more must stop. */
export interface ConsumerQueue {
  /** Where the queue is, for messages. */
  readonly name: string

  /** Whether batches that wait are kept by the queue; otherwise only by the memory of the workers that push them. */
  readonly keepsBatches: boolean

  /** Connects. @throws QueueUnavailableError if that fails at the first attempt; it goes on trying */
  start (): Promise<void>

  /** Who owns the queue, and what it has as stored, by producer. */
  readOwner (): Promise<{ owner: Owner | undefined, stored: ReadonlyMap<string, Sequences> }>

  /** Makes `owner` the owner if `expected` still owns the queue. @returns whether it is the owner now */
  bind (expected: Owner | undefined, owner: Owner): Promise<boolean>

  /** Forgets all progress: it was that of another database. */
  forgetProgress (): Promise<void>

  /**
   * A run of elements from the head, in order, without removing them: at most 256 and about 4 MiB, at least one if
   * there is any.
   * @throws SupersededError, QueueUnavailableError
   */
  take (): Promise<Buffer[]>

  /**
   * Removes handled elements from the head, for as long as the head is, byte for byte, the next of them.
   * Can be repeated or come late: it never removes anything else.
   * @throws SupersededError, QueueUnavailableError
   */
  acknowledge (elements: readonly Buffer[]): Promise<void>

  /**
   * Reports to producers what is stored of them. To report it again is harmless. Outcomes of entries are only in the
   * message: who polls progress gets none.
   * @throws QueueUnavailableError
   */
  reportProgress (stored: ReadonlyMap<string, Progress>): Promise<void>

  /** Forgets the progress of producers that are long gone. */
  forget (producers: readonly string[]): Promise<void>

  /**
   * Reports to producers why nothing can be stored, or with undefined that it can be again. To be repeated every few
   * seconds while it lasts. Never fails: it is a hint.
   */
  reportTrouble (trouble: StoreTrouble | undefined): Promise<void>

  /**
   * Resolves when something may have been pushed or a request about outcomes came, after `ms` at the latest, or when
   * `signal` aborts.
   */
  waitForPush (ms: number, signal: AbortSignal): Promise<void>

  /**
   * Resolves when something was pushed that asks for its commit at once and that `take` may not have returned yet,
   * after `ms` at the latest, or when `signal` aborts. Never while `waitForPush` is waited for.
   */
  waitForHurry (ms: number, signal: AbortSignal): Promise<void>

  /**
   * The requests about outcomes of entries that came since the last call, at most one per producer. They come from
   * whoever reaches the queue, and are bounded.
   */
  takeResultRequests (): ResultRequest[]

  /** Why the queue can't be used, in one line; undefined while it can, as far as is known without asking. */
  readonly unreachable: string | undefined

  /** How many batches wait, as far as is known without asking. */
  readonly length: number

  /** Whether what was pushed survives the queue's own death, as far as its settings tell. */
  readonly durable: boolean

  /** Ends the connection. */
  close (): Promise<void>
}

/** Elements of one run, at most. */
export const runElementsMax = 256

/** Bytes of one run, at most: acknowledging 4 MiB takes Redis about 14 ms, in which nobody can push. */
export const runBytesMax = 4 * 1024 * 1024

/**
 * Sequences of one kind in a request about outcomes, at most: more batches than a worker pushes per second, and that is
 * how often it sends one.
 */
export const resultSequencesMax = 4000

/** Bytes of one element, at most: workers push none that is larger, and a larger one is not taken whole. */
export const elementBytesMax = 8 * 1024 * 1024
