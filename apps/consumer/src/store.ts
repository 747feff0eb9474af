// The database and the one transaction that writes to it: skip what was applied before, upsert the sums,
// record what is applied now. Fed by the consumer; read by anybody, through connections of their own.
import { createHash, randomUUID } from 'node:crypto'
import { existsSync, mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import Database from 'better-sqlite3'
import { int64Max, int64Min, readHeader, type Header } from '@gearbox/queue/batch.ts'
import { has, include, none, parseSequences, type Sequences } from '@gearbox/queue/sequences.ts'
import { SupersededError, type Owner, type Rejection, type RejectReason } from '@gearbox/queue/queue.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { migrate, readVersion } from './schema.ts'

// Waiting for another writer stops the consumer's event loop: it tries again rather than waits long.
const busyTimeoutMs = 250

/** A WAL that a slow reader made large is cut back to this by the next checkpoint. */
const walBytesMax = 64 * 1024 * 1024

const hourMs = 3_600_000

/** Idempotency rows that one call of prune deletes at most: about 20 ms of work. */
const pruneRowsMax = 10_000

/** What one run of elements did to the database. */
export interface Applied {
  readonly batches: number
  readonly duplicates: number
  /** What is stored of each producer that had an element in the run. */
  readonly stored: ReadonlyMap<string, Sequences>
  readonly rejections: ReadonlyArray<Rejection & { readonly producer: string | undefined }>
  /** Rejections of elements that had been handled before. */
  readonly repeated: ReadonlyArray<Rejection & { readonly producer: string }>
  /** Sequences that were found missing. */
  readonly gaps: ReadonlyArray<{ readonly producer: string, readonly from: number, readonly to: number }>
}

/** A row of `rejected`. */
export interface Rejected {
  readonly id: bigint
  readonly producer: string | null
  readonly seq: bigint | null
  readonly key: string | null
  readonly value: bigint | null
  readonly reason: RejectReason
  /** Unix ms. */
  readonly at: bigint
}

interface RejectedContent {
  readonly key: string | null
  readonly value: bigint | null
  readonly sums: string | null
  readonly batch: Buffer | null
  readonly once: string | null
  readonly reason: RejectReason
  readonly at: bigint
}

interface StoreOptions {
  readonly path: string
  readonly idempotencyHours: number
  readonly idempotencyRowsMax: number
}

/**
 * Where batches are longer than this on average, about 3,000 keys, a run is inserted in the order of its keys: those of one batch are distinct,
 * so they fall all over a large table, and in order each page of it is come by once: more than twice as fast on a million rows. Short batches
 * mostly repeat each other's keys, and to sort those costs more than it spares. To sort a single one costs nothing that could be measured.
 */
const largeBatchLength = 64 * 1024

/** A run can't be applied as a whole: one of its entries has to be found and set aside. */
class NeedsCheckingError extends Error {}

interface Fresh {
  readonly header: Header
  readonly json: string
}

/** One entry of `sums`, exact. */
interface Entry { readonly key: string, readonly value: bigint }

function insertFrom (entries: string, order: string): string {
  return `
    INSERT INTO numbers(key, value)
    SELECT entry.key, CASE entry.type WHEN 'integer' THEN entry.value ELSE 'not an integer' END
    FROM ${entries} AS entry
    WHERE true
    ${order}
    ON CONFLICT(key) DO UPDATE SET value = value + excluded.value`
}

/** Somebody else holds the database's lock; that passes. */
export function isBusy (error: unknown): boolean {
  return error instanceof Error && 'code' in error && String(error.code).startsWith('SQLITE_BUSY')
}

/** Opens a database for writing, as every writer must. @throws FatalError with what is wrong */
export function openDatabase (path: string, mustExist = false): Database.Database {
  try {
    if (!mustExist) mkdirSync(dirname(path), { recursive: true })
    const db = new Database(path, { timeout: busyTimeoutMs, fileMustExist: mustExist })
    db.pragma('journal_mode = WAL')
    // At every open: this build of SQLite starts a WAL database that exists already with NORMAL, which can lose commits on power loss.
    db.pragma('synchronous = FULL')
    db.pragma(`journal_size_limit = ${walBytesMax}`)
    return db
  } catch (error) {
    if (isBusy(error)) throw error
    throw new FatalError(`the database ${path} can't be opened for writing: ${reasonOf(error)}. Check the path (DATABASE_PATH), its permissions and the disk`)
  }
}

/** What a database says of itself, read without writing anything; undefined where there are no tables of ours yet. */
export function readIdentity (path: string): { readonly owner: Owner, readonly sequences: (producer: string) => Sequences } | undefined {
  if (!existsSync(path)) return undefined
  let db: Database.Database | undefined
  try {
    db = new Database(path, { readonly: true, timeout: busyTimeoutMs })
    if (readVersion(db) === 0) return undefined
    const rows = db.prepare<[], { producer: string, high: number, gaps: string }>('SELECT producer, high, gaps FROM producers').all()
    const sequences = new Map(rows.map((row) => [row.producer, rowSequences(row)]))
    return { owner: readOwner(db), sequences: (producer) => sequences.get(producer) ?? none }
  } catch (error) {
    if (error instanceof FatalError || isBusy(error)) throw error
    throw new FatalError(`the database ${path} can't be read: ${reasonOf(error)}. Check the path (DATABASE_PATH), its permissions and the disk`)
  } finally {
    db?.close()
  }
}

function readOwner (db: Database.Database): Owner {
  const read = db.prepare<[string], string | number>('SELECT value FROM meta WHERE name = ?').pluck()
  return { uuid: String(read.get('uuid')), epoch: Number(read.get('epoch')) }
}

function rowSequences (row: { high: number, gaps: string } | undefined): Sequences {
  if (row === undefined) return none
  const sequences = parseSequences({ high: row.high, gaps: JSON.parse(row.gaps) })
  if (sequences === undefined) throw new Error(`the gaps ${row.gaps} are none`)
  return sequences
}

export class Store {
  readonly #options: StoreOptions
  #db: Database.Database
  #owner: Owner
  #statements: ReturnType<typeof prepare>
  /** This database's own clock, in ms, at the moment `#clockSetAt` of this process's. */
  #elapsedMs: number
  #clockSetAt: number
  #onceRows: number
  #onceMark: number
  /** Where a database of the original's making was copied to before it was taken over. */
  readonly copiedTo: string | undefined

  /** Opens, creates or takes over the database. @throws FatalError */
  constructor (options: StoreOptions) {
    this.#options = options
    this.#db = openDatabase(options.path)
    try {
      this.copiedTo = migrate(this.#db, randomUUID())
      this.#statements = prepare(this.#db)
      this.#owner = readOwner(this.#db)
    } catch (error) {
      this.#db.close()
      if (error instanceof FatalError || isBusy(error)) throw error
      throw new FatalError(`the database ${options.path} can't be written: ${reasonOf(error)}. Check its permissions and the disk`)
    }
    this.#elapsedMs = Number(this.#statements.readMeta.get('elapsed_ms'))
    this.#clockSetAt = performance.now()
    this.#onceMark = Number(this.#statements.readMeta.get('once_mark'))
    this.#onceRows = Number(this.#db.prepare('SELECT count(*) FROM once').pluck().get())
  }

  get owner (): Owner {
    return this.#owner
  }

  get onceRows (): number {
    return this.#onceRows
  }

  /**
   * Makes this process the database's newest consumer; older ones find out in their next transaction.
   * @throws FatalError if it can't be written; SQLITE_BUSY while somebody else writes
   */
  raiseEpoch (): Owner {
    try {
      this.#db.transaction(() => {
        const owner = readOwner(this.#db)
        this.#statements.writeMeta.run({ name: 'epoch', value: owner.epoch + 1 })
        this.#owner = { uuid: owner.uuid, epoch: owner.epoch + 1 }
      }).immediate()
    } catch (error) {
      if (isBusy(error)) throw error
      throw new FatalError(`the database ${this.#options.path} can't be written: ${reasonOf(error)}. Check its permissions and the disk`)
    }
    return this.#owner
  }

  /** Gives the database a new identity: it is not the one it was copied or restored from. */
  renew (): Owner {
    this.#db.transaction(() => {
      this.#owner = { uuid: randomUUID(), epoch: this.#owner.epoch + 1 }
      this.#statements.writeMeta.run({ name: 'uuid', value: this.#owner.uuid })
      this.#statements.writeMeta.run({ name: 'epoch', value: this.#owner.epoch })
    }).immediate()
    return this.#owner
  }

  /**
   * Applies a run in one transaction, each batch once whatever came before. When it returns, all of it is on the disk.
   * @throws SupersededError if a newer consumer has opened the database; any SQLite error, with nothing changed
   */
  apply (elements: readonly Buffer[]): Applied {
    try {
      return this.#transact(elements, false)
    } catch (error) {
      if (!(error instanceof NeedsCheckingError)) throw error
      return this.#transact(elements, true)
    }
  }

  /** Deletes idempotency rows whose time has passed. @returns whether there may be more */
  prune (): boolean {
    const before = this.#now() - this.#options.idempotencyHours * hourMs
    let pruned = 0
    this.#write(() => { pruned = this.#pruneOnce(before, pruneRowsMax) })
    return pruned === pruneRowsMax
  }

  /** What was refused and not yet applied, oldest first. */
  rejected (): Rejected[] {
    return this.#statements.listRejected.all()
  }

  /**
   * Tries once more to apply what was refused, and if that works strikes it off. An idempotent request is counted
   * whatever its key says: whoever asks for this has looked at it.
   * @returns why it can't be applied now either; undefined: it is counted
   */
  retryRejected (id: bigint): string | undefined {
    return this.#write(() => {
      const row = this.#statements.readRejected.get(id)
      if (row === undefined) return 'there is no such entry'
      const once = row.reason === 'other body' ? null : row.once
      if (once !== null && this.#statements.readOnceHash.get(once) !== undefined) {
        this.#statements.deleteRejected.run(id)
        return 'its request came again and was counted then'
      }
      const entries = this.#rejectedEntries(row)
      if (entries === undefined) return 'the batch still can not be read'
      const totals = this.#totalsWith(entries)
      if (typeof totals === 'string') return `the total of ${JSON.stringify(totals)} would leave 64 bits`
      for (const [key, sum] of totals) this.#statements.writeTotal.run(key, sum)
      if (once !== null) {
        this.#statements.writeOnce.run(once, hashOf(entries), Number(row.at), this.#now())
        this.#onceRows++
      }
      this.#statements.deleteRejected.run(id)
      return undefined
    })
  }

  /** Producers that nothing was heard of since `at` (Unix ms). */
  producersUnseenSince (at: number): string[] {
    return this.#statements.unseenProducers.all(at)
  }

  /** What is stored of each producer that something was heard of since `at` (Unix ms). */
  producersSeenSince (at: number): Map<string, Sequences> {
    return new Map(this.#statements.seenProducers.all(at).map((row) => [row.producer, rowSequences(row)]))
  }

  /** The last rejections of a producer whose rows are still there, oldest first. */
  rejectionsOf (producer: string, most: number): Rejection[] {
    return this.#statements.readRejections.all(producer, most).reverse().map(toRejection)
  }

  /** After an I/O error a connection may be of no more use: a new one starts from what is on the disk. @throws FatalError */
  reopen (): void {
    this.#db.close()
    // Where its disk was unmounted, an empty database in its place would swallow what comes.
    this.#db = openDatabase(this.#options.path, true)
    this.#statements = prepare(this.#db)
  }

  close (): void {
    this.#db.close()
  }

  #now (): number {
    return Math.floor(this.#elapsedMs + performance.now() - this.#clockSetAt)
  }

  /** Runs a write in a transaction of its own. What fails in it is rolled back, in the database and in this object. */
  #write<T> (body: () => T): T {
    const { rows, mark } = { rows: this.#onceRows, mark: this.#onceMark }
    try {
      return this.#db.transaction(() => {
        const [uuid, epoch] = [this.#statements.readMeta.get('uuid'), this.#statements.readMeta.get('epoch')]
        if (uuid !== this.#owner.uuid || epoch !== this.#owner.epoch) {
          throw new SupersededError(`${this.#options.path} has been opened by a newer consumer (epoch ${epoch}, ours is ${this.#owner.epoch})`)
        }
        return body()
      }).immediate()
    } catch (error) {
      this.#onceRows = rows
      this.#onceMark = mark
      throw error
    }
  }

  #transact (elements: readonly Buffer[], checked: boolean): Applied {
    const stored = new Map<string, Sequences>()
    const rejections: Array<Rejection & { producer: string | undefined }> = []
    const repeated: Array<Rejection & { producer: string }> = []
    const gaps: Array<{ producer: string, from: number, to: number }> = []
    const tallies = new Map<string, { requests: number, increments: number }>()
    const fresh: Fresh[] = []
    let duplicates = 0

    const reject = (producer: string | undefined, rejection: Rejection, row: { value?: bigint, sums?: string, batch?: Buffer, at: number }): void => {
      const hash = row.batch === undefined ? null : createHash('sha256').update(row.batch).digest('hex')
      const { changes } = this.#statements.reject.run({
        producer: producer ?? null,
        seq: producer === undefined ? null : rejection.seq,
        key: rejection.key ?? null,
        once: rejection.once ?? null,
        reason: rejection.reason,
        value: row.value ?? null,
        sums: row.sums ?? null,
        batch: row.batch ?? null,
        at: row.at,
        hash,
      })
      if (changes > 0) rejections.push({ ...rejection, producer })
    }

    return this.#write(() => {
      for (const element of elements) {
        const header = readHeader(element)
        if (typeof header === 'string') {
          reject(undefined, { seq: 0, reason: 'unreadable' }, { batch: element, at: Date.now() })
          continue
        }
        const { producer, seq } = header
        const before = stored.get(producer) ?? rowSequences(this.#statements.readProducer.get(producer))
        stored.set(producer, before)
        if (has(before, seq)) {
          duplicates++
          // Its producer may not have been told: this process, or the one before it, died in between.
          for (const row of this.#statements.readBatchRejections.all(producer, seq)) repeated.push({ ...toRejection(row), producer })
          continue
        }
        stored.set(producer, include(before, seq))
        if (seq > before.high + 1) gaps.push({ producer, from: before.high + 1, to: seq - 1 })
        const tally = tallies.get(producer) ?? { requests: 0, increments: 0 }
        tallies.set(producer, { requests: tally.requests + header.requests, increments: tally.increments + header.increments })
        const json = element.toString()
        if (checked && !(this.#isJson(json) && this.#isSound(json))) {
          reject(producer, { seq, reason: 'unreadable' }, { batch: element, at: header.at })
        } else {
          fresh.push({ header, json })
        }
      }
      if (checked) {
        for (const { header, json } of fresh) {
          for (const { key, value } of this.#statements.readSums.all(json)) {
            if (!this.#add(key, value)) reject(header.producer, { seq: header.seq, key, reason: 'overflow' }, { value, at: header.at })
          }
        }
      } else if (fresh.length > 0) {
        this.#insertSums(fresh)
      }
      for (const { header, json } of fresh) {
        if (!header.once) continue
        for (const { id, at, sums } of this.#readOnce(json)) {
          const refused = this.#applyOnce(id, at, sums)
          if (refused !== undefined) reject(header.producer, { seq: header.seq, once: id, ...refused }, { sums, at })
        }
      }
      const seenAt = Date.now()
      for (const [producer, { high, gaps }] of stored) {
        const tally = tallies.get(producer)
        if (tally !== undefined) this.#statements.writeProducer.run({ producer, high, gaps: JSON.stringify(gaps), ...tally, seenAt })
      }
      this.#statements.writeMeta.run({ name: 'elapsed_ms', value: this.#now() })
      return { batches: fresh.length, duplicates, stored, rejections, repeated, gaps }
    })
  }

  /** The whole run's sums in one statement. Whatever SQLite finds wrong with them, the statement does not say where. */
  #insertSums (fresh: readonly Fresh[]): void {
    const { insertBatch, insertRun, insertRunInOrder } = this.#statements
    const [first] = fresh
    try {
      if (first !== undefined && fresh.length === 1) {
        // What is no JSON inserts nothing; neither does a batch without sums.
        if (first.json.includes('\0') || (insertBatch.run(first).changes === 0 && !this.#isJson(first.json))) throw new NeedsCheckingError()
        return
      }
      // Joined, one that closes braces which another opened could hide its neighbour's sums.
      if (!fresh.every(({ json }) => this.#isJson(json))) throw new NeedsCheckingError()
      const run = `[${fresh.map(({ json }) => json).join(',')}]`
      const insert = run.length > fresh.length * largeBatchLength ? insertRunInOrder : insertRun
      insert.run(run)
    } catch (error) {
      // DATATYPE: a total left 64 bits, or a value is no integer. ERROR: one nests as deep as SQLite goes, and the run one deeper.
      const code = error instanceof Database.SqliteError ? error.code : ''
      if (code === 'SQLITE_CONSTRAINT_DATATYPE' || code === 'SQLITE_ERROR') throw new NeedsCheckingError()
      throw error
    }
  }

  /** Whether it is one JSON value by RFC 8259. json_each takes JSON5 too, and all of SQLite's JSON ends at a NUL. */
  #isJson (json: string): boolean {
    return !json.includes('\0') && this.#statements.isJson.get(json) === 1
  }

  /** Whether all values of a batch are 64-bit integers. */
  #isSound (json: string): boolean {
    return this.#statements.unsoundSums.get({ json }) === 0 && this.#onceSound(json)
  }

  #onceSound (json: string): boolean {
    try {
      this.#readOnce(json)
      return true
    } catch (error) {
      if (error instanceof NeedsCheckingError) return false
      throw error
    }
  }

  /** @throws NeedsCheckingError if it has idempotent requests that can't be read */
  #readOnce (json: string): Array<{ id: string, at: number, sums: string }> {
    if (this.#statements.onceType.get(json) !== 'array') throw new NeedsCheckingError()
    return this.#statements.readOnce.all(json).map((row) => {
      const { id, at, sums } = row
      if (typeof id !== 'string' || !Number.isSafeInteger(at) || typeof sums !== 'string') throw new NeedsCheckingError()
      if (this.#statements.unsoundEntries.get(sums) !== 0) throw new NeedsCheckingError()
      return { id, at: Number(at), sums }
    })
  }

  /** Adds to a total; false, and nothing done, if that would leave 64 bits. */
  #add (key: string, value: bigint): boolean {
    const sum = (this.#statements.readTotal.get(key) ?? 0n) + value
    if (sum > int64Max || sum < int64Min) return false
    this.#statements.writeTotal.run(key, sum)
    return true
  }

  #rejectedEntries ({ key, value, sums, batch }: RejectedContent): Entry[] | undefined {
    if (sums !== null) return this.#statements.readEntries.all(sums)
    if (batch === null) return key === null || value === null ? undefined : [{ key, value }]
    const json = batch.toString()
    if (typeof readHeader(batch) === 'string' || !this.#isJson(json) || !this.#isSound(json)) return undefined
    return [...this.#statements.readSums.all(json), ...this.#readOnce(json).flatMap((once) => this.#statements.readEntries.all(once.sums))]
  }

  /** The totals that entries lead to, or the first key whose total would leave 64 bits. */
  #totalsWith (entries: readonly Entry[]): Map<string, bigint> | string {
    const totals = new Map<string, bigint>()
    for (const { key, value } of entries) {
      const sum = (totals.get(key) ?? this.#statements.readTotal.get(key) ?? 0n) + value
      if (sum > int64Max || sum < int64Min) return key
      totals.set(key, sum)
    }
    return totals
  }

  /** Applies an idempotent request whole; or says why not at all. A repeat of what was applied is neither. */
  #applyOnce (id: string, at: number, sums: string): { reason: RejectReason, key?: string } | undefined {
    const entries = this.#statements.readEntries.all(sums)
    const hash = hashOf(entries)
    const seen = this.#statements.readOnceHash.get(id)
    if (seen !== undefined) return seen === hash ? undefined : { reason: 'other body' }
    // Its row may have been pruned: it could be a repeat.
    if (at <= this.#onceMark) return { reason: 'too late' }
    const totals = this.#totalsWith(entries)
    if (typeof totals === 'string') return { reason: 'overflow', key: totals }
    for (const [key, sum] of totals) this.#statements.writeTotal.run(key, sum)
    this.#statements.writeOnce.run(id, hash, at, this.#now())
    this.#onceRows++
    if (this.#onceRows > this.#options.idempotencyRowsMax) this.#pruneOnce(Number.MAX_SAFE_INTEGER, 1)
    return undefined
  }

  /** Deletes the oldest rows from before `before` on the database's clock, and moves the mark to the youngest of them. */
  #pruneOnce (before: number, rows: number): number {
    const pruned = this.#statements.pruneOnce.all({ before, rows })
    if (pruned.length === 0) return 0
    this.#onceRows -= pruned.length
    const youngest = pruned.reduce((most, at) => Math.max(most, at), this.#onceMark)
    if (youngest > this.#onceMark) {
      this.#onceMark = youngest
      this.#statements.writeMeta.run({ name: 'once_mark', value: youngest })
    }
    return pruned.length
  }
}

interface RejectionRow { readonly seq: number, readonly key: string | null, readonly once: string | null, readonly reason: RejectReason }

function toRejection ({ seq, key, once, reason }: RejectionRow): Rejection {
  return { seq, reason, ...(key === null ? {} : { key }), ...(once === null ? {} : { once }) }
}

/** The same for the same sums, in whatever order they were written. */
function hashOf (entries: readonly Entry[]): string {
  const sorted = entries.map(({ key, value }) => JSON.stringify([key, String(value)])).sort()
  return createHash('sha256').update(sorted.join('\n')).digest('hex')
}

function prepare (db: Database.Database) {
  const unsound = "type <> 'integer' OR typeof(value) <> 'integer'"
  return {
    // The two functions share one parse of the text.
    insertBatch: db.prepare<{ json: string }>(insertFrom("json_each(iif(json_valid(@json), jsonb(@json), NULL), '$.sums')", 'ORDER BY entry.key')),
    insertRun: db.prepare<[string]>(insertFrom("jsonb_each(?) AS batch, json_each(batch.value, '$.sums')", '')),
    insertRunInOrder: db.prepare<[string]>(insertFrom("jsonb_each(?) AS batch, json_each(batch.value, '$.sums')", 'ORDER BY entry.key, batch.key')),
    onceType: db.prepare<[string], string>("SELECT coalesce(json_type(?, '$.once'), 'array')").pluck(),
    isJson: db.prepare<[string], number>('SELECT json_valid(?)').pluck(),
    unsoundSums: db.prepare<{ json: string }, number>(`
      SELECT (json_type(@json, '$.sums') IS NOT 'object') + (coalesce(json_type(@json, '$.once'), 'array') <> 'array')
        + (SELECT count(*) FROM json_each(@json, '$.sums') WHERE ${unsound})`).pluck(),
    unsoundEntries: db.prepare<[string], number>(`SELECT count(*) FROM json_each(?) WHERE ${unsound}`).pluck(),
    readSums: db.prepare<[string], Entry>("SELECT key, value FROM json_each(?, '$.sums')").safeIntegers(),
    readEntries: db.prepare<[string], Entry>('SELECT key, value FROM json_each(?)').safeIntegers(),
    readOnce: db.prepare<[string], { id: unknown, at: unknown, sums: unknown }>(`
      SELECT request ->> '$.id' AS id, request ->> '$.at' AS at, iif(json_type(request, '$.sums') = 'object', request -> '$.sums', NULL) AS sums
      FROM (SELECT iif(type = 'object', value, '{}') AS request FROM json_each(?, '$.once'))`),
    readTotal: db.prepare<[string], bigint>('SELECT value FROM numbers WHERE key = ?').pluck().safeIntegers(),
    writeTotal: db.prepare<[string, bigint]>('INSERT INTO numbers(key, value) VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value'),
    readProducer: db.prepare<[string], { high: number, gaps: string }>('SELECT high, gaps FROM producers WHERE producer = ?'),
    writeProducer: db.prepare<{ producer: string, high: number, gaps: string, requests: number, increments: number, seenAt: number }>(`
      INSERT INTO producers(producer, high, gaps, requests, increments, seen_at) VALUES (@producer, @high, @gaps, @requests, @increments, @seenAt)
      ON CONFLICT(producer) DO UPDATE SET high = excluded.high, gaps = excluded.gaps,
        requests = requests + excluded.requests, increments = increments + excluded.increments, seen_at = excluded.seen_at`),
    unseenProducers: db.prepare<[number], string>('SELECT producer FROM producers WHERE seen_at < ?').pluck(),
    seenProducers: db.prepare<[number], { producer: string, high: number, gaps: string }>('SELECT producer, high, gaps FROM producers WHERE seen_at >= ?'),
    readRejections: db.prepare<[string, number], RejectionRow>('SELECT seq, key, once, reason FROM rejected WHERE producer = ? ORDER BY id DESC LIMIT ?'),
    readBatchRejections: db.prepare<[string, number], RejectionRow>('SELECT seq, key, once, reason FROM rejected WHERE producer = ? AND seq = ?'),
    readOnceHash: db.prepare<[string], string>('SELECT sums_hash FROM once WHERE id = ?').pluck(),
    writeOnce: db.prepare<[string, string, number, number]>('INSERT INTO once(id, sums_hash, at, elapsed_ms) VALUES (?, ?, ?, ?)'),
    pruneOnce: db.prepare<{ before: number, rows: number }, number>(
      'DELETE FROM once WHERE id IN (SELECT id FROM once WHERE elapsed_ms < @before ORDER BY elapsed_ms LIMIT @rows) RETURNING at').pluck(),
    readMeta: db.prepare<[string], string | number>('SELECT value FROM meta WHERE name = ?').pluck(),
    writeMeta: db.prepare<{ name: string, value: string | number }>(`
      UPDATE meta SET value = iif(typeof(@value) = 'real', CAST(@value AS INTEGER), @value) WHERE name = @name`),
    listRejected: db.prepare<[], Rejected>('SELECT id, producer, seq, key, value, reason, at FROM rejected ORDER BY id').safeIntegers(),
    readRejected: db.prepare<[bigint], RejectedContent>('SELECT key, value, sums, batch, once, reason, at FROM rejected WHERE id = ?').safeIntegers(),
    deleteRejected: db.prepare<[bigint]>('DELETE FROM rejected WHERE id = ?'),
    reject: db.prepare(`
      INSERT INTO rejected(producer, seq, key, value, reason, at, once, sums, batch, hash)
      VALUES (@producer, @seq, @key, @value, @reason, @at, @once, @sums, @batch, @hash) ON CONFLICT(hash) DO NOTHING`),
  }
}
