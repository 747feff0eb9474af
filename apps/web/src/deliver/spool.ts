// Batches that a stopping worker could not get into the queue wait in a file until a later worker has pushed them under the identities
// they were given: into the queue that they belong to, and no other. The file goes when all of it is stored; pushing it twice is harmless,
// as the consumer skips repeats.
import { rmSync } from 'node:fs'
import { mkdir, open, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import Database from 'better-sqlite3'
import { batchBytesMax } from '@gearbox/protocol/batch.ts'
import { QueueUnavailableError, type ProducerQueue } from '@gearbox/queue/queue.ts'
import { has } from '@gearbox/protocol/sequences.ts'
import { belongsTo, listUnsent, originLine, placeOf, SpoolFile, unsentSuffix, type Origin } from '@gearbox/queue/spool-file.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'

const pollMs = 500

/** A file that can't be pushed yet is looked at again after this long. */
const waitMs = 5000

/** What is not stored this long after it was pushed, though the queue is empty, is pushed again. */
const pushAgainMs = 30_000

const newline = Buffer.from('\n')

/** Writes batches so that they are on the disk under their final name, or not at all. @throws Error if they can't be */
export async function writeSpool (dir: string, producer: string, origin: Origin, elements: readonly Buffer[]): Promise<string> {
  const made = await mkdir(dir, { recursive: true }) ?? `${dir}/`
  // Each directory that was made is a name in the one above it.
  for (let at = dir; at.length >= made.length; at = dirname(at)) await syncDirectory(dirname(at))
  const path = join(dir, `${producer}${unsentSuffix}`)
  const file = await open(`${path}.tmp`, 'w')
  try {
    // writeFile goes on after a short write, where writev alone would report half of it as success.
    await file.writeFile([Buffer.from(originLine(origin)), ...elements.flatMap((element) => [element, newline])])
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(`${path}.tmp`, path)
  await syncDirectory(dir)
  return path
}

/** A name is only as durable as its directory. */
async function syncDirectory (dir: string): Promise<void> {
  const directory = await open(dir, 'r')
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}

/** The UUID of a database of ours, for where no queue could be asked; undefined if it can't be read. */
export function readDatabaseUuid (path: string): string | undefined {
  let db: Database.Database | undefined
  try {
    db = new Database(path, { readonly: true, fileMustExist: true, timeout: 0 })
    const uuid = db.prepare("SELECT value FROM meta WHERE name = 'uuid'").pluck().get()
    return typeof uuid === 'string' ? uuid : undefined
  } catch {
    return undefined
  } finally {
    db?.close()
  }
}

export interface PushSpoolOptions {
  readonly dir: string
  readonly queue: ProducerQueue
  readonly logger: Logger
  /** Ends it at once, whatever it waits for. Files stay until all of them is stored. */
  readonly stop: AbortSignal
}

/**
 * Pushes what earlier workers left and deletes each file once it is stored. No file waits for another. Ends when there is none left that
 * belongs here, or when `stop` aborts.
 */
export async function pushSpool (options: PushSpoolOptions): Promise<void> {
  const { dir, queue, stop } = options
  let files = (await listUnsent(dir)).map((path) => new LeftFile(path, options))
  try {
    while (files.length > 0 && !stop.aborted) {
      const here = await orStopped(queue.readOrigin(), stop)
      const left: LeftFile[] = []
      let pauseMs = waitMs
      for (const file of files) {
        const outcome = here === undefined ? undefined : await orStopped(file.advance(here), stop)
        if (outcome !== 'done') left.push(file)
        if (outcome !== 'waiting') pauseMs = pollMs
      }
      files = left
      if (files.length > 0) await delay(pauseMs, undefined, { signal: stop }).catch(() => {})
    }
  } finally {
    for (const file of files) file.release()
  }
}

/** @returns undefined if the queue can't be asked, or at a stop: an embedded push is answered only when it is committed */
async function orStopped<T> (action: Promise<T>, stop: AbortSignal): Promise<T | undefined> {
  let stopped = (): void => {}
  try {
    return await Promise.race([action, new Promise<undefined>((resolve) => {
      stopped = () => resolve(undefined)
      if (stop.aborted) stopped()
      stop.addEventListener('abort', stopped)
    })])
  } catch (error) {
    if (error instanceof QueueUnavailableError) return undefined
    throw error
  } finally {
    stop.removeEventListener('abort', stopped)
  }
}

/**
 * One file on its way. It is seen → claimed and read → pushed → stored and deleted. Any of these can take several calls of `advance`, and what
 * is not for this worker leaves it alone: a file that belongs elsewhere, is being pushed by another worker, or can't be read.
 */
class LeftFile {
  readonly #path: string
  readonly #options: PushSpoolOptions
  #claim: Claim | undefined
  #content: Content | undefined
  #pushedTo: string | undefined
  #pushedAt = 0
  #saidWaiting = false

  constructor (path: string, options: PushSpoolOptions) {
    this.#path = path
    this.#options = options
  }

  /**
   * Takes it as far as it goes now.
   * @returns 'done' if there is nothing more to do for this worker; 'waiting' if somebody else has to do something first
   * @throws QueueUnavailableError
   */
  async advance (here: Origin): Promise<'done' | 'waiting' | 'under way'> {
    try {
      return await this.#advance(here)
    } catch (error) {
      if (error instanceof QueueUnavailableError) throw error
      this.release()
      // Another worker may have finished it.
      if (isMissing(error)) return 'done'
      this.#options.logger.error(`${this.#path} can't be pushed: ${reasonOf(error)}. It stays where it is; fix or remove it and start again`)
      return 'done'
    }
  }

  /** Lets other workers push it. */
  release (): void {
    this.#claim?.release()
    this.#claim = undefined
  }

  async #advance (here: Origin): Promise<'done' | 'waiting' | 'under way'> {
    const { queue, logger } = this.#options
    const content = this.#content ??= await reading(this.#path, contentOf)
    const belongs = await this.#belongs(content, here)
    if (belongs !== true) {
      this.release()
      return belongs === undefined ? 'waiting' : 'done'
    }
    if (this.#claim === undefined) {
      this.#claim = Claim.take(this.#path)
      if (this.#claim === undefined) return 'waiting'
      logger.info(`${this.#path}: pushing ${size(content)} batches that an earlier worker left`)
    }
    const { incarnation } = queue
    if (incarnation === undefined) return 'under way'
    if (this.#pushedTo !== incarnation || (performance.now() - this.#pushedAt > pushAgainMs && await queue.length() === 0)) {
      if (!await reading(this.#path, async (file) => await this.#push(file, content, incarnation))) return 'under way'
      this.#pushedTo = incarnation
      this.#pushedAt = performance.now()
    }
    await this.#dropStored(content)
    if (size(content) > 0) return 'under way'
    await rm(this.#path, { force: true })
    this.release()
    logger.info(`${this.#path}: all of it is stored`)
    return 'done'
  }

  /** @returns undefined if that can't be told yet */
  async #belongs ({ origin, unstored }: Content, here: Origin): Promise<boolean | undefined> {
    const { queue, logger } = this.#options
    if (origin === undefined) {
      for (const producer of unstored.keys()) {
        if (await queue.progress(producer) !== undefined) continue
        this.#sayWaiting(`${this.#path} does not say where it belongs, and this queue does not know its worker ${producer}: it stays where it is. ` +
          `If its counts belong here, put ${fix(here)} before its first line, and start again`)
        return undefined
      }
      return true
    }
    const belongs = belongsTo(origin, here)
    if (belongs === undefined) {
      this.#sayWaiting(`${this.#path} belongs to ${placeOf(origin)}: it waits until this queue has one`)
    } else if (!belongs) {
      logger.warn(`${this.#path} belongs to ${placeOf(origin)}, and this is ${placeOf(here)}: it stays where it is. ` +
        `If its counts belong here all the same, put ${fix(here)} in the place of its first line, and start again`)
    }
    return belongs
  }

  #sayWaiting (message: string): void {
    if (!this.#saidWaiting) this.#options.logger.warn(message)
    this.#saidWaiting = true
  }

  /** Pushes all that is not stored. @returns false if the queue changed meanwhile */
  async #push (file: SpoolFile, { unstored }: Content, incarnation: string): Promise<boolean> {
    const { queue, stop } = this.#options
    let group: Buffer[] = []
    let bytes = 0
    const pushGroup = async (): Promise<boolean> => {
      const elements = group
      ;[group, bytes] = [[], 0]
      return elements.length === 0 || await queue.push(elements, incarnation) === 'pushed'
    }
    for await (const { element, header } of file.batches()) {
      if (stop.aborted) return false
      if (unstored.get(header.producer)?.has(header.seq) !== true) continue
      if (bytes + element.length > batchBytesMax && !await pushGroup()) return false
      group.push(element)
      bytes += element.length
    }
    return await pushGroup()
  }

  async #dropStored ({ unstored }: Content): Promise<void> {
    for (const [producer, sequences] of unstored) {
      if (sequences.size === 0) continue
      const stored = await this.#options.queue.progress(producer)
      for (const seq of sequences) if (stored !== undefined && has(stored, seq)) sequences.delete(seq)
    }
  }
}

/** What is remembered of a file: its batches are read again for each push. */
interface Content {
  /** Undefined where the file does not say. */
  readonly origin: Origin | undefined
  /** By producer, the sequences that are not known to be stored. */
  readonly unstored: ReadonlyMap<string, Set<number>>
}

async function contentOf (file: SpoolFile): Promise<Content> {
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

function size ({ unstored }: Content): number {
  return [...unstored.values()].reduce((sum, sequences) => sum + sequences.size, 0)
}

/** Keeps two workers from pushing the same file: that would be harmless, and noisy. The kernel lets go of it when its process ends, however it ends. */
class Claim {
  readonly #path: string
  /** Its lock; undefined where no file could be made for it. */
  readonly #db: Database.Database | undefined

  private constructor (path: string, db: Database.Database | undefined) {
    this.#path = path
    this.#db = db
  }

  /** @returns undefined if another worker has it */
  static take (path: string): Claim | undefined {
    let db: Database.Database | undefined
    try {
      db = new Database(`${path}.claim`, { timeout: 0 })
      db.exec('BEGIN EXCLUSIVE')
    } catch (error) {
      db?.close()
      if (error instanceof Error && 'code' in error && error.code === 'SQLITE_BUSY') return undefined
      db = undefined
    }
    return new Claim(`${path}.claim`, db)
  }

  release (): void {
    if (this.#db === undefined) return
    // Whoever is next makes a file of that name anew.
    rmSync(this.#path, { force: true })
    this.#db.close()
  }
}

/** The first line of a file that belongs here. */
function fix ({ database }: Origin): string {
  return `{"unsent":1,"database":"${database ?? "the database's UUID"}"}`
}

function isMissing (error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ENOENT'
}
