// The database of totals. Written only here, by the one consumer; read by anybody, through other connections.
import { existsSync } from 'node:fs'
import type Database from 'better-sqlite3'
import type { Owner } from '@gearbox/protocol/owner.ts'
import { isSubset, type Sequences } from '@gearbox/protocol/sequences.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import type { PluginDatabase } from '@gearbox/runtime/plugin.ts'
import { applyRun } from './apply-run.ts'
import { Connection, type ConnectionOptions } from './connection.ts'
import { DatabaseMovedError } from './database-file.ts'
import { readOwner, type Identity } from './identity.ts'
import { checkpoint, inspectDatabase, isBusy, openDatabase } from './open.ts'
import { isConstraint } from './owner-triggers.ts'
import { EntryEndedTransactionError } from './plugins/apply-entries.ts'
import { migratePlugins } from './plugins/migrations.ts'
import type { Rejected } from './rejections.ts'
import type { Report } from './reports.ts'
import type { Results } from './results.ts'
import { batchOfEntries, retryRejected } from './retry-rejected.ts'
import type { Applied } from './run.ts'
import type { Corrected } from './plugins/corrections.ts'
import { createSchema, extendSchema } from './schema.ts'
import { sequencesOf } from './statements.ts'

const hourMs = 3_600_000

/** Idempotency rows that one call of prune deletes at most: about 20 ms of work. */
const pruneRowsMax = 10_000

/** Where the database is and what it may keep besides totals. */
export interface StoreOptions extends ConnectionOptions {
  readonly path: string
  /** How long a request with an idempotency key is remembered, by the database's own clock. */
  readonly idempotencyHours: number
}

/**
 * The database. It is in one of three states:
 *
 * - open: `apply` and all others work. The constructor ends here, and so does a `checkFile` or `reopen` that succeeds.
 * - moved: another file or none is at the path, and the connection is kept as long as its -wal may hold commits.
 *   `checkFile`, `apply` and `reopen` find this out, throw DatabaseMovedError, and try to open the right file again at
 *   every call.
 * - closed, between two connections or after `close`: `checkFile` and `reopen` open it again.
 *
 * Only the methods of this class change the state. Which consumer is the newest is no state of it: every transaction
 * asks the database, and an older consumer gets SupersededError, again and again.
 */
export class Store {
  readonly #options: StoreOptions
  #connection: Connection
  /**
   * By producer, what this store has returned as stored: a file in the database's place that lacks any of it is older.
   */
  readonly #returned = new Map<string, Sequences>()
  /** Entries of plugins in runs that are not stored yet which have ended a transaction. */
  readonly #endingEntries = new Set<string>()
  /** Where a database of piccolo-daimao was copied to before it was migrated. */
  readonly copiedTo: string | undefined

  /** Opens, creates or migrates the database. @throws FatalError, SQLITE_BUSY, DatabaseMovedError */
  constructor (options: StoreOptions) {
    this.#options = options
    const { db, files } = openDatabase(options.path)
    try {
      this.copiedTo = createSchema(db)
      extendSchema(db)
      migratePlugins(db, options.pluginParts?.loaded ?? [])
      this.#connection = new Connection(db, files, options)
    } catch (error) {
      db.close()
      throw notWritable(options.path, error)
    }
  }

  /** The UUID and epoch that this process works under. */
  get owner (): Owner {
    return this.#connection.identity.owner
  }

  /** Idempotent requests that are remembered. */
  get idempotencyRows (): number {
    return this.#connection.idempotency.state.rows
  }

  /** Rows of `rejected`. */
  get rejectedRows (): number {
    return this.#connection.rejected.rows
  }

  /**
   * Makes this process the database's newest consumer; older ones find out in their next transaction.
   * @throws FatalError if it can't be written; SQLITE_BUSY while another program writes
   */
  raiseEpoch (): Owner {
    try {
      return this.#connection.identity.raiseEpoch()
    } catch (error) {
      throw notWritable(this.#options.path, error)
    }
  }

  /**
   * Gives the database a new identity: it is not the one it was copied or restored from.
   * @param inTransaction what plugins do in the same transaction; it gets the database as a plugin of a name may use it
   * @throws any SQLite error; whatever a plugin throws; with nothing changed
   */
  renew (inTransaction: (databaseOf: (plugin: string) => PluginDatabase) => void = () => {}): Owner {
    const { identity, plugins } = this.#connection
    return identity.renew(() => plugins.runOther(inTransaction))
  }

  /**
   * Writes down where this database is consumed from: 'embedded', or which Redis.
   * @throws SupersededError, any SQLite error
   */
  recordQueue (queue: string): void {
    const { statements } = this.#connection
    if (statements.readMeta.get('queue') !== queue) this.#connection.write(() => { statements.recordQueue.run(queue) })
  }

  /**
   * Applies a run in one transaction, each batch once whatever came before. When it returns, all of it is on the disk.
   * @param queuedMs the longest that any of the elements can have waited in the queue
   * @throws SupersededError if a newer consumer has opened the database; DatabaseMovedError if its file is not at its
   * path any more: what was applied is skipped should that file come back; RunAbandonedError if the disk failed while a
   * plugin worked, or a plugin stops the run; any SQLite error; with nothing changed
   */
  apply (elements: readonly Buffer[], queuedMs = Number.POSITIVE_INFINITY): Applied {
    this.checkFile()
    const applied = this.#applyRun(elements, queuedMs)
    // A commit into a file that was moved away meanwhile is not stored as far as anybody else can see: it is applied
    // again, and skipped if that file comes back.
    if (!this.#connection.files.inPlace) throw this.#moved('it was moved, removed or replaced')
    for (const [producer, sequences] of applied.stored) this.#returned.set(producer, sequences)
    if (applied.changes !== undefined) this.#connection.plugins.afterCommit(applied.changes)
    return applied
  }

  /** @throws as `apply` */
  #applyRun (elements: readonly Buffer[], queuedMs: number): Applied {
    for (;;) {
      try {
        const applied = applyRun(this.#connection, elements, queuedMs, this.#endingEntries)
        this.#endingEntries.clear()
        return applied
      } catch (error) {
        if (!(error instanceof EntryEndedTransactionError)) throw error
        this.#endingEntries.add(error.entry)
        this.reopen()
      }
    }
  }

  /** Names of the plugins whose entries can be applied. */
  get pluginNames (): readonly string[] {
    return this.#connection.plugins.names
  }

  /** What became of entries of plugins, until it is received. */
  get results (): Pick<Results, 'mayHaveRows' | 'read' | 'noteReceived'> {
    return this.#connection.results
  }

  /** What is stored of a producer. */
  storedOf (producer: string): Sequences {
    return sequencesOf(this.#connection.statements.readProducer.get(producer))
  }

  /**
   * Deletes idempotency rows, reports and outcomes of entries whose time has passed.
   * @returns whether there may be more
   * @throws as `apply`
   */
  prune (): boolean {
    const { idempotency, reports, results, clock } = this.#connection
    const before = clock.now() - this.#options.idempotencyHours * hourMs
    const hasMore = this.#connection.write(() => {
      const pruned = idempotency.prune(before, pruneRowsMax)
      reports.prune(clock.now())
      const hasMoreResults = results.prune(clock.now())
      return pruned === pruneRowsMax || hasMoreResults
    })
    if (!hasMore) results.lookForRows()
    return hasMore
  }

  /** What was promised and could not be applied yet, oldest first: at most `most` rows with ids above `after`. */
  rejected (after = 0n, most = 100): Rejected[] {
    return this.#connection.rejected.list(after, most)
  }

  /**
   * Tries once more to apply what could not be, and if that works removes it from `rejected`. An idempotent request is
   * counted whatever its key says: whoever asks for this has read it.
   * @returns why it can't be applied now either; undefined: it is counted
   */
  retryRejected (id: bigint): string | undefined {
    const batch = batchOfEntries(this.#connection, id)
    if (batch !== undefined) return this.#retryBatch(id, batch)
    try {
      return this.#connection.write(() => retryRejected(this.#connection, id))
    } catch (error) {
      if (isConstraint(error)) return `a trigger or an index of this database refuses it (${reasonOf(error)})`
      throw error
    }
  }

  /** Applies it as if it came from the queue: its sequence was not recorded, and its worker may have sent it again. */
  #retryBatch (id: bigint, batch: Buffer): string | undefined {
    const { duplicates } = this.apply([batch])
    this.discardRejected(id)
    return duplicates > 0 ? 'it came again and was counted then' : undefined
  }

  /**
   * Sets a total, or removes it, in its own transaction.
   * @returns the total before and after as decimal text; null: no row
   * @throws EntryRefusedError, with nothing changed; any SQLite error
   */
  correct (correction: { readonly key: string, readonly total: string | null, readonly by: string }): Corrected {
    return this.#connection.write(() => this.#connection.plugins.correct(correction, Date.now()))
  }

  /** Removes what could not be applied, for good. @returns whether it was there */
  discardRejected (id: bigint): boolean {
    return this.#connection.write(() => this.#connection.rejected.delete(id))
  }

  /** Producers of which nothing was stored since `at` (Unix ms). */
  producersUnseenSince (at: number): string[] {
    return this.#connection.statements.unseenProducers.all(at)
  }

  /** What is stored of each producer of which something was stored since `at` (Unix ms). */
  producersSeenSince (at: number): Map<string, Sequences> {
    const rows = this.#connection.statements.seenProducers.all(at)
    return new Map(rows.map((row) => [row.producer, sequencesOf(row)]))
  }

  /** What was reported to a producer in about the last minute, oldest first. */
  reportsTo (producer: string): Report[] {
    return this.#connection.reports.readAll(producer)
  }

  /**
   * Makes sure that the open database is the file at its path. If that file was moved away and the right one is there
   * again, goes on with it.
   * @throws DatabaseMovedError if another file or none is there; nothing is made in its place
   */
  checkFile (): void {
    const { db, files } = this.#connection
    if (!db.open || !files.inPlace) this.#openAgain()
  }

  /**
   * After an I/O error a connection may be of no more use: opens another one, which starts from what is on the disk.
   * @throws DatabaseMovedError, FatalError, SQLITE_BUSY
   */
  reopen (): void {
    const { db, files } = this.#connection
    if (files.inPlace) db.close()
    this.#openAgain()
  }

  /** Ends the connection. Nothing is lost: all that was returned is on the disk. */
  close (): void {
    this.#connection.db.close()
  }

  #openAgain (): void {
    const { path } = this.#options
    const before = this.#connection
    const sameFile = before.files.mainInPlace
    if (before.db.open) {
      if (sameFile) {
        // Only its -wal or -shm is not the one that is open. What is in them goes into the database before they are
        // given up.
        if (!checkpoint(before.db)) throw this.#moved('its -wal or -shm was removed, and another program reads it')
      } else if (before.files.walInPlace) {
        // SQLite would take it for the -wal of whatever is there, and mix the two.
        const isReplaced = existsSync(path)
        throw this.#moved(isReplaced ? 'another file is in its place, next to its own -wal' : 'it was moved or removed')
      }
    }
    // Not where this process has it open: a file that is closed takes all locks of its process with it (POSIX),
    // SQLite's too.
    const other = sameFile ? undefined : describeOther(path, this.owner, this.#returned)
    if (other !== undefined) throw this.#moved(other)
    before.db.close()
    const { db, files } = openDatabase(path, true)
    try {
      this.#requireSame(db)
      this.#connection = new Connection(db, files, this.#options, { owner: before.identity.owner, clock: before.clock })
    } catch (error) {
      db.close()
      throw error
    }
  }

  #requireSame (db: Database.Database): void {
    if (readOwner(db).uuid !== this.owner.uuid) throw this.#moved('another database is in its place')
  }

  #moved (why: string): DatabaseMovedError {
    return new DatabaseMovedError(`${this.#options.path}: ${why}`)
  }
}

/**
 * Why what is at a path is not a database of this identity with all that was returned as stored; undefined if it is.
 * @throws SQLITE_BUSY
 */
function describeOther (path: string, owner: Owner, returned: ReadonlyMap<string, Sequences>): string | undefined {
  let found: Identity | undefined
  try {
    found = inspectDatabase(path)
  } catch (error) {
    if (isBusy(error)) throw error
    return reasonOf(error)
  }
  if (found === undefined) return 'there is no database'
  if (found.owner.uuid !== owner.uuid) return 'another database is in its place'
  const { sequences } = found
  const lacksAny = [...returned].some(([producer, stored]) => !isSubset(stored, sequences(producer)))
  return found.owner.epoch < owner.epoch || lacksAny ? 'an older copy is in its place' : undefined
}

/** What to throw where a database that could be opened can't be written. */
function notWritable (path: string, error: unknown): unknown {
  if (error instanceof FatalError || isBusy(error)) return error
  return new FatalError(`the database ${path} can't be written: ${reasonOf(error)}. Check its permissions and the disk`)
}
