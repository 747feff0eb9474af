// Totals as they are in the database, for the routes. They come from connections that never write, separate from the
// consumer's.
import { existsSync, statSync } from 'node:fs'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import type { PluginReader, SqlValue } from '@gearbox/runtime/plugin.ts'
import { cursorOf, parseCursor, Reader, type Page, type Total } from './reader.ts'
import { SortedPages } from './sorted-pages.ts'

/** A path that was replaced (a restored database) is noticed after this long. */
const fileCheckMs = 1000

/**
 * Reads totals from the database that is at the path at that moment. A reader is open from the first read on; it is
 * closed when a read fails, when another file is at the path, and by `close`. The next read opens one again.
 */
export class Totals {
  readonly #path: string
  readonly #sorted: SortedPages
  #reader: Reader | undefined
  /** Of the file that `#reader` has open. */
  #inode = 0
  #checkedAt = 0

  constructor (path: string) {
    this.#path = path
    this.#sorted = new SortedPages(path)
  }

  /** A key's total; undefined if nothing was ever stored under it. @throws RequestError GBX_NO_DATABASE */
  get (key: string): bigint | undefined {
    return this.#read((reader) => reader.get(key))
  }

  /**
   * The commit that reads see which begin after this call, or a later one: what a cache asks for again with it has not
   * changed as long as this returns the same. Undefined if that can't be known.
   */
  commit (): string | undefined {
    try {
      return this.#read((reader) => reader.commit())
    } catch {
      // The read itself will say why.
      return undefined
    }
  }

  /** One page, and where the next one starts; null after the last one. @throws RequestError */
  async list (page: Page): Promise<{ totals: Total[], next: string | null }> {
    // One more than asked for shows whether there is a next page.
    const more = { ...page, limit: page.limit + 1 }
    const totals = page.order === 'key'
      ? this.#read((reader) => reader.listByKey(more))
      : await this.#listSorted(more)
    const last = totals.length > page.limit ? totals[page.limit - 1] : undefined
    const next = last === undefined ? null : page.order === 'key' ? last.key : cursorOf(last)
    return { totals: totals.slice(0, page.limit), next }
  }

  /** The same database for plugins. */
  readonly plugins: PluginReader = {
    get: <Row>(sql: string, ...values: SqlValue[]) => this.#readRows(sql, values, 1)[0] as Row | undefined,
    all: <Row>(sql: string, ...values: SqlValue[]) => this.#readRows(sql, values) as Row[],
  }

  close (): void {
    this.#reader?.close()
    this.#sorted.close()
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

  /** @throws RequestError (503) without a database; any error of the statement itself */
  #readRows (sql: string, values: readonly SqlValue[], most?: number): unknown[] {
    const { rows, error } = this.#read((reader) => {
      try {
        return { rows: reader.plugins.read(sql, values, most), error: undefined }
      } catch (error) {
        // A statement that is wrong says nothing of the database.
        if (!(error instanceof Error) || !isOfStatement(error)) throw error
        return { rows: [], error }
      }
    })
    if (error === undefined) return rows
    throw isLacking(error) ? noTable() : error
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
    const reader = new Reader(this.#path)
    if (statSync(this.#path).ino === inode) return reader
    // Its parts may be of two databases.
    reader.close()
    throw new Error('the database was replaced meanwhile')
  }

  async #listSorted (page: Page): Promise<Total[]> {
    // Refused here, where the error can say why.
    parseCursor(page.after)
    const totals = existsSync(this.#path) ? await this.#sorted.list(page) : undefined
    if (totals === undefined) throw noDatabase()
    return totals
  }
}

/** Whether an error is that of a statement, whichever database it is asked of. */
function isOfStatement (error: Error): boolean {
  return !('code' in error) || error.code === 'SQLITE_ERROR' || error.code === 'SQLITE_READONLY'
}

/** A consumer that has the plugin makes its tables; this worker may have been started before it. */
function isLacking (error: Error): boolean {
  return /^no such (?:table|column)/.test(reasonOf(error))
}

function noTable (): RequestError {
  return new RequestError('GBX_NO_DATABASE',
    'the database has no tables of this plugin yet: its consumer makes them when it is started with the plugin')
}

function noDatabase (): RequestError {
  const message = 'this host has no readable database (DATABASE_PATH); ask the host of the consumer'
  return new RequestError('GBX_NO_DATABASE', message)
}
