// All that `npm run verify` compares, read once: the workers, the files of unsent batches, the queue, the database.
// Nothing is changed, and nothing is judged here.
import { readHeader, type Header } from '@gearbox/protocol/batch.ts'
import { none, parseSequences, type Sequences } from '@gearbox/protocol/sequences.ts'
import { ask, createConnection, redisKeys, shownUrl } from '@gearbox/queue/redis/connection.ts'
import { embeddedQueueName, listUnsent, redisQueueName, SpoolFile, type Origin } from '@gearbox/queue/spool-file.ts'
import { keyFor } from '@gearbox/runtime/access/api-keys.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { createLogger } from '@gearbox/runtime/log/logger.ts'
import { openForReading } from '@gearbox/runtime/open-for-reading.ts'
import { readTroubles, readWorkers, type LivingWorker } from './workers.ts'

const busyTimeoutMs = 5000

/** Elements of the queue that are read at once. */
const pageElements = 100

/** What the database has of a producer. */
export interface Stored {
  readonly sequences: Sequences
  readonly increments: number
}

/** A file that a stopping worker left in UNSENT_DIR. */
export interface UnsentFile {
  readonly path: string
  readonly origin: Origin | undefined
  readonly headers: readonly Header[]
  /** Why it could not be read; undefined if it could. */
  readonly problem: string | undefined
}

/** What was read; all maps are by producer, except where another key is named. */
export interface Gathered {
  readonly workers: ReadonlyMap<string, LivingWorker>
  readonly files: readonly UnsentFile[]
  /** The batches that wait in the queue, in its order. */
  readonly queued: ReadonlyMap<string, readonly Header[]>
  readonly stored: ReadonlyMap<string, Stored>
  /** Rows of `rejected`. */
  readonly rejected: number
  /** The queue and database that were read. */
  readonly here: Origin
  /** Why workers are not ready, by address. */
  readonly troubles: ReadonlyMap<string, string>
}

/** The settings that say where all of it is. */
export type GatherConfig = Pick<Config,
  'redisUrl' | 'queueName' | 'databasePath' | 'unsentDir' | 'apiKeys' | 'logLevel'>

/**
 * Reads everything, in the order in which increments move on, so that what moves meanwhile is seen twice rather than
 * never.
 * @param urls where the workers have /metrics
 * @throws FatalError if anything can't be read
 */
export async function gather (config: GatherConfig, urls: readonly string[]): Promise<Gathered> {
  const workers = await readWorkers(urls, keyFor('read', config.apiKeys))
  const files = await readUnsent(config)
  const { queued, generation } = await readQueue(config)
  const { stored, rejected, uuid } = readDatabase(config.databasePath)
  const troubles = await readTroubles(urls)
  const here = { queue: queueNameOf(config), generation, database: uuid }
  return { workers, files, queued, stored, rejected, troubles, here }
}

/** Groups headers by their producer, in order. */
export function byProducer (headers: Iterable<Header>): Map<string, Header[]> {
  const groups = new Map<string, Header[]>()
  for (const header of headers) {
    const group = groups.get(header.producer)
    if (group === undefined) groups.set(header.producer, [header])
    else group.push(header)
  }
  return groups
}

async function readUnsent ({ unsentDir }: GatherConfig): Promise<UnsentFile[]> {
  const files: UnsentFile[] = []
  for (const path of await listUnsent(unsentDir)) {
    const headers: Header[] = []
    let file: SpoolFile | undefined
    let problem: string | undefined
    try {
      file = await SpoolFile.open(path)
      for await (const { header } of file.batches()) headers.push(header)
    } catch (error) {
      // It may just have been deleted.
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') continue
      problem = reasonOf(error)
    }
    await file?.close()
    files.push({ path, origin: file?.origin, headers, problem })
  }
  return files
}

function queueNameOf ({ redisUrl, queueName, databasePath }: GatherConfig): string {
  if (redisUrl === undefined) return embeddedQueueName(databasePath)
  return redisQueueName(redisUrl, shownUrl(redisUrl), queueName)
}

interface QueueContent {
  readonly queued: Map<string, Header[]>
  readonly generation: string | undefined
}

async function readQueue ({ redisUrl, queueName, logLevel }: GatherConfig): Promise<QueueContent> {
  if (redisUrl === undefined) return { queued: new Map(), generation: undefined }
  let lost: string | undefined
  const redis = createConnection(redisUrl, createLogger('verify', logLevel), (reason) => { lost ??= reason })
  const keys = redisKeys(queueName)
  const headers: Header[] = []
  try {
    await ask(redis.connect())
    const generation = await ask(redis.get(keys.generation)) ?? undefined
    for (let first = 0; ; first += pageElements) {
      const elements = await ask(redis.lrangeBuffer(keys.batches, first, first + pageElements - 1))
      for (const element of elements) {
        const header = readHeader(element)
        if (typeof header !== 'string') headers.push(header)
      }
      if (elements.length < pageElements) return { queued: byProducer(headers), generation }
    }
  } catch (error) {
    throw new FatalError(`the queue in Redis at ${shownUrl(redisUrl)} can't be read: ${lost ?? reasonOf(error)}`)
  } finally {
    redis.disconnect()
  }
}

interface DatabaseContent {
  readonly stored: Map<string, Stored>
  readonly rejected: number
  readonly uuid: string
}

interface ProducerRow {
  readonly producer: string
  readonly high: number
  readonly gaps: string
  readonly increments: number
}

function readDatabase (path: string): DatabaseContent {
  try {
    const db = openForReading(path, busyTimeoutMs)
    try {
      const rows = db.prepare<[], ProducerRow>('SELECT producer, high, gaps, increments FROM producers').all()
      const stored = rows.map(({ producer, high, gaps, increments }): [string, Stored] =>
        [producer, { sequences: parseSequences({ high, gaps: JSON.parse(gaps) }) ?? none, increments }])
      const rejected = Number(db.prepare('SELECT count(*) FROM rejected').pluck().get())
      const uuid = String(db.prepare("SELECT value FROM meta WHERE name = 'uuid'").pluck().get())
      return { stored: new Map(stored), rejected, uuid }
    } finally {
      db.close()
    }
  } catch (error) {
    throw new FatalError(`the database ${path} can't be read (${reasonOf(error)}); DATABASE_PATH names it`)
  }
}
