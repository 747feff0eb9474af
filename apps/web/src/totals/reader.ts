// One connection to the database, for reads only. One total, or a page by key, costs the rows that it returns, however
// large the table is and wherever in it the page starts. A page by total reads all keys with its prefix: there is no
// index on totals, as it would cost the consumer more than half of its speed.
import type Database from 'better-sqlite3'
import { echo } from '@gearbox/runtime/http/echo.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import { openForReading } from '@gearbox/runtime/open-for-reading.ts'
import { CommitIds } from './commit-id.ts'
import { PluginReads } from './plugin-reads.ts'

/** One key and its total. */
export interface Total {
  readonly key: string
  readonly total: bigint
}

/** Which totals are asked for. */
export interface Page {
  readonly prefix: string
  /** The `next` of the page before; undefined for the first page. */
  readonly after: string | undefined
  readonly limit: number
  readonly order: 'key' | 'total'
}

const busyTimeoutMs = 100

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

/** An open database, its statements prepared once. No read holds a snapshot longer than it runs. */
export class Reader {
  readonly #db: Database.Database
  readonly #total: Database.Statement<[string], bigint>
  readonly #pageByKey: Database.Statement<[object], Total>
  readonly #pageByTotal: Database.Statement<[object], Total>
  readonly #commits: CommitIds
  readonly #uuid: string | undefined
  /** For plugins. */
  readonly plugins: PluginReads

  /** @throws Error if there is no readable database at `path`, or one without totals */
  constructor (path: string) {
    this.#db = openForReading(path, busyTimeoutMs)
    try {
      this.plugins = new PluginReads(this.#db)
      this.#total = this.#db.prepare<[string], bigint>(totalSql).pluck().safeIntegers()
      this.#pageByKey = this.#db.prepare<[object], Total>(pageByKeySql).safeIntegers()
      this.#pageByTotal = this.#db.prepare<[object], Total>(pageByTotalSql).safeIntegers()
      this.#uuid = uuidOf(this.#db)
      this.#commits = new CommitIds(path)
    } catch (error) {
      this.#db.close()
      throw error
    }
  }

  /** The database and its commit that reads see which begin now, or a later one; undefined if that can't be known. */
  commit (): string | undefined {
    const id = this.#uuid === undefined ? undefined : this.#commits.read()
    return id === undefined ? undefined : `${this.#uuid}.${id}`
  }

  /** A key's total; undefined if nothing was ever stored under it. */
  get (key: string): bigint | undefined {
    return this.#total.get(key)
  }

  /** At most `limit` totals in the order of their keys; `after` is a key. */
  listByKey ({ prefix, after, limit }: Page): Total[] {
    return this.#pageByKey.all({ ...keyRange(prefix, after), limit })
  }

  /**
   * At most `limit` totals, the largest first. Takes as long as reading all keys with the prefix: not for the event
   * loop.
   */
  listByTotal ({ prefix, after, limit }: Page): Total[] {
    const { total = null, key = null } = parseCursor(after) ?? {}
    return this.#pageByTotal.all({ ...keyRange(prefix, undefined), limit, total, key })
  }

  close (): void {
    this.#db.close()
  }
}

/** Undefined for a database that no consumer has opened yet. */
function uuidOf (db: Database.Database): string | undefined {
  if (db.prepare("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").get() === undefined) return undefined
  const uuid = db.prepare("SELECT value FROM meta WHERE name = 'uuid'").pluck().get()
  return uuid === undefined ? undefined : String(uuid)
}

/**
 * The keys that start with `prefix` and come behind `after`, as the bounds of a search: start ≤ key < end.
 * SQLite orders text by its UTF-8, which is the order of code points.
 */
export function keyRange (prefix: string, after: string | undefined): { start: string, end: string | Buffer } {
  // Nothing is between a text and the same text with a NUL behind it.
  const behind = after === undefined ? '' : `${after}\0`
  const start = Buffer.compare(Buffer.from(behind), Buffer.from(prefix)) > 0 ? behind : prefix
  return { start, end: prefixEnd(prefix) ?? behindAllText }
}

/** SQLite orders every BLOB behind every text. */
const behindAllText = Buffer.alloc(0)

/** The smallest text that is greater than all that start with `prefix`; undefined if there is none. */
function prefixEnd (prefix: string): string | undefined {
  const points = Array.from(prefix, (character) => character.codePointAt(0)!)
  while (points.length > 0) {
    const last = points.pop()!
    if (last < 0x10ffff) return String.fromCodePoint(...points, last === 0xd7ff ? 0xe000 : last + 1)
  }
  return undefined
}

/** The `next` of a page by total, of which this was the last row. */
export function cursorOf ({ key, total }: Total): string {
  return `${total}:${key}`
}

/** The last row of the page before a page by total. @throws RequestError if `after` is no `next` of such a page */
export function parseCursor (after: string | undefined): Total | undefined {
  if (after === undefined) return undefined
  const match = /^(-?\d{1,19}):(.*)$/s.exec(after)
  const total = BigInt(match?.[1] ?? 0)
  if (match === null || total !== BigInt.asIntN(64, total)) {
    throw new RequestError('GBX_BAD_QUERY', '"after" must be the "next" of the page before, in the same order, ' +
      `not ${echo(after)}`)
  }
  return { key: match[2]!, total }
}
