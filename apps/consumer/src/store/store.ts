// The database and the one transaction that writes to it: skip what was applied before, upsert the sums,
// record what is applied now. Fed by the consumer; read by anybody, through connections of their own.
import { createHash, randomUUID } from 'node:crypto'
import { existsSync, mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import Database from 'better-sqlite3'
import { int64Max, int64Min, readHeader, type Header } from '@gearbox/protocol/batch.ts'
import { has, include, isSubset, none, parseSequences, type Sequences } from '@gearbox/protocol/sequences.ts'
import { SupersededError, type Owner } from '@gearbox/protocol/owner.ts'
import type { Rejection, RejectReason } from '@gearbox/protocol/progress.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { busyTimeoutMs, checkDatabasePath, DatabaseMovedError, OpenFiles, openToInspect } from './database-file.ts'
import { createReports, hasReports, reportOf, Reports, type Report } from './reports.ts'
import {
  extendRejected, isExtended, RejectedEntries, type Entry, type NewRejected, type Rejected, type RejectedContent, type RejectedLimits
} from './rejections.ts'
import { inspectSchema, migrate } from './schema.ts'

export type { Rejected } from './rejections.ts'

/** A WAL that a slow reader made large is cut back to this by the next checkpoint. */
const walBytesMax = 64 * 1024 * 1024

const hourMs = 3_600_000

/** Idempotency rows that one call of prune deletes at most: about 20 ms of work. */
const pruneRowsMax = 10_000

/** No worker counts that far; what somebody else wrote into the queue must not make a producer's row leave 64 bits. */
const tallyMax = Number.MAX_SAFE_INTEGER

/** Reports are looked through for old ones so often at most. */
const reportsPrunedEveryMs = 1000

/** What one run of elements did to the database. */
export interface Applied {
  readonly batches: number
  readonly duplicates: number
  /** What is stored of each producer that had an element in the run. */
  readonly stored: ReadonlyMap<string, Sequences>
  /** What was not applied. `filed: false`: nobody was promised it, and it is kept nowhere. */
  readonly rejections: ReadonlyArray<Rejection & { readonly producer: string | undefined }>
  /** Reports of elements that had been handled before. */
  readonly repeated: ReadonlyArray<Report & { readonly producer: string }>
  /** What should have been kept in `rejected` and for which there was no room, and how many rows there made room for others. */
  readonly dropped: ReadonlyArray<{ readonly reason: RejectReason, readonly key: string | undefined, readonly value: bigint | undefined, readonly once: string | undefined }>
  readonly evicted: number
  /** Sequences that were found missing. */
  readonly gaps: ReadonlyArray<{ readonly producer: string, readonly from: number, readonly to: number }>
}

interface StoreOptions extends RejectedLimits {
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

/** A trigger, or an index, of the database's owner refuses a row: by an error, or by leaving it out. */
class RefusedByTriggerError extends Error {}

/** The same, and it has ended the transaction: whatever was executed next would be committed by itself. */
class TransactionLostError extends Error {
  readonly entry: string

  constructor (entry: string) {
    super(`a trigger has ended the transaction at ${entry}`)
    this.entry = entry
  }
}

/** Whether an error speaks of the row and not of the disk or the connection. */
function isConstraint (error: unknown): boolean {
  return error instanceof RefusedByTriggerError || (error instanceof Database.SqliteError && error.code.startsWith('SQLITE_CONSTRAINT'))
}

/** Names an entry of a batch, within one run. */
function entryName ({ producer, seq }: Header, part: string): string {
  return `${producer} ${seq} ${part}`
}

/** What could not be applied of a batch. */
interface Refused extends NewRejected {
  readonly reason: RejectReason
  /** When it was accepted by its worker's clock, Unix ms; `at` is never in the future. */
  readonly acceptedAt: number
  /** How long its replies wait if nothing of it was promised. */
  readonly storedWithinMs: number | undefined
}

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

/**
 * Opens a database for writing, as every writer must. What is not ours to write is refused untouched.
 * @param mustExist it has been inspected, and is not created
 * @throws FatalError with what is wrong; DatabaseMovedError; SQLITE_BUSY
 */
export function openDatabase (path: string, mustExist = false): { readonly db: Database.Database, readonly files: OpenFiles } {
  if (!mustExist) inspectDatabase(path)
  try {
    if (!mustExist) mkdirSync(dirname(path), { recursive: true })
    return OpenFiles.open(path, () => {
      const db = new Database(path, { timeout: busyTimeoutMs, fileMustExist: mustExist })
      try {
        db.pragma('journal_mode = WAL')
        // At every open: this build of SQLite starts a WAL database that exists already with NORMAL, which can lose commits on power loss.
        db.pragma('synchronous = FULL')
        db.pragma(`journal_size_limit = ${walBytesMax}`)
        db.prepare('SELECT count(*) FROM sqlite_schema').get()
        return db
      } catch (error) {
        db.close()
        throw error
      }
    })
  } catch (error) {
    if (isBusy(error) || error instanceof DatabaseMovedError) throw error
    throw new FatalError(`the database ${path} can't be opened for writing: ${reasonOf(error)}. Check the path (DATABASE_PATH), its permissions and the disk`)
  }
}

/** What a database says about itself. */
export interface Identity {
  readonly owner: Owner
  /** Where it was last consumed from: 'embedded', or which Redis; undefined where that was never written down. */
  readonly queue: string | undefined
  readonly sequences: (producer: string) => Sequences
}

/**
 * Looks at a database without writing anything.
 * @returns undefined where there is none yet, or one of the original's that a start migrates
 * @throws FatalError if it is not ours to write; SQLITE_BUSY
 */
export function inspectDatabase (path: string): Identity | undefined {
  if (!checkDatabasePath(path)) return undefined
  let db: Database.Database | undefined
  try {
    db = openToInspect(path)
    if (inspectSchema(db) !== 'ours') return undefined
    const rows = db.prepare<[], { producer: string, high: number, gaps: string }>('SELECT producer, high, gaps FROM producers').all()
    const sequences = new Map(rows.map((row) => [row.producer, rowSequences(row)]))
    const queue = db.prepare<[], string>("SELECT value FROM meta WHERE name = 'queue'").pluck().get()
    return { owner: readOwner(db), queue, sequences: (producer) => sequences.get(producer) ?? none }
  } catch (error) {
    if (error instanceof FatalError || isBusy(error)) throw error
    throw new FatalError(`the database ${path} can't be read: ${reasonOf(error)}. Check the path (DATABASE_PATH), its permissions and the disk`)
  } finally {
    db?.close()
  }
}

/** Moves all of the -wal into the database. @returns false while somebody else reads it */
function isCheckpointed (db: Database.Database): boolean {
  const [result] = db.pragma('wal_checkpoint(TRUNCATE)') as Array<{ busy: number }>
  return result?.busy === 0
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
  #files: OpenFiles
  #owner: Owner
  #statements: ReturnType<typeof prepare>
  /** This database's own clock, in ms, at the moment `#clockSetAt` of this process's. */
  #elapsedMs: number
  #clockSetAt: number
  #idempotencyRows: number
  #idempotencyMark: number
  #rejected: RejectedEntries
  #reports: Reports
  #reportsPrunedAt = -Infinity
  /** SQLite's number of the schema, and whether triggers or indexes of somebody else's were in it then. */
  #schema: { readonly version: unknown, readonly guarded: boolean } | undefined
  /** By producer, what this store has returned as stored: a file in the database's place that lacks any of it is an older one. */
  readonly #returned = new Map<string, Sequences>()
  /** Where a database of the original's making was copied to before it was taken over. */
  readonly copiedTo: string | undefined

  /** Opens, creates or takes over the database. @throws FatalError */
  constructor (options: StoreOptions) {
    this.#options = options
    const { db, files } = openDatabase(options.path)
    this.#db = db
    this.#files = files
    try {
      this.copiedTo = migrate(this.#db, randomUUID())
      extend(this.#db)
      this.#statements = prepare(this.#db)
      this.#rejected = new RejectedEntries(this.#db, options)
      this.#reports = new Reports(this.#db)
      this.#owner = readOwner(this.#db)
    } catch (error) {
      this.#db.close()
      if (error instanceof FatalError || isBusy(error)) throw error
      throw new FatalError(`the database ${options.path} can't be written: ${reasonOf(error)}. Check its permissions and the disk`)
    }
    const state = this.#readState()
    this.#elapsedMs = state.elapsedMs
    this.#clockSetAt = performance.now()
    this.#idempotencyMark = state.idempotencyMark
    this.#idempotencyRows = state.idempotencyRows
  }

  get owner (): Owner {
    return this.#owner
  }

  get idempotencyRows (): number {
    return this.#idempotencyRows
  }

  /** Rows of `rejected`. */
  get rejectedRows (): number {
    return this.#rejected.rows
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

  /** Writes down where this database is consumed from: 'embedded', or which Redis. */
  recordQueue (queue: string): void {
    if (this.#statements.readMeta.get('queue') !== queue) this.#write(() => { this.#statements.recordQueue.run(queue) })
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
   * @param queuedMs the longest that any of the elements can have waited in the queue
   * @throws SupersededError if a newer consumer has opened the database; DatabaseMovedError if its file is not at its path any more: what was
   * applied is skipped should that file come back; any SQLite error, with nothing changed
   */
  apply (elements: readonly Buffer[], queuedMs = Number.POSITIVE_INFINITY): Applied {
    this.checkFile()
    const applied = this.#applyOpen(elements, queuedMs)
    // A commit into a file that was moved away meanwhile is not stored as far as anybody else can see: it is applied again,
    // and skipped if that file comes back.
    if (!this.#files.inPlace) throw this.#moved('it was moved, removed or replaced')
    for (const [producer, sequences] of applied.stored) this.#returned.set(producer, sequences)
    return applied
  }

  #applyOpen (elements: readonly Buffer[], queuedMs: number): Applied {
    const refused = new Set<string>()
    for (let checked = false; ;) {
      try {
        return this.#transact(elements, queuedMs, checked, refused)
      } catch (error) {
        if (error instanceof NeedsCheckingError && !checked) checked = true
        else if (error instanceof TransactionLostError) this.#findLosing(elements, refused.add(error.entry))
        else throw error
      }
    }
  }

  /** Deletes idempotency rows whose time has passed. @returns whether there may be more */
  prune (): boolean {
    const before = this.#now() - this.#options.idempotencyHours * hourMs
    let pruned = 0
    this.#write(() => {
      pruned = this.#pruneIdempotency(before, pruneRowsMax)
      this.#reports.prune(this.#now())
    })
    return pruned === pruneRowsMax
  }

  /** What was promised and could not be applied yet, oldest first: at most `most` rows with ids above `after`. */
  rejected (after = 0n, most = 100): Rejected[] {
    return this.#rejected.list(after, most)
  }

  /**
   * Tries once more to apply what could not be, and if that works strikes it off. An idempotent request is counted
   * whatever its key says: whoever asks for this has looked at it.
   * @returns why it can't be applied now either; undefined: it is counted
   */
  retryRejected (id: bigint): string | undefined {
    try {
      return this.#write(() => this.#retry(id))
    } catch (error) {
      if (isConstraint(error)) return `a trigger or an index of this database refuses it (${reasonOf(error)})`
      throw error
    }
  }

  /** Strikes off what could not be applied, for good. @returns whether it was there */
  discardRejected (id: bigint): boolean {
    return this.#write(() => this.#rejected.delete(id))
  }

  #retry (id: bigint): string | undefined {
    const row = this.#rejected.read(id)
    if (row === undefined) return 'there is no such entry'
    const once = row.reason === 'other body' ? null : row.once
    if (once !== null && this.#statements.readOnceHash.get(once) !== undefined) {
      this.#rejected.delete(id)
      return 'its request came again and was counted then'
    }
    const entries = this.#rejectedEntries(row)
    if (entries === undefined) return 'the batch still can not be read'
    const totals = this.#totalsWith(entries)
    if (typeof totals === 'string') return `the total of ${JSON.stringify(totals)} would leave 64 bits`
    this.#writeTotals(totals)
    if (once !== null) {
      this.#statements.writeOnce.run(once, hashOf(entries), Number(row.at), this.#now())
      this.#idempotencyRows++
    }
    this.#rejected.delete(id)
    return undefined
  }

  /** Producers that nothing was heard of since `at` (Unix ms). */
  producersUnseenSince (at: number): string[] {
    return this.#statements.unseenProducers.all(at)
  }

  /** What is stored of each producer that something was heard of since `at` (Unix ms). */
  producersSeenSince (at: number): Map<string, Sequences> {
    return new Map(this.#statements.seenProducers.all(at).map((row) => [row.producer, rowSequences(row)]))
  }

  /** What was reported to a producer lately, oldest first. */
  reportsTo (producer: string): Report[] {
    return this.#reports.readAll(producer)
  }

  /**
   * Makes sure that the open database is the file at its path. If that file was moved away and the right one is there again, goes on with it.
   * @throws DatabaseMovedError if another file or none is there; nothing is made in its place
   */
  checkFile (): void {
    if (!this.#db.open || !this.#files.inPlace) this.#openAgain()
  }

  /** After an I/O error a connection may be of no more use: a new one starts from what is on the disk. @throws DatabaseMovedError, FatalError */
  reopen (): void {
    if (this.#files.inPlace) this.#db.close()
    this.#openAgain()
  }

  #openAgain (): void {
    const { path } = this.#options
    const sameFile = this.#files.mainInPlace
    if (this.#db.open) {
      if (sameFile) {
        // Only its -wal or -shm is not the one that is open. What is in them goes into the database before they are given up.
        if (!isCheckpointed(this.#db)) throw this.#moved('its -wal or -shm was removed, and somebody reads it')
      } else if (this.#files.walInPlace) {
        // SQLite would take it for the -wal of whatever is there, and mix the two.
        throw this.#moved(existsSync(path) ? 'another file is in its place, next to its own -wal' : 'it was moved or removed')
      }
    }
    // Not where this process has it open: a file that is closed takes all locks of its process with it (POSIX), SQLite's too.
    if (!sameFile) this.#checkCandidate()
    this.#db.close()
    const { db, files } = openDatabase(path, true)
    this.#db = db
    if (readOwner(db).uuid !== this.#owner.uuid) {
      db.close()
      throw this.#moved('another database is in its place')
    }
    this.#files = files
    this.#statements = prepare(this.#db)
    this.#rejected = new RejectedEntries(this.#db, this.#options)
    this.#reports = new Reports(this.#db)
    this.#schema = undefined
    const { elapsedMs, idempotencyMark, idempotencyRows } = this.#readState()
    // Its own clock never goes back.
    this.#elapsedMs = Math.max(elapsedMs, this.#now())
    this.#clockSetAt = performance.now()
    this.#idempotencyMark = idempotencyMark
    this.#idempotencyRows = idempotencyRows
  }

  /** @throws DatabaseMovedError unless what is at the path is this database, with all that was returned as stored */
  #checkCandidate (): void {
    let found: Identity | undefined
    try {
      found = inspectDatabase(this.#options.path)
    } catch (error) {
      if (isBusy(error)) throw error
      throw this.#moved(reasonOf(error))
    }
    if (found === undefined) throw this.#moved('there is no database')
    if (found.owner.uuid !== this.#owner.uuid) throw this.#moved('another database is in its place')
    const older = found.owner.epoch < this.#owner.epoch || [...this.#returned].some(([producer, sequences]) => !isSubset(sequences, found.sequences(producer)))
    if (older) throw this.#moved('an older copy is in its place')
  }

  #moved (why: string): DatabaseMovedError {
    return new DatabaseMovedError(`${this.#options.path}: ${why}`)
  }

  close (): void {
    this.#db.close()
  }

  #readState (): { elapsedMs: number, idempotencyMark: number, idempotencyRows: number } {
    return {
      elapsedMs: Number(this.#statements.readMeta.get('elapsed_ms')),
      idempotencyMark: Number(this.#statements.readMeta.get('once_mark')),
      idempotencyRows: Number(this.#db.prepare('SELECT count(*) FROM once').pluck().get()),
    }
  }

  #now (): number {
    return Math.floor(this.#elapsedMs + performance.now() - this.#clockSetAt)
  }

  /** Runs a write in a transaction of its own. What fails in it is rolled back, in the database and in this object. */
  #write<T> (body: () => T): T {
    const { rows, mark } = { rows: this.#idempotencyRows, mark: this.#idempotencyMark }
    try {
      return this.#db.transaction(() => {
        const [uuid, epoch] = [this.#statements.readMeta.get('uuid'), this.#statements.readMeta.get('epoch')]
        if (uuid !== this.#owner.uuid || epoch !== this.#owner.epoch) {
          throw new SupersededError(`${this.#options.path} has been opened by a newer consumer (epoch ${epoch}, ours is ${this.#owner.epoch})`)
        }
        return body()
      }).immediate()
    } catch (error) {
      this.#idempotencyRows = rows
      this.#idempotencyMark = mark
      this.#rejected.forgetCounts()
      throw error
    }
  }

  /**
   * @param checked entry by entry, so that what can't be applied is found
   * @param refused entries that are not to be tried, as a trigger ends the transaction at them
   */
  #transact (elements: readonly Buffer[], queuedMs: number, checked: boolean, refused: ReadonlySet<string>): Applied {
    const stored = new Map<string, Sequences>()
    const rejections: Array<Rejection & { producer: string | undefined }> = []
    const repeated: Array<Report & { producer: string }> = []
    const gaps: Array<{ producer: string, from: number, to: number }> = []
    const dropped: Array<Applied['dropped'][number]> = []
    const tallies = new Map<string, { requests: number, increments: number }>()
    const fresh: Fresh[] = []
    const now = Date.now()
    let [duplicates, evicted] = [0, 0]

    /** What could not be applied of one batch, or of an element that is none. */
    const reject = (producer: string | undefined, seq: number, parts: readonly Refused[]): void => {
      if (parts.length === 0) return
      const refusable = (part: Refused): boolean => part.reason !== 'trigger' && part.reason !== 'unreadable' && this.#waits(part, now, queuedMs)
      // Of a flush that is summed, all that is rejected is refused, or none of it: a reply may wait for several of its keys.
      const sumsRefusable = parts.filter(({ once }) => once === undefined).every(refusable)
      const reported = parts.flatMap((part): Rejection[] => {
        const { key, once, reason, value } = part
        const filed = !(once === undefined ? sumsRefusable : refusable(part))
        if (filed) {
          const { outcome, evicted: more } = this.#rejected.file(part)
          evicted += more
          if (outcome === 'known' && part.batch !== undefined) return []
          if (outcome === 'dropped') dropped.push({ reason, key, value, once })
        } else if (once !== undefined && part.sums !== undefined) {
          this.#rejected.deleteOnce(once, part.sums)
        }
        return [{
          seq,
          reason,
          ...(key === undefined ? {} : { key }),
          ...(once === undefined ? {} : { once }),
          ...(filed ? {} : { filed, ...(once === undefined && value !== undefined ? { value: String(value) } : {}) }),
        }]
      })
      for (const rejection of reported) rejections.push({ ...rejection, producer })
      if (producer !== undefined && reported.length > 0) this.#reports.write(producer, reportOf(seq, reported), this.#now())
    }

    return this.#write(() => {
      const guarded = this.#isGuarded()
      for (const element of elements) {
        const header = readHeader(element)
        if (typeof header === 'string') {
          reject(undefined, 0, [unreadable(element, undefined, now)])
          continue
        }
        const { producer, seq } = header
        const before = stored.get(producer) ?? rowSequences(this.#statements.readProducer.get(producer))
        stored.set(producer, before)
        if (has(before, seq)) {
          duplicates++
          // Its producer may not have been told: this process, or the one before it, died in between.
          const report = this.#reports.read(producer, seq)
          if (report !== undefined) repeated.push({ ...report, producer })
          continue
        }
        stored.set(producer, include(before, seq))
        if (seq > before.high + 1) gaps.push({ producer, from: before.high + 1, to: seq - 1 })
        const tally = tallies.get(producer) ?? { requests: 0, increments: 0 }
        tallies.set(producer, { requests: tally.requests + header.requests, increments: tally.increments + header.increments })
        const json = element.toString()
        if (checked && !(this.#isJson(json) && this.#isSound(json))) reject(producer, seq, [unreadable(element, header, now)])
        else fresh.push({ header, json })
      }
      if (!checked && fresh.length > 0) this.#insertSums(fresh, guarded)
      // An entry of its own for each: whatever a trigger does to one of them must not befall the others.
      if (guarded && !checked && fresh.some(({ header }) => header.once)) throw new NeedsCheckingError()
      for (const { header, json } of fresh) {
        const parts: Refused[] = []
        if (checked) parts.push(...this.#addChecked(header, json, guarded, refused, now))
        if (header.once) parts.push(...this.#applyAllOnce(header, json, guarded, refused, now))
        reject(header.producer, header.seq, parts)
      }
      const seenAt = Date.now()
      for (const [producer, { high, gaps }] of stored) {
        const tally = tallies.get(producer)
        if (tally !== undefined) this.#statements.writeProducer.run({ producer, high, gaps: JSON.stringify(gaps), ...tally, seenAt })
      }
      this.#statements.writeMeta.run({ name: 'elapsed_ms', value: this.#now() })
      if (rejections.length > 0 && performance.now() - this.#reportsPrunedAt > reportsPrunedEveryMs) {
        this.#reports.prune(this.#now())
        this.#reportsPrunedAt = performance.now()
      }
      return { batches: fresh.length, duplicates, stored, rejections, repeated, dropped, evicted, gaps }
    })
  }

  /** Adds a batch's sums one by one. @returns those that can't be added */
  #addChecked (header: Header, json: string, guarded: boolean, refused: ReadonlySet<string>, now: number): Refused[] {
    const { producer, seq, at: acceptedAt, storedWithinMs } = header
    const at = Math.min(acceptedAt, now)
    return this.#statements.readSums.all(json).flatMap(({ key, value }): Refused[] => {
      const reason = this.#guard(guarded, entryName(header, `sums ${key}`), refused, () => this.#add(key, value))
      return reason === undefined ? [] : [{ producer, seq, key, value, reason, at, acceptedAt, storedWithinMs }]
    })
  }

  /** Applies a batch's idempotent requests. @returns those that can't be applied */
  #applyAllOnce (header: Header, json: string, guarded: boolean, refused: ReadonlySet<string>, now: number): Refused[] {
    const { producer, seq } = header
    return this.#readIdempotent(json).flatMap(({ id: once, at: acceptedAt, sums, storedWithinMs }, i): Refused[] => {
      const at = Math.min(acceptedAt, now)
      const result = this.#guard(guarded, entryName(header, `once ${i}`), refused, () => this.#applyOnce(once, at, sums, now))
      if (result === undefined) return []
      const { reason, key } = result === 'trigger' ? { reason: result, key: undefined } : result
      return [{ producer, seq, once, sums, key, reason, at, acceptedAt, storedWithinMs }]
    })
  }

  /**
   * Applies one entry. Where the owner of the database has triggers or indexes of their own, in a savepoint: what they refuse
   * is undone, and nothing else.
   * @throws TransactionLostError if a trigger has ended the transaction: nothing may be executed in it then
   */
  #guard<T> (guarded: boolean, entry: string, refused: ReadonlySet<string>, apply: () => T): T | 'trigger' {
    if (!guarded) return apply()
    if (refused.has(entry)) return 'trigger'
    this.#statements.savepoint.run()
    try {
      const result = apply()
      if (!this.#db.inTransaction) throw new TransactionLostError(entry)
      this.#statements.release.run()
      return result
    } catch (error) {
      if (!isConstraint(error)) throw error
      if (!this.#db.inTransaction) throw new TransactionLostError(entry)
      this.#statements.rollbackToSavepoint.run()
      this.#statements.release.run()
      return 'trigger'
    }
  }

  /** Whether there are triggers on `numbers`, or indexes, that are not ours. */
  #isGuarded (): boolean {
    const version = this.#db.pragma('schema_version', { simple: true })
    if (this.#schema === undefined || this.#schema.version !== version) {
      this.#schema = { version, guarded: this.#statements.countGuards.get() !== 0 }
    }
    return this.#schema.guarded
  }

  /**
   * Adds to `refused` all entries at which a trigger ends the transaction, each tried in one that is rolled back: to find
   * them one by one in the run's own would take as many times as there are.
   */
  #findLosing (elements: readonly Buffer[], refused: Set<string>): void {
    const losing = (entry: string, totals: ReadonlyMap<string, bigint>): void => {
      if (refused.has(entry)) return
      this.#db.exec('BEGIN IMMEDIATE')
      try {
        this.#writeTotals(totals)
      } catch (error) {
        if (!isConstraint(error)) throw error
        if (!this.#db.inTransaction) refused.add(entry)
      } finally {
        if (this.#db.inTransaction) this.#db.exec('ROLLBACK')
      }
    }
    for (const element of elements) {
      const header = readHeader(element)
      const json = element.toString()
      if (typeof header === 'string' || !this.#isJson(json) || !this.#isSound(json)) continue
      const entries = [
        ...this.#statements.readSums.all(json).map((entry) => [entryName(header, `sums ${entry.key}`), [entry]] as const),
        ...(header.once ? this.#readIdempotent(json).map(({ sums }, i) => [entryName(header, `once ${i}`), this.#statements.readEntries.all(sums)] as const) : []),
      ]
      for (const [entry, sums] of entries) {
        const totals = this.#totalsWith(sums)
        if (typeof totals !== 'string') losing(entry, totals)
      }
    }
  }

  /**
   * Whether the replies to a part of a batch should wait still, so that it can be refused to them. Where its worker's clock
   * is another than ours, in either direction, it counts how long the batch can have been in the queue.
   */
  #waits ({ storedWithinMs, acceptedAt }: Refused, now: number, queuedMs: number): boolean {
    if (storedWithinMs === undefined) return false
    return Math.min(Math.abs(now - acceptedAt), queuedMs) < storedWithinMs / 2
  }

  /**
   * The whole run's sums in one statement. Whatever SQLite finds wrong with them, the statement does not say where.
   * @param guarded a trigger may leave rows out
   */
  #insertSums (fresh: readonly Fresh[], guarded: boolean): void {
    const { insertBatch, insertRun, insertRunInOrder } = this.#statements
    const [first] = fresh
    try {
      if (first !== undefined && fresh.length === 1) {
        // What is no JSON inserts nothing; neither does a batch without sums.
        if (first.json.includes('\0')) throw new NeedsCheckingError()
        const { changes } = insertBatch.run(first)
        if (changes === 0 && !this.#isJson(first.json)) throw new NeedsCheckingError()
        if (guarded && changes !== this.#statements.countSums.get(`[${first.json}]`)) throw new NeedsCheckingError()
        return
      }
      // Joined, one that closes braces which another opened could hide its neighbour's sums.
      if (!fresh.every(({ json }) => this.#isJson(json))) throw new NeedsCheckingError()
      const run = `[${fresh.map(({ json }) => json).join(',')}]`
      const insert = run.length > fresh.length * largeBatchLength ? insertRunInOrder : insertRun
      const { changes } = insert.run(run)
      if (guarded && changes !== this.#statements.countSums.get(run)) throw new NeedsCheckingError()
    } catch (error) {
      // DATATYPE: a total left 64 bits, or a value is no integer; any other constraint is not ours. ERROR: one nests as deep as SQLite goes, and the run one deeper.
      if (isConstraint(error) || (error instanceof Database.SqliteError && error.code === 'SQLITE_ERROR')) throw new NeedsCheckingError()
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
      this.#readIdempotent(json)
      return true
    } catch (error) {
      if (error instanceof NeedsCheckingError) return false
      throw error
    }
  }

  /** @throws NeedsCheckingError if it has idempotent requests that can't be read */
  #readIdempotent (json: string): Array<{ id: string, at: number, sums: string, storedWithinMs: number | undefined }> {
    if (this.#statements.onceType.get(json) !== 'array') throw new NeedsCheckingError()
    return this.#statements.readIdempotent.all(json).map((row) => {
      const { id, at, sums, ack, timeout } = row
      if (typeof id !== 'string' || typeof at !== 'number' || !Number.isSafeInteger(at) || at < 0 || typeof sums !== 'string') throw new NeedsCheckingError()
      if (this.#statements.unsoundEntries.get(sums) !== 0) throw new NeedsCheckingError()
      return { id, at, sums, storedWithinMs: ack === 'stored' && typeof timeout === 'number' ? timeout : undefined }
    })
  }

  /** Adds to a total; 'overflow', and nothing done, if that would leave 64 bits. */
  #add (key: string, value: bigint): 'overflow' | undefined {
    const sum = (this.#statements.readTotal.get(key) ?? 0n) + value
    if (sum > int64Max || sum < int64Min) return 'overflow'
    this.#writeTotal(key, sum)
    return undefined
  }

  #writeTotal (key: string, total: bigint): void {
    if (this.#statements.writeTotal.run(key, total).changes === 0) throw new RefusedByTriggerError(`it leaves out ${JSON.stringify(key)}`)
  }

  #writeTotals (totals: ReadonlyMap<string, bigint>): void {
    for (const [key, total] of totals) this.#writeTotal(key, total)
  }

  #rejectedEntries ({ key, value, exact, sums, batch }: RejectedContent): Entry[] | undefined {
    if (sums !== null) return this.#statements.readEntries.all(sums)
    if (exact !== null && key !== null) return [{ key, value: BigInt(exact) }]
    if (batch === null) return key === null || value === null ? undefined : [{ key, value }]
    const json = batch.toString()
    if (typeof readHeader(batch) === 'string' || !this.#isJson(json) || !this.#isSound(json)) return undefined
    return [...this.#statements.readSums.all(json), ...this.#readIdempotent(json).flatMap((once) => this.#statements.readEntries.all(once.sums))]
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
  #applyOnce (id: string, at: number, sums: string, now: number): { reason: RejectReason, key: string | undefined } | undefined {
    const entries = this.#statements.readEntries.all(sums)
    const hash = hashOf(entries)
    const seen = this.#statements.readOnceHash.get(id)
    if (seen !== undefined) return seen === hash ? undefined : { reason: 'other body', key: undefined }
    // A clock was set back: from the future, the mark would refuse everything.
    if (this.#idempotencyMark > now) this.#moveMark(now)
    // Its row may have been pruned: it could be a repeat.
    if (at <= this.#idempotencyMark) return { reason: 'too late', key: undefined }
    const totals = this.#totalsWith(entries)
    if (typeof totals === 'string') return { reason: 'overflow', key: totals }
    this.#writeTotals(totals)
    this.#statements.writeOnce.run(id, hash, at, this.#now())
    this.#idempotencyRows++
    if (this.#idempotencyRows > this.#options.idempotencyRowsMax) this.#pruneIdempotency(Number.MAX_SAFE_INTEGER, 1)
    return undefined
  }

  /**
   * Deletes the oldest rows from before `before` on the database's clock, and moves the mark to the youngest of them. That
   * clock says how long ago each was stored at least, so that no wrong `at` can move the mark further.
   */
  #pruneIdempotency (before: number, rows: number): number {
    const pruned = this.#statements.pruneOnce.all({ before, rows })
    if (pruned.length === 0) return 0
    this.#idempotencyRows -= pruned.length
    const { now, elapsedMs } = { now: Date.now(), elapsedMs: this.#now() }
    const youngest = pruned.reduce((most, row) => Math.max(most, Math.min(row.at, now - (elapsedMs - row.elapsed_ms))), this.#idempotencyMark)
    if (youngest > this.#idempotencyMark) this.#moveMark(youngest)
    return pruned.length
  }

  #moveMark (mark: number): void {
    this.#idempotencyMark = mark
    this.#statements.writeMeta.run({ name: 'once_mark', value: mark })
  }
}

/**
 * Adds what a database of the version before lacks. Where nothing is missing nothing is written, so that a command which
 * only reads waits for nobody. A mark in the future, from a wrong clock, would have every idempotent request refused as
 * too late until that time: it is moved to the present.
 */
function extend (db: Database.Database): void {
  const now = Date.now()
  const isAhead = db.prepare<[number], number>("SELECT value > ? FROM meta WHERE name = 'once_mark'").pluck().get(now) === 1
  if (!isAhead && hasReports(db) && isExtended(db)) return
  db.transaction(() => {
    extendRejected(db)
    createReports(db)
    db.prepare<{ now: number }>(`
      UPDATE meta SET value = CAST(@now AS INTEGER) WHERE name = 'once_mark' AND value > @now`).run({ now })
  }).immediate()
}

function unreadable (element: Buffer, header: Header | undefined, now: number): Refused {
  const hash = createHash('sha256').update(element).digest('hex')
  const acceptedAt = header?.at ?? now
  return {
    producer: header?.producer, seq: header?.seq, batch: element, hash, reason: 'unreadable', at: Math.min(acceptedAt, now), acceptedAt, storedWithinMs: undefined,
  }
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
    countSums: db.prepare<[string], number>("SELECT count(*) FROM json_each(?) AS batch, json_each(batch.value, '$.sums')").pluck(),
    onceType: db.prepare<[string], string>("SELECT coalesce(json_type(?, '$.once'), 'array')").pluck(),
    isJson: db.prepare<[string], number>('SELECT json_valid(?)').pluck(),
    unsoundSums: db.prepare<{ json: string }, number>(`
      SELECT (json_type(@json, '$.sums') IS NOT 'object') + (coalesce(json_type(@json, '$.once'), 'array') <> 'array')
        + (SELECT count(*) FROM json_each(@json, '$.sums') WHERE ${unsound})`).pluck(),
    unsoundEntries: db.prepare<[string], number>(`SELECT count(*) FROM json_each(?) WHERE ${unsound}`).pluck(),
    readSums: db.prepare<[string], Entry>("SELECT key, value FROM json_each(?, '$.sums')").safeIntegers(),
    readEntries: db.prepare<[string], Entry>('SELECT key, value FROM json_each(?)').safeIntegers(),
    readIdempotent: db.prepare<[string], { id: unknown, at: unknown, sums: unknown, ack: unknown, timeout: unknown }>(`
      SELECT request ->> '$.id' AS id, request ->> '$.at' AS at, request ->> '$.ack' AS ack, request ->> '$.timeout' AS timeout, iif(json_type(request, '$.sums') = 'object', request -> '$.sums', NULL) AS sums
      FROM (SELECT iif(type = 'object', value, '{}') AS request FROM json_each(?, '$.once'))`),
    readTotal: db.prepare<[string], bigint>('SELECT value FROM numbers WHERE key = ?').pluck().safeIntegers(),
    writeTotal: db.prepare<[string, bigint]>('INSERT INTO numbers(key, value) VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value'),
    readProducer: db.prepare<[string], { high: number, gaps: string }>('SELECT high, gaps FROM producers WHERE producer = ?'),
    writeProducer: db.prepare<{ producer: string, high: number, gaps: string, requests: number, increments: number, seenAt: number }>(`
      INSERT INTO producers(producer, high, gaps, requests, increments, seen_at) VALUES (@producer, @high, @gaps, @requests, @increments, @seenAt)
      ON CONFLICT(producer) DO UPDATE SET high = excluded.high, gaps = excluded.gaps,
        requests = min(requests + excluded.requests, ${tallyMax}), increments = min(increments + excluded.increments, ${tallyMax}), seen_at = excluded.seen_at`),
    unseenProducers: db.prepare<[number], string>('SELECT producer FROM producers WHERE seen_at < ?').pluck(),
    seenProducers: db.prepare<[number], { producer: string, high: number, gaps: string }>('SELECT producer, high, gaps FROM producers WHERE seen_at >= ?'),
    countGuards: db.prepare<[], number>(`
      SELECT count(*) FROM sqlite_schema WHERE tbl_name = 'numbers' COLLATE NOCASE AND (type = 'trigger' OR (type = 'index' AND sql IS NOT NULL))`).pluck(),
    savepoint: db.prepare('SAVEPOINT entry'),
    rollbackToSavepoint: db.prepare('ROLLBACK TO entry'),
    release: db.prepare('RELEASE entry'),
    readOnceHash: db.prepare<[string], string>('SELECT sums_hash FROM once WHERE id = ?').pluck(),
    writeOnce: db.prepare<[string, string, number, number]>('INSERT INTO once(id, sums_hash, at, elapsed_ms) VALUES (?, ?, ?, ?)'),
    pruneOnce: db.prepare<{ before: number, rows: number }, { at: number, elapsed_ms: number }>(
      'DELETE FROM once WHERE id IN (SELECT id FROM once WHERE elapsed_ms < @before ORDER BY elapsed_ms LIMIT @rows) RETURNING at, elapsed_ms'),
    readMeta: db.prepare<[string], string | number>('SELECT value FROM meta WHERE name = ?').pluck(),
    writeMeta: db.prepare<{ name: string, value: string | number }>(`
      UPDATE meta SET value = iif(typeof(@value) = 'real', CAST(@value AS INTEGER), @value) WHERE name = @name`),
    recordQueue: db.prepare<[string]>("INSERT INTO meta(name, value) VALUES ('queue', ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value"),
  }
}
