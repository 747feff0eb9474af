// What was promised (2xx) and could not be applied: the table `rejected`, within its limits. Written only in the
// store's transactions; `npm run rejected` lists it, tries entries again and discards them.
import type Database from 'better-sqlite3'
import { int64Max, int64Min } from '@gearbox/protocol/int64.ts'
import type { RejectReason } from '@gearbox/protocol/progress.ts'
import type { Entry } from './statements.ts'

/** A row of `rejected`. */
export interface Rejected {
  readonly id: bigint
  readonly producer: string | null
  readonly seq: bigint | null
  readonly reason: RejectReason
  /** Unix ms. */
  readonly at: bigint
  /** The key and sum, or those of an idempotent request; undefined of a whole batch. */
  readonly entries: readonly Entry[] | undefined
  /** Length of a whole batch. */
  readonly batchBytes: bigint | null
}

/** What a row of `rejected` keeps so that it can be tried again. */
export interface RejectedContent {
  /** Null of a batch whose header could not be read: then its sequence is not recorded either. */
  readonly producer: string | null
  readonly key: string | null
  readonly value: bigint | null
  /** The sum in decimal digits, where it is beyond 64 bits. */
  readonly exact: string | null
  readonly sums: string | null
  readonly batch: Buffer | null
  readonly once: string | null
  readonly reason: RejectReason
  readonly at: bigint
}

/**
 * A row to insert. An entry of the sums has a key and a value, an idempotent request its id and sums, a whole batch its
 * bytes.
 */
export interface NewRejected {
  readonly producer: string | undefined
  readonly seq: number | undefined
  readonly key?: string | undefined
  readonly value?: bigint
  readonly once?: string | undefined
  readonly sums?: string
  readonly batch?: Buffer
  readonly hash?: string
  readonly reason: RejectReason
  /** When it was accepted, Unix ms. */
  readonly at: number
}

/** How much `rejected` may keep; where one is missing, as much as its setting's default. */
export interface RejectedLimits {
  readonly rejectedRowsMax?: number
  readonly rejectedBytesMax?: number
}

/**
 * What became of an entry: known if it was there already, dropped if there is no room for it. `evicted` rows made room.
 */
export interface Filed {
  readonly outcome: 'filed' | 'known' | 'dropped'
  readonly evicted: number
}

/** Which reason makes room for which: the one with the lower number. A promise that can still be kept is worth most. */
const worth: { readonly [reason in RejectReason]: number } = {
  unreadable: 0, 'other body': 1, 'too late': 1, trigger: 2, overflow: 2,
}

/** Bytes of a row apart from what varies: numbers, names, and its entries in the indexes. */
const rowOwnBytes = 200

const rowBytes = `${rowOwnBytes} + coalesce(octet_length(key), 0) * 2 + coalesce(octet_length(exact), 0)
  + coalesce(octet_length(sums), 0) + coalesce(octet_length(batch), 0)`

interface Counts {
  rows: number
  bytes: number
  /** SQLite's number of the last commit by another connection that is in these counts. */
  readonly version: unknown
}

/**
 * Adds columns and indexes that came later. A program of the version before does without them, so the schema's version
 * stays.
 */
export function extendRejected (db: Database.Database): void {
  const columns = db.prepare<[], string>("SELECT name FROM pragma_table_info('rejected')").pluck().all()
  db.exec(`
    ${columns.includes('exact') ? '' : 'ALTER TABLE rejected ADD COLUMN exact TEXT;'}
    CREATE INDEX IF NOT EXISTS rejected_key ON rejected(key) WHERE once IS NULL;
    CREATE INDEX IF NOT EXISTS rejected_once ON rejected(once) WHERE once IS NOT NULL;
    CREATE INDEX IF NOT EXISTS rejected_reason ON rejected(reason);
  `)
}

/** Whether it has those columns and indexes. */
export function isExtended (db: Database.Database): boolean {
  return db.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = 'rejected_reason'").get() !== undefined
}

/** The table `rejected`, with its size in memory. Writes only within the transaction of its caller. */
export class RejectedEntries {
  readonly #db: Database.Database
  readonly #limits: Required<RejectedLimits>
  readonly #statements: ReturnType<typeof prepare>
  #counts: Counts | undefined

  constructor (db: Database.Database, { rejectedRowsMax = 100_000, rejectedBytesMax = 67_108_864 }: RejectedLimits) {
    this.#db = db
    this.#limits = { rejectedRowsMax, rejectedBytesMax }
    this.#statements = prepare(db)
  }

  /** How many rows there are now. */
  get rows (): number {
    return this.#statements.countRows.get() ?? 0
  }

  /** To be called when a transaction was rolled back: what was counted in it is wrong. */
  forgetCounts (): void {
    this.#counts = undefined
  }

  /**
   * Keeps an entry, within the limits: from half of them on, what is rejected of one key is added up in one row, and
   * when they are reached, the oldest of what is worth less makes room.
   */
  file (row: NewRejected): Filed {
    const statements = this.#statements
    const counts = this.#count()
    const { rejectedRowsMax, rejectedBytesMax } = this.#limits
    const { producer = null, seq = null, key, value, once, sums = null, batch = null, hash = null, reason, at } = row
    const isKnown = (hash !== null && statements.hasHash.get(hash) === 1) ||
      (once !== undefined && statements.hasOnce.get({ once, reason, sums }) === 1)
    if (isKnown) return { outcome: 'known', evicted: 0 }
    const bytes = rowOwnBytes + 2 * Buffer.byteLength(key ?? '') + Buffer.byteLength(sums ?? '') + (batch?.length ?? 0)
    const isFilling = counts.rows * 2 >= rejectedRowsMax || counts.bytes * 2 >= rejectedBytesMax
    if (isFilling && key !== undefined && value !== undefined && this.#addUp(key, value, reason)) {
      return { outcome: 'filed', evicted: 0 }
    }
    let evicted = 0
    while (counts.rows >= rejectedRowsMax || counts.bytes + bytes > rejectedBytesMax) {
      if (bytes > rejectedBytesMax || !this.#evict(worth[reason])) return { outcome: 'dropped', evicted }
      evicted++
    }
    statements.insert.run({
      producer, seq, key: key ?? null, value: value ?? null, once: once ?? null, sums, batch, hash, reason, at,
    })
    counts.rows++
    counts.bytes += bytes
    return { outcome: 'filed', evicted }
  }

  /** Rows with ids above `after`, oldest first, at most `most`. */
  list (after: bigint, most: number): Rejected[] {
    return this.#statements.list.all(after, most).map(({ key, value, exact, sums, ...row }) => {
      const sum = key === null ? undefined : [{ key, value: exact === null ? value ?? 0n : BigInt(exact) }]
      return { ...row, entries: sums === null ? sum : this.#statements.entriesOf.all(sums) }
    })
  }

  /** A row's content; undefined if there is no such row. */
  read (id: bigint): RejectedContent | undefined {
    return this.#statements.read.get(id)
  }

  /** Removes a row. @returns whether there was such a row */
  delete (id: bigint): boolean {
    this.#counts = undefined
    return this.#statements.delete.run(id).changes > 0
  }

  /** Removes an idempotent request that was refused to its client in the end: it must not be counted later. */
  deleteOnce (once: string, sums: string): void {
    if (this.#statements.deleteOnce.run({ once, sums }).changes > 0) this.#counts = undefined
  }

  /** Adds to the newest row of the same key and reason. @returns false if there is none */
  #addUp (key: string, value: bigint, reason: RejectReason): boolean {
    const row = this.#statements.findSum.get({ key, reason })
    if (row === undefined) return false
    const sum = (row.exact === null ? row.value ?? 0n : BigInt(row.exact)) + value
    const fits = sum <= int64Max && sum >= int64Min
    this.#statements.writeSum.run({ id: row.id, value: fits ? sum : null, exact: fits ? null : String(sum) })
    return true
  }

  /** @returns false if there is nothing worth less than `than` */
  #evict (than: number): boolean {
    const counts = this.#count()
    const lesser = Object.entries(worth).filter(([, value]) => value < than).sort(([, one], [, other]) => one - other)
    for (const [reason] of lesser) {
      const row = this.#statements.oldest.get(reason)
      if (row === undefined) continue
      this.#statements.delete.run(row.id)
      counts.rows--
      counts.bytes -= row.bytes
      return true
    }
    return false
  }

  /** Counts again only after another connection, such as that of `npm run rejected`, has written. */
  #count (): Counts {
    const version = this.#db.pragma('data_version', { simple: true })
    if (this.#counts === undefined || this.#counts.version !== version) {
      const { rows = 0, bytes = 0 } = this.#statements.count.get() ?? {}
      this.#counts = { rows, bytes, version }
    }
    return this.#counts
  }
}

type SumRow = { readonly id: bigint } & Pick<RejectedContent, 'value' | 'exact'>
type ListRow = Omit<Rejected, 'entries'> & Pick<RejectedContent, 'key' | 'value' | 'exact' | 'sums'>

function prepare (db: Database.Database) {
  return {
    countRows: db.prepare<[], number>('SELECT count(*) FROM rejected').pluck(),
    count: db.prepare<[], { rows: number, bytes: number }>(`
      SELECT count(*) AS rows, coalesce(sum(${rowBytes}), 0) AS bytes FROM rejected`),
    hasHash: db.prepare<[string], number>('SELECT 1 FROM rejected WHERE hash = ?').pluck(),
    hasOnce: db.prepare<{ once: string, reason: string, sums: string | null }, number>(
      'SELECT 1 FROM rejected WHERE once = @once AND reason = @reason AND sums IS @sums').pluck(),
    insert: db.prepare(`
      INSERT INTO rejected(producer, seq, key, value, reason, at, once, sums, batch, hash)
      VALUES (@producer, @seq, @key, @value, @reason, @at, @once, @sums, @batch, @hash)`),
    findSum: db.prepare<{ key: string, reason: string }, SumRow>(`
      SELECT id, value, exact FROM rejected
      WHERE key = @key AND once IS NULL AND reason = @reason ORDER BY id DESC LIMIT 1`).safeIntegers(),
    writeSum: db.prepare<SumRow>('UPDATE rejected SET value = @value, exact = @exact WHERE id = @id'),
    oldest: db.prepare<[string], { id: bigint, bytes: number }>(
      `SELECT id, ${rowBytes} AS bytes FROM rejected WHERE reason = ? ORDER BY id LIMIT 1`),
    list: db.prepare<[bigint, number], ListRow>(`
      SELECT id, producer, seq, key, value, exact, reason, at, sums, octet_length(batch) AS batchBytes FROM rejected
      WHERE id > ? ORDER BY id LIMIT ?`).safeIntegers(),
    entriesOf: db.prepare<[string], Entry>('SELECT key, value FROM json_each(?)').safeIntegers(),
    read: db.prepare<[bigint], RejectedContent>(
      'SELECT producer, key, value, exact, sums, batch, once, reason, at FROM rejected WHERE id = ?').safeIntegers(),
    delete: db.prepare<[bigint]>('DELETE FROM rejected WHERE id = ?'),
    deleteOnce: db.prepare<{ once: string, sums: string }>(
      "DELETE FROM rejected WHERE once = @once AND sums = @sums AND reason <> 'other body'"),
  }
}
