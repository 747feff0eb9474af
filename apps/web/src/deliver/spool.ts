// The spool: files with the batches that a stopping worker could not get into the queue. A later worker pushes them
// under the identities that they have, into the queue that they belong to, and no other. A file is deleted when all of
// it is stored; pushing it twice is harmless, as the consumer skips repeats.
import { mkdir, open, rename } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import Database from 'better-sqlite3'
import { QueueUnavailableError } from '@gearbox/queue/queue.ts'
import { listUnsent, originLine, unsentSuffix, type Origin } from '@gearbox/queue/spool-file.ts'
import { orAborted, retry } from './retry.ts'
import { SpoolDelivery, type SpoolDeliveryOptions, type SpoolState } from './spool-delivery.ts'

/** Files that are being delivered are visited this often: progress is polled then. */
const pollMs = 500

/** While all files wait for somebody else, they are visited this often. */
const waitMs = 5000

const newline = Buffer.from('\n')

/**
 * Writes batches so that they are on the disk under their final name, or not at all.
 * @returns the file's path
 * @throws Error if they can't be written
 */
export async function writeSpool (
  dir: string, producer: string, origin: Origin, elements: readonly Buffer[]
): Promise<string> {
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

/** The UUID of one of Gearbox's databases, for where no queue could be asked; undefined if it can't be read. */
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

/** Where spool files are, and where they are delivered to. */
export interface PushSpoolOptions extends SpoolDeliveryOptions {
  readonly dir: string
}

/**
 * Pushes what earlier workers left and deletes each file once it is stored. No file waits for another. Ends when there
 * is none left that belongs here; or at once when `stop` aborts, whatever it waits for. Files stay until all of them is
 * stored.
 */
export async function pushSpool (options: PushSpoolOptions): Promise<void> {
  const { dir, queue, stop } = options
  let files = (await listUnsent(dir)).map((path) => new SpoolDelivery(path, options))
  try {
    while (files.length > 0) {
      const here = await retry(async () => await queue.readOrigin(), stop)
      if (here === undefined) return
      const left: SpoolDelivery[] = []
      let pauseMs = waitMs
      for (const file of files) {
        if (stop.aborted) return
        const state = await advance(file, here, stop)
        if (state !== 'done') left.push(file)
        if (state !== 'waiting') pauseMs = pollMs
      }
      files = left
      if (files.length > 0) await delay(pauseMs, undefined, { signal: stop }).catch(() => {})
    }
  } finally {
    for (const file of files) file.release()
  }
}

/** A file whose visit fails is in progress: it must not hold up the others, and is visited again after the pause. */
async function advance (file: SpoolDelivery, here: Origin, stop: AbortSignal): Promise<SpoolState> {
  try {
    return await orAborted(file.advance(here), stop)
  } catch (error) {
    if (error instanceof QueueUnavailableError) return 'in progress'
    throw error
  }
}
