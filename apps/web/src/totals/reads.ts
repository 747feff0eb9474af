// Totals as they are in the database, read through a separate connection that never writes and never holds a snapshot
// for long. One total, or a page by key, costs the rows that it returns, however large the table is and wherever in it the
// page starts. The order by total has no index, as keeping one would cost the consumer more than half of its speed, and so
// those pages are made in a thread next to the event loop.
import { existsSync, statSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import type Database from 'better-sqlite3'
import { echo } from '@gearbox/runtime/http/echo.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import { openForReading } from '@gearbox/runtime/open-for-reading.ts'

/** One key and its total. */
export interface Total {
  readonly key: string
  readonly total: bigint
}

/** Which totals are asked for. */
export interface Page {
  readonly prefix: string
  /** Where the page before ended: its `next`. */
  readonly after: string | undefined
  readonly limit: number
  readonly order: 'key' | 'total'
}

/** A path that was replaced (a restored database) is noticed after this long. */
const fileCheckMs = 1000

/**
 * Pages by total that wait for the thread at once. Each may take a second over ten million keys, and a connection without
 * any progress is cut off after ACK_TIMEOUT_MS + REQUEST_TIMEOUT_MS, by default 15 s: all of them are answered before that.
 */
const threadQueueMax = 12

const busyTimeoutMs = 100

/** Reads totals for the routes, from whatever database is at the path at that moment. */
export class Totals {
  readonly #path: string
  #reader: Reader | undefined
  #inode = 0
  #checkedAt = 0
  #thread: Worker | undefined
  #waiting = new Map<number, { resolve: (page: Total[]) => void, reject: (error: Error) => void }>()
  #id = 0

  constructor (path: string) {
    this.#path = path
  }

  /** A key's total; undefined if nothing was ever stored under it. @throws RequestError GBX_NO_DATABASE */
  get (key: string): bigint | undefined {
    return this.#read((reader) => reader.get(key))
  }

  /** One page, and where the next one starts if there is one. @throws RequestError */
  async list (page: Page): Promise<{ totals: Total[], next: string | null }> {
    const more = { ...page, limit: page.limit + 1 }
    const totals = page.order === 'key'
      ? this.#read((reader) => reader.listByKey(more))
      : await this.#inThread(more)
    const last = totals.length > page.limit ? totals[page.limit - 1] : undefined
    const next = last === undefined ? null : page.order === 'key' ? last.key : `${last.total}:${last.key}`
    return { totals: totals.slice(0, page.limit), next }
  }

  close (): void {
    this.#reader?.close()
    this.#thread?.terminate().catch(() => {})
  }

  #read<T> (read: (reader: Reader) => T): T {
    try {
      this.#reader = this.#openCurrent()
      return read(this.#reader)
    } catch (error) {
      if (error instanceof RequestError) throw error
      this.#reader?.close()
      this.#reader = undefined
      throw noDatabase()
    }
  }

  #openCurrent (): Reader {
    const now = performance.now()
    if (this.#reader !== undefined && now - this.#checkedAt < fileCheckMs) return this.#reader
    const inode = existsSync(this.#path) ? statSync(this.#path).ino : 0
    this.#checkedAt = now
    if (this.#reader !== undefined && inode === this.#inode) return this.#reader
    this.#reader?.close()
    this.#reader = undefined
    this.#inode = inode
    return new Reader(this.#path)
  }

  async #inThread (page: Page): Promise<Total[]> {
    parseCursor(page.after)
    if (!existsSync(this.#path)) throw noDatabase()
    if (this.#waiting.size >= threadQueueMax) throw new RequestError('GBX_OVERLOADED', 'too many pages ordered by total are being made; try again')
    const thread = this.#thread ??= this.#startThread()
    const id = ++this.#id
    return await new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      thread.postMessage({ id, page })
    })
  }

  #startThread (): Worker {
    const thread = new Worker(new URL('thread.ts', import.meta.url), { workerData: this.#path })
    const fail = (): void => {
      this.#thread = undefined
      for (const { reject } of this.#waiting.values()) reject(noDatabase())
      this.#waiting.clear()
    }
    thread.on('message', ({ id, totals }: { id: number, totals: Total[] | undefined }) => {
      const waiting = this.#waiting.get(id)
      this.#waiting.delete(id)
      if (totals === undefined) waiting?.reject(noDatabase())
      else waiting?.resolve(totals)
    })
    thread.on('error', fail)
    thread.on('exit', fail)
    thread.unref()
    return thread
  }
}

function noDatabase (): RequestError {
  return new RequestError('GBX_NO_DATABASE', 'this host has no readable database (DATABASE_PATH); ask the host of the consumer')
}

/** One total, by the primary key. */
export const totalSql = 'SELECT value FROM numbers WHERE key = ?'

/** A page by key. Both bounds are plain comparisons with the key, so that the search begins and ends at them. */
export const pageByKeySql = `
  SELECT key, value AS total FROM numbers
  WHERE key >= @start AND key < @end
  ORDER BY key LIMIT @limit`

/** A page by total, largest first, then by key. It scans all keys with the prefix, and keeps the rows of one page. */
export const pageByTotalSql = `
  SELECT key, value AS total FROM numbers
  WHERE key >= @start AND key < @end AND (@total IS NULL OR value < @total OR (value = @total AND key > @key))
  ORDER BY value DESC, key LIMIT @limit`

/** An open database, its statements prepared once. */
export class Reader {
  readonly #db: Database.Database
  readonly #total: Database.Statement<[string], bigint>
  readonly #pageByKey: Database.Statement<[object], Total>
  readonly #pageByTotal: Database.Statement<[object], Total>

  /** @throws Error if there is no readable database at `path`, or one without totals */
  constructor (path: string) {
    this.#db = openForReading(path, busyTimeoutMs)
    try {
      this.#total = this.#db.prepare<[string], bigint>(totalSql).pluck().safeIntegers()
      this.#pageByKey = this.#db.prepare<[object], Total>(pageByKeySql).safeIntegers()
      this.#pageByTotal = this.#db.prepare<[object], Total>(pageByTotalSql).safeIntegers()
    } catch (error) {
      this.#db.close()
      throw error
    }
  }

  get (key: string): bigint | undefined {
    return this.#total.get(key)
  }

  listByKey ({ prefix, after, limit }: Page): Total[] {
    return this.#pageByKey.all({ ...keyRange(prefix, after), limit })
  }

  /** Takes as long as reading all keys with the prefix: not for the event loop. */
  listByTotal ({ prefix, after, limit }: Page): Total[] {
    const cursor = parseCursor(after)
    return this.#pageByTotal.all({ ...keyRange(prefix, undefined), limit, total: cursor?.total ?? null, key: cursor?.key ?? null })
  }

  close (): void {
    this.#db.close()
  }
}

/**
 * The keys that start with `prefix` and come behind `after`, as the bounds of a search: start ≤ key < end.
 * SQLite orders text by its UTF-8.
 */
export function keyRange (prefix: string, after: string | undefined): { start: string, end: string | Buffer } {
  // Nothing is between a text and the same with a NUL behind it.
  const behind = after === undefined ? '' : `${after}\0`
  const start = Buffer.compare(Buffer.from(behind), Buffer.from(prefix)) > 0 ? behind : prefix
  return { start, end: prefixEnd(prefix) ?? behindAllText }
}

/** SQLite orders every BLOB behind every text. */
const behindAllText = Buffer.alloc(0)

/** @throws RequestError */
function parseCursor (after: string | undefined): Total | undefined {
  if (after === undefined) return undefined
  const match = /^(-?\d{1,19}):(.*)$/s.exec(after)
  const total = BigInt(match?.[1] ?? 0)
  if (match === null || total !== BigInt.asIntN(64, total)) {
    throw new RequestError('GBX_BAD_QUERY', `"after" must be the "next" of the page before, in the same order, not ${echo(after)}`)
  }
  return { key: match[2]!, total }
}

/** The smallest text that is greater than all that start with `prefix`; undefined if there is none. SQLite orders text by its UTF-8, which is the order of code points. */
function prefixEnd (prefix: string): string | undefined {
  const points = Array.from(prefix, (character) => character.codePointAt(0)!)
  while (points.length > 0) {
    const last = points.pop()!
    if (last < 0x10ffff) return String.fromCodePoint(...points, last === 0xd7ff ? 0xe000 : last + 1)
  }
  return undefined
}
