// The file in which a stopping worker leaves its batches: a line that says where they belong, then one batch per line.
// Web workers write and push it; `npm run verify` counts it.
import { constants } from 'node:fs'
import { lstat, open, readdir, type FileHandle } from 'node:fs/promises'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { parseRedisUrl } from '@gearbox/runtime/redis-url.ts'
import { readHeader, type Header } from '@gearbox/protocol/batch.ts'

/** Where batches belong, as far as it is known. */
export interface Origin {
  /** The queue's address and name, as the settings say. */
  readonly queue: string
  /** The id of what a Redis remembers; the embedded queue has none. */
  readonly generation: string | undefined
  /** UUID of the database that the queue belongs to. */
  readonly database: string | undefined
}

/** The version of the first line that this program writes. */
const originVersion = 1

/** How the names of these files end. A file that is still being written has another ending. */
export const unsentSuffix = '.jsonl'

/** Longest line that is read: the longest element that fits into one push. */
const lineBytesMax = 64 * 1024 * 1024

const chunkBytes = 1024 * 1024
const newline = 0x0a

/** Characters of a file's text that a message repeats. */
const shownMax = 64

/** The embedded queue of one database. */
export function embeddedQueueName (databasePath: string): string {
  return `the embedded queue of ${databasePath} on ${hostname()}`
}

/** A queue in Redis. An address that means another server on each machine is followed by this machine's name. */
export function redisQueueName (url: string, shownUrl: string, queueName: string): string {
  const { host } = parseRedisUrl(url)
  // A Unix socket has no host.
  const local = host === undefined || /^(localhost|127\..*|::1)$/i.test(host)
  return `${shownUrl} (${queueName})${local ? ` on ${hostname()}` : ''}`
}

/** The first line of a file. */
export function originLine ({ queue, generation, database }: Origin): string {
  const origin = { unsent: originVersion, queue, generation: generation ?? null, database: database ?? null }
  return `${JSON.stringify(origin)}\n`
}

/**
 * Whether what belongs to `left` belongs to the queue that is `here`. The database decides if it is known: it skips
 * what it has applied, so batches can reach it through any queue. Before a queue had a database its generation decides,
 * and if the queue was never reached its address.
 * @returns undefined if that is not known before the queue has a database
 */
export function belongsTo (left: Origin, here: Origin): boolean | undefined {
  if (left.database !== undefined) return here.database === undefined ? undefined : left.database === here.database
  return left.generation !== undefined ? left.generation === here.generation : left.queue === here.queue
}

/** An origin in a message. */
export function placeOf ({ queue, generation, database }: Origin): string {
  if (database !== undefined) return `database ${shown(database)} (${shown(queue)})`
  return `${shown(queue)}${generation === undefined ? '' : `, generation ${shown(generation)}`}`
}

/** A file's text as a message repeats it. */
function shown (text: string): string {
  return text.length > shownMax ? `${text.slice(0, shownMax)}…` : text
}

/** Paths of the spool files in a directory, by their names alone. A directory that can't be read has none. */
export async function listUnsent (dir: string): Promise<string[]> {
  try {
    return (await readdir(dir)).filter((name) => name.endsWith(unsentSuffix)).sort().map((name) => join(dir, name))
  } catch {
    return []
  }
}

/** A spool file that is open for reading. Whoever opens it closes it. */
export class SpoolFile {
  readonly #file: FileHandle
  /** Where its batches belong; undefined for a file of an older Gearbox, which did not write it down. */
  readonly origin: Origin | undefined

  private constructor (file: FileHandle, origin: Origin | undefined) {
    this.#file = file
    this.origin = origin
  }

  /**
   * Opens a file and reads where its batches belong. It must be a regular file: a pipe would hold up its reader.
   * @throws Error whose message says what is wrong with it
   */
  static async open (path: string): Promise<SpoolFile> {
    if (!(await lstat(path)).isFile()) throw new Error('it is not a regular file')
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
    try {
      if (!(await file.stat()).isFile()) throw new Error('it is not a regular file')
      const { value: first } = await lines(file).next()
      return new SpoolFile(file, first === undefined ? undefined : parseOrigin(first))
    } catch (error) {
      await file.close()
      throw error
    }
  }

  /** All batches, in order. @throws Error that names the line that is not a valid batch */
  async * batches (): AsyncGenerator<{ readonly element: Buffer, readonly header: Header }> {
    let number = 0
    for await (const element of lines(this.#file)) {
      number++
      if (element.length === 0 || (number === 1 && this.origin !== undefined)) continue
      const header = readHeader(element)
      if (typeof header === 'string') throw new Error(`line ${number} is not a valid batch (${header})`)
      yield { element, header }
    }
  }

  async close (): Promise<void> {
    await this.#file.close()
  }
}

/** The lines of a file, read in chunks. @throws Error if one is longer than anything that can be pushed */
async function * lines (file: FileHandle): AsyncGenerator<Buffer> {
  let rest: Buffer[] = []
  let bytes = 0
  for (let position = 0; ;) {
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(chunkBytes), 0, chunkBytes, position)
    if (bytesRead === 0) break
    position += bytesRead
    const chunk = buffer.subarray(0, bytesRead)
    let start = 0
    for (let end = chunk.indexOf(newline); end >= 0; end = chunk.indexOf(newline, start)) {
      yield Buffer.concat([...rest, chunk.subarray(start, end)])
      ;[rest, bytes, start] = [[], 0, end + 1]
    }
    rest.push(chunk.subarray(start))
    bytes += chunk.length - start
    if (bytes > lineBytesMax) throw new Error(`it has a line of more than ${lineBytesMax} bytes`)
  }
  if (bytes > 0) yield Buffer.concat(rest)
}

/** @returns undefined if the line is not an origin @throws Error if it is one that this program does not know */
function parseOrigin (line: Buffer): Origin | undefined {
  let value: unknown
  try {
    value = JSON.parse(line.toString())
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null || !('unsent' in value)) return undefined
  if (value.unsent !== originVersion) {
    const found = JSON.stringify(value.unsent)?.slice(0, shownMax)
    throw new Error(`line 1 has version ${found}, and this Gearbox knows ${originVersion}`)
  }
  const text = (name: string): string | undefined => {
    const found: unknown = Reflect.get(value, name)
    if (found === undefined || found === null) return undefined
    if (typeof found !== 'string' || found === '') throw new Error(`"${name}" in line 1 is not a text`)
    return found
  }
  return { queue: text('queue') ?? 'an unnamed queue', generation: text('generation'), database: text('database') }
}
