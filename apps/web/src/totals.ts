// Totals as they stand in the database, read through a connection of its own that never writes and never holds a
// snapshot for long. Point and range reads follow the primary key; the order by total has no index, as keeping one would
// cost the consumer more than half of its speed, and so those pages are made in a thread beside the event loop.
import { existsSync, statSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import Database from 'better-sqlite3'
import { RequestError } from './errors.ts'

export interface Total {
  readonly key: string
  readonly total: bigint
}

export interface Page {
  readonly prefix: string
  /** Where the page before ended: its `next`. */
  readonly after: string | undefined
  readonly limit: number
  readonly order: 'key' | 'total'
}

/** A path that was replaced (a restored database) is noticed after this long. */
const fileCheckMs = 1000

/** Pages by total that wait for the thread at once: each may take a second over ten million keys. */
const threadQueueMax = 16

const busyTimeoutMs = 100

export class Totals {
  readonly #path: string
  #db: Database.Database | undefined
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
    return this.#read((db) => db.prepare<[string], bigint>('SELECT value FROM numbers WHERE key = ?').pluck().safeIntegers().get(key))
  }

  /** One page, and where the next one starts if there is one. @throws RequestError */
  async list (page: Page): Promise<{ totals: Total[], next: string | null }> {
    const more = { ...page, limit: page.limit + 1 }
    const totals = page.order === 'key'
      ? this.#read((db) => listByKey(db, more))
      : await this.#inThread(more)
    const last = totals.length > page.limit ? totals[page.limit - 1] : undefined
    const next = last === undefined ? null : page.order === 'key' ? last.key : `${last.total}:${last.key}`
    return { totals: totals.slice(0, page.limit), next }
  }

  close (): void {
    this.#db?.close()
    this.#thread?.terminate().catch(() => {})
  }

  #read<T> (read: (db: Database.Database) => T): T {
    try {
      this.#db = this.#openCurrent()
      return read(this.#db)
    } catch (error) {
      if (error instanceof RequestError) throw error
      this.#db?.close()
      this.#db = undefined
      throw noDatabase()
    }
  }

  #openCurrent (): Database.Database {
    const now = performance.now()
    if (this.#db !== undefined && now - this.#checkedAt < fileCheckMs) return this.#db
    const inode = existsSync(this.#path) ? statSync(this.#path).ino : 0
    this.#checkedAt = now
    if (this.#db !== undefined && inode === this.#inode) return this.#db
    this.#db?.close()
    this.#db = undefined
    this.#inode = inode
    return openForReading(this.#path)
  }

  async #inThread (page: Page): Promise<Total[]> {
    if (!existsSync(this.#path)) throw noDatabase()
    parseCursor(page.after)
    if (this.#waiting.size >= threadQueueMax) throw new RequestError('GBX_OVERLOADED', 'too many pages ordered by total are being made; try again')
    const thread = this.#thread ??= this.#startThread()
    const id = ++this.#id
    return await new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      thread.postMessage({ id, page })
    })
  }

  #startThread (): Worker {
    const thread = new Worker(new URL('totals-thread.ts', import.meta.url), { workerData: this.#path })
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
  return new RequestError('GBX_NO_DATABASE', 'no database can be read on this host (DATABASE_PATH); ask the host of the consumer')
}

/** @throws Error if there is no readable database */
export function openForReading (path: string): Database.Database {
  return new Database(path, { readonly: true, fileMustExist: true, timeout: busyTimeoutMs })
}

function listByKey (db: Database.Database, { prefix, after, limit }: Page): Total[] {
  return db.prepare<unknown[], Total>(`
    SELECT key, value AS total FROM numbers
    WHERE key >= @prefix AND (@end IS NULL OR key < @end) AND (@after IS NULL OR key > @after)
    ORDER BY key LIMIT @limit`).safeIntegers().all({ prefix, end: prefixEnd(prefix) ?? null, after: after ?? null, limit })
}

/** Largest first, then by key. A scan of all keys with the prefix. */
export function listByTotal (db: Database.Database, { prefix, after, limit }: Page): Total[] {
  const cursor = parseCursor(after)
  return db.prepare<unknown[], Total>(`
    SELECT key, value AS total FROM numbers
    WHERE key >= @prefix AND (@end IS NULL OR key < @end)
      AND (@total IS NULL OR value < @total OR (value = @total AND key > @key))
    ORDER BY value DESC, key LIMIT @limit`).safeIntegers()
    .all({ prefix, end: prefixEnd(prefix) ?? null, total: cursor?.total ?? null, key: cursor?.key ?? null, limit })
}

/** @throws RequestError */
function parseCursor (after: string | undefined): Total | undefined {
  if (after === undefined) return undefined
  const match = /^(-?\d{1,19}):(.*)$/s.exec(after)
  const total = BigInt(match?.[1] ?? 0)
  if (match === null || total !== BigInt.asIntN(64, total)) throw new RequestError('GBX_BAD_QUERY', '"after" must be the "next" of the page before, in the same order')
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
