// What a queue promises to the web workers that push batches and to the one consumer that takes them.
// Redis and the embedded channel both keep these promises; test/conformance.ts holds them to it.
import { EventEmitter } from 'node:events'
import { parseSequences, type Sequences } from '@gearbox/protocol/sequences.ts'
import type { Origin } from './spool-file.ts'

/** Why an entry of a batch was not applied. `trigger`: the database's owner has a trigger or an index that refuses it. */
export type RejectReason = 'overflow' | 'unreadable' | 'other body' | 'too late' | 'trigger'

/** All reasons, in the order in which they are shown. */
export const rejectReasons: readonly RejectReason[] = ['overflow', 'unreadable', 'other body', 'too late', 'trigger']

/** An entry that was not applied: of the sums by its key, of the idempotent requests by its id. */
export interface Rejection {
  readonly seq: number
  readonly key?: string
  readonly once?: string
  readonly reason: RejectReason
  /**
   * Whether it is kept in `rejected`, as it was promised or may have been. Without it (as a consumer of the version
   * before says it) it is; false: nothing is kept, and its clients are to get a refusal.
   */
  readonly filed?: boolean
  /** The sum, in decimal digits, of an entry of the sums that was not filed. */
  readonly value?: string
}

/** All that is stored of one producer. Complete in itself: it takes the place of whatever was told before. */
export interface Stored extends Sequences {
  /** Of about the last minute; a stored sequence may have older ones. */
  readonly rejected: readonly Rejection[]
  /** Sequences whose rejections were too many to tell. */
  readonly untold: readonly number[]
  /** Those of `untold` whose rejections were filed. */
  readonly untoldFiled?: readonly number[]
}

/** The queue could not be asked or did not answer in time. What was sent may or may not have been done. */
export class QueueUnavailableError extends Error {
  readonly code = 'GBX_QUEUE_UNAVAILABLE'
  override name = 'QueueUnavailableError'
}

/** Another consumer owns the queue now. */
export class SupersededError extends Error {
  readonly code = 'GBX_SUPERSEDED'
  override name = 'SupersededError'
}

/** A queue's answer to how far a producer's batches have come. */
export interface Polled {
  /** What is stored of the producer; undefined if the queue knows nothing of it. */
  readonly stored: Stored | undefined
  /** Batches that wait in the queue, of all producers; counted before `stored` was read. */
  readonly length: number
}

/** `unreachable` until the first attempt to connect has ended. */
export const connecting = 'not connected yet'

/** Why a consumer that runs can't store anything at present. */
export interface StoreTrouble {
  readonly reason: string
  /** The database's file was moved, removed or replaced: it does not come back by itself. */
  readonly moved: boolean
}

/** The same as a worker knows it, and since when (performance.now, ms). */
export interface StoreFailure extends StoreTrouble {
  readonly since: number
}

interface ProducerEvents {
  /** What is stored of a producer changed. Hints only: any of them may be lost, so ask with `stored` too. */
  stored: [producer: string, stored: Stored]
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
  async stored (producer: string): Promise<Stored | undefined> {
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

/** Which database a queue belongs to: `uuid:epoch`, its owner. */
export interface Owner {
  readonly uuid: string
  readonly epoch: number
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
  forgetStored (): Promise<void>

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
  tell (stored: ReadonlyMap<string, Stored>): Promise<void>

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

/** No element that a worker pushes is as large as this (see onceBytesMax); what is larger is not taken whole. */
export const elementBytesMax = 8 * 1024 * 1024

/** Parses what a queue says is stored; undefined if it is not that. */
export function parseStored (text: string): Stored | undefined {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return undefined
  }
  const sequences = parseSequences(value)
  if (sequences === undefined || typeof value !== 'object' || value === null) return undefined
  const rejected = 'rejected' in value && Array.isArray(value.rejected) ? value.rejected.filter(isRejection) : []
  const untold = 'untold' in value ? parseNumbers(value.untold) : []
  return { ...sequences, rejected, untold, ...('untoldFiled' in value ? { untoldFiled: parseNumbers(value.untoldFiled) } : {}) }
}

function parseNumbers (value: unknown): number[] {
  return Array.isArray(value) ? value.filter((seq): seq is number => Number.isSafeInteger(seq)) : []
}

function isRejection (value: unknown): value is Rejection {
  return typeof value === 'object' && value !== null && 'seq' in value && typeof value.seq === 'number' &&
    'reason' in value && rejectReasons.some((reason) => reason === value.reason) &&
    (!('key' in value) || typeof value.key === 'string') && (!('once' in value) || typeof value.once === 'string') &&
    (!('filed' in value) || typeof value.filed === 'boolean') &&
    (!('value' in value) || (typeof value.value === 'string' && /^-?\d{1,19}$/.test(value.value)))
}

/** Parses a trouble that a consumer reported; undefined if it is none. */
export function parseTrouble (text: string): StoreTrouble | undefined {
  if (text === '') return undefined
  const value: unknown = JSON.parse(text)
  if (typeof value !== 'object' || value === null || !('reason' in value) || !('moved' in value)) return undefined
  return { reason: String(value.reason), moved: value.moved === true }
}

export function ownerText ({ uuid, epoch }: Owner): string {
  return `${uuid}:${epoch}`
}

/** The database's UUID of an owner's text; undefined if it is no owner of ours. */
export function databaseOf (text: string): string | undefined {
  return /^([0-9a-f-]{36}):\d{1,15}$/.exec(text)?.[1]
}

/** @throws SupersededError if the text is no owner of ours */
export function parseOwner (text: string): Owner {
  const match = /^([0-9a-f-]{36}):(\d{1,15})$/.exec(text)
  if (match === null) throw new SupersededError(`the queue's owner ${JSON.stringify(text.slice(0, 64))} is not uuid:epoch`)
  return { uuid: match[1]!, epoch: Number(match[2]) }
}
