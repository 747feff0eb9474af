// The delivery of one spool file: the batches that an earlier worker left in it, under the identities that they have,
// into the queue that they belong to. What the outbox does for batches in memory, this does for batches in a file, with
// the same push and progress.
import { rm } from 'node:fs/promises'
import { has } from '@gearbox/protocol/sequences.ts'
import { QueueUnavailableError, type ProducerQueue } from '@gearbox/queue/queue.ts'
import { belongsTo, placeOf, SpoolFile, type Origin } from '@gearbox/queue/spool-file.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { FileClaim } from './file-claim.ts'
import { pushInGroups } from './push-groups.ts'

/** What is not stored this long after it was pushed, though the queue is empty, is pushed again. */
const pushAgainMs = 30_000

/** How far a call of `advance` brought a file. `waiting`: somebody else has to do something first. */
export type SpoolState = 'done' | 'waiting' | 'in progress'

/** What is remembered of a file: its batches are read again for each push, so that a large file takes little memory. */
interface Content {
  /** Undefined where the file does not say. */
  readonly origin: Origin | undefined
  /** By producer, the sequences that are not known to be stored. */
  readonly unstored: ReadonlyMap<string, Set<number>>
}

/** Where a spool file is delivered to. */
export interface SpoolDeliveryOptions {
  readonly queue: ProducerQueue
  readonly logger: Logger
  /** Ends a push before its next group. */
  readonly stop: AbortSignal
}

/**
 * One file. Each call of `advance` takes it through as many of these states as it can:
 *
 * - found: at the start, and after `release`. Left when its content was read and belongs to this queue's database.
 * - claimed: no other worker pushes it. Left when all batches that are not known to be stored are in the queue.
 * - pushed: the queue has them. Back to claimed where the queue is another one, or was empty for 30 s without storing
 *   them.
 * - stored: progress covers all of its batches. The file is deleted, and it is done.
 * - left alone: it belongs elsewhere, or can't be read. It is done for this worker, and stays on the disk.
 */
export class SpoolDelivery {
  readonly #path: string
  readonly #options: SpoolDeliveryOptions
  #claim: FileClaim | undefined
  #content: Content | undefined
  /** The incarnation that it was pushed to, and when (performance.now, ms). */
  #pushedTo: string | undefined
  #pushedAt = 0
  /** Whether the queue was empty when progress was polled last. */
  #queueWasEmpty = false
  #waitingLogged = false

  constructor (path: string, options: SpoolDeliveryOptions) {
    this.#path = path
    this.#options = options
  }

  /**
   * Takes the file as far as it goes now. Calls must not overlap.
   * @param here where the queue's batches belong
   * @throws QueueUnavailableError: call it again later
   */
  async advance (here: Origin): Promise<SpoolState> {
    try {
      return await this.#advance(here)
    } catch (error) {
      if (error instanceof QueueUnavailableError) throw error
      this.release()
      // Another worker may have finished it.
      if (isMissing(error)) return 'done'
      this.#options.logger.error(`${this.#path} can't be pushed: ${reasonOf(error)}. ` +
        'It stays where it is; fix or remove it and start again')
      return 'done'
    }
  }

  /** Lets other workers push it. */
  release (): void {
    this.#claim?.release()
    this.#claim = undefined
  }

  async #advance (here: Origin): Promise<SpoolState> {
    const { queue, logger } = this.#options
    const content = this.#content ??= await reading(this.#path, readContent)
    const belongs = await this.#belongs(content, here)
    if (belongs !== true) {
      this.release()
      return belongs === undefined ? 'waiting' : 'done'
    }
    if (this.#claim === undefined) {
      this.#claim = FileClaim.claim(this.#path)
      if (this.#claim === undefined) return 'waiting'
      logger.info(`${this.#path}: pushing ${size(content)} batches that an earlier worker left`)
    }
    const { incarnation } = queue
    if (incarnation === undefined) return 'in progress'
    if (this.#needsPush(incarnation)) {
      if (!await this.#push(content, incarnation)) return 'in progress'
      this.#pushedTo = incarnation
      this.#pushedAt = performance.now()
    }
    await this.#pollProgress(content)
    if (size(content) > 0) return 'in progress'
    await rm(this.#path, { force: true })
    this.release()
    logger.info(`${this.#path}: all of it is stored`)
    return 'done'
  }

  /** @returns undefined if that is not known yet */
  async #belongs ({ origin, unstored }: Content, here: Origin): Promise<boolean | undefined> {
    const { queue, logger } = this.#options
    if (origin === undefined) {
      for (const producer of unstored.keys()) {
        if (await queue.progress(producer) !== undefined) continue
        this.#logWaiting(`${this.#path} does not say where it belongs, ` +
          `and this queue does not know its worker ${producer}: it stays where it is. ` +
          `If its counts belong here, put ${firstLine(here)} before its first line, and start again`)
        return undefined
      }
      return true
    }
    const belongs = belongsTo(origin, here)
    if (belongs === undefined) {
      this.#logWaiting(`${this.#path} belongs to ${placeOf(origin)}: it waits until this queue has one`)
    } else if (!belongs) {
      logger.warn(`${this.#path} belongs to ${placeOf(origin)}, and this is ${placeOf(here)}: it stays where it is. ` +
        `If its counts belong here all the same, put ${firstLine(here)} in the place of its first line, ` +
        'and start again')
    }
    return belongs
  }

  #logWaiting (message: string): void {
    if (!this.#waitingLogged) this.#options.logger.warn(message)
    this.#waitingLogged = true
  }

  #needsPush (incarnation: string): boolean {
    return this.#pushedTo !== incarnation || (this.#queueWasEmpty && performance.now() - this.#pushedAt > pushAgainMs)
  }

  /** Pushes all that is not stored. @returns false if the queue changed meanwhile */
  async #push ({ unstored }: Content, incarnation: string): Promise<boolean> {
    const { queue, stop } = this.#options
    return await reading(this.#path, async (file) => await pushInGroups(file.batches(), {
      queue,
      incarnation,
      signal: stop,
      isWanted: ({ header: { producer, seq } }) => unstored.get(producer)?.has(seq) === true,
    }))
  }

  /** Removes what is stored by now. */
  async #pollProgress ({ unstored }: Content): Promise<void> {
    for (const [producer, sequences] of unstored) {
      if (sequences.size === 0) continue
      const { stored, length } = await this.#options.queue.pollProgress(producer)
      this.#queueWasEmpty = length === 0
      for (const seq of sequences) if (stored !== undefined && has(stored, seq)) sequences.delete(seq)
    }
  }
}

async function readContent (file: SpoolFile): Promise<Content> {
  const unstored = new Map<string, Set<number>>()
  for await (const { header: { producer, seq } } of file.batches()) {
    const sequences = unstored.get(producer)
    if (sequences === undefined) unstored.set(producer, new Set([seq]))
    else sequences.add(seq)
  }
  return { origin: file.origin, unstored }
}

async function reading<T> (path: string, read: (file: SpoolFile) => Promise<T>): Promise<T> {
  const file = await SpoolFile.open(path)
  try {
    return await read(file)
  } finally {
    await file.close()
  }
}

/** Batches that are not known to be stored. */
function size ({ unstored }: Content): number {
  return [...unstored.values()].reduce((sum, sequences) => sum + sequences.size, 0)
}

/** The first line of a file that belongs here. */
function firstLine ({ database }: Origin): string {
  return `{"unsent":1,"database":"${database ?? "the database's UUID"}"}`
}

function isMissing (error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT'
}
