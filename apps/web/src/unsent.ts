// Batches that a stopping worker could not push wait in a file until a later worker has pushed them under the identities
// they were given. The file goes when all of it is stored; pushing it twice is harmless, as the consumer skips repeats.
import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { batchBytesMax, readHeader } from '@gearbox/queue/batch.ts'
import { QueueUnavailableError, type ProducerQueue } from '@gearbox/queue/queue.ts'
import { has } from '@gearbox/queue/sequences.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import type { Logger } from '@gearbox/runtime/logger.ts'

const suffix = '.jsonl'
const retryMs = 500

/** What is not stored this long after it was pushed, though the queue is empty, is pushed again. */
const pushAgainMs = 30_000

const newline = Buffer.from('\n')

/** Writes batches so that they are on the disk under their final name, or not at all. @throws Error if they can't be */
export async function writeUnsent (dir: string, producer: string, elements: readonly Buffer[]): Promise<string> {
  if (await mkdir(dir, { recursive: true }) !== undefined) await syncDirectory(dirname(dir))
  const path = join(dir, `${producer}${suffix}`)
  const file = await open(`${path}.tmp`, 'w')
  try {
    // writeFile goes on after a short write, where writev alone would report half of it as success.
    await file.writeFile(elements.flatMap((element) => [element, newline]))
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

/** Pushes what earlier workers left and deletes each file once it is stored. Ends when all are, or when `stop` aborts. */
export async function pushUnsent (dir: string, queue: ProducerQueue, logger: Logger, stop: AbortSignal): Promise<void> {
  let names: string[]
  try {
    names = (await readdir(dir)).filter((name) => name.endsWith(suffix))
  } catch {
    return
  }
  for (const name of names) {
    const path = join(dir, name)
    try {
      await pushFile(path, queue, logger, stop)
    } catch (error) {
      logger.error(`${path} can't be pushed: ${reasonOf(error)}. It stays where it is; mend it and start again`)
    }
    if (stop.aborted) return
  }
}

interface Line {
  readonly element: Buffer
  readonly producer: string
  readonly seq: number
}

async function pushFile (path: string, queue: ProducerQueue, logger: Logger, stop: AbortSignal): Promise<void> {
  let lines = readLines(await readFile(path))
  logger.info(`${path}: pushing ${lines.length} batches that an earlier worker left`)
  let pushedTo: string | undefined
  let pushedAt = 0
  while (!stop.aborted) {
    try {
      const { incarnation } = queue
      if (incarnation === undefined) throw new QueueUnavailableError('connecting')
      if (pushedTo !== incarnation || (performance.now() - pushedAt > pushAgainMs && await queue.length() === 0)) {
        if (await pushAll(lines, queue, incarnation)) {
          pushedTo = incarnation
          pushedAt = performance.now()
        }
      }
      lines = await unstored(lines, queue)
      if (lines.length === 0) {
        await rm(path, { force: true })
        logger.info(`${path}: all of it is stored`)
        return
      }
    } catch (error) {
      if (!(error instanceof QueueUnavailableError)) throw error
    }
    await delay(retryMs, undefined, { signal: stop }).catch(() => {})
  }
}

function readLines (content: Buffer): Line[] {
  const lines: Line[] = []
  for (let start = 0; start < content.length;) {
    const end = content.indexOf(newline, start)
    const element = content.subarray(start, end < 0 ? content.length : end)
    start += element.length + 1
    if (element.length === 0) continue
    const header = readHeader(element)
    if (typeof header === 'string') throw new Error(`line ${lines.length + 1} is no batch (${header})`)
    lines.push({ element, producer: header.producer, seq: header.seq })
  }
  return lines
}

/** @returns false if the queue changed meanwhile */
async function pushAll (lines: readonly Line[], queue: ProducerQueue, incarnation: string): Promise<boolean> {
  for (let first = 0; first < lines.length;) {
    let [last, bytes] = [first, 0]
    while (last < lines.length && (last === first || bytes + lines[last]!.element.length <= batchBytesMax)) bytes += lines[last++]!.element.length
    const group = lines.slice(first, last).map(({ element }) => element)
    if (await queue.push(group, incarnation) === 'moved') return false
    first = last
  }
  return true
}

async function unstored (lines: readonly Line[], queue: ProducerQueue): Promise<Line[]> {
  const left: Line[] = []
  for (const producer of new Set(lines.map((line) => line.producer))) {
    const stored = await queue.stored(producer)
    left.push(...lines.filter((line) => line.producer === producer && (stored === undefined || !has(stored, line.seq))))
  }
  return left
}
