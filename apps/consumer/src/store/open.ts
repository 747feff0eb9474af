// Opening a database: for writing as every writer must, or only to read what it says about itself.
// Used by the store before anything else, and by commands and `npm start` to inspect a database before they use it.
import { mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import Database from 'better-sqlite3'
import { none } from '@gearbox/protocol/sequences.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import {
  busyTimeoutMs, checkDatabasePath, DatabaseMovedError, OpenFiles, openToInspect, type OpenDatabase,
} from './database-file.ts'
import { readOwner, type Identity } from './identity.ts'
import { inspectSchema } from './schema.ts'
import { sequencesOf, type ProducerRow } from './statements.ts'

/** A WAL that a slow reader made large is cut back to this by the next checkpoint. */
const walBytesMax = 64 * 1024 * 1024

const whatToCheck = 'Check the path (DATABASE_PATH), its permissions and the disk'

/** Whether another program holds the database's lock; that passes. */
export function isBusy (error: unknown): boolean {
  return error instanceof Error && 'code' in error && String(error.code).startsWith('SQLITE_BUSY')
}

/**
 * Opens a database for writing, as every writer must. What is not ours to write is refused untouched.
 * @param mustExist it has been inspected, and is not created
 * @throws FatalError with what is wrong; DatabaseMovedError; SQLITE_BUSY
 */
export function openDatabase (path: string, mustExist = false): OpenDatabase {
  if (!mustExist) inspectDatabase(path)
  try {
    if (!mustExist) mkdirSync(dirname(path), { recursive: true })
    return OpenFiles.open(path, () => openForWriting(path, mustExist))
  } catch (error) {
    if (isBusy(error) || error instanceof DatabaseMovedError) throw error
    throw new FatalError(`the database ${path} can't be opened for writing: ${reasonOf(error)}. ${whatToCheck}`)
  }
}

function openForWriting (path: string, mustExist: boolean): Database.Database {
  const db = new Database(path, { timeout: busyTimeoutMs, fileMustExist: mustExist })
  try {
    db.pragma('journal_mode = WAL')
    // At every open: this build of SQLite starts an existing WAL database with NORMAL, which can lose commits on power
    // loss.
    db.pragma('synchronous = FULL')
    db.pragma(`journal_size_limit = ${walBytesMax}`)
    db.prepare('SELECT count(*) FROM sqlite_schema').get()
    return db
  } catch (error) {
    db.close()
    throw error
  }
}

/**
 * Reads what a database says about itself, without writing anything.
 * @returns undefined where there is none yet, or one of the original's that a start migrates
 * @throws FatalError if it is not ours to write; SQLITE_BUSY
 */
export function inspectDatabase (path: string): Identity | undefined {
  if (!checkDatabasePath(path)) return undefined
  let db: Database.Database | undefined
  try {
    db = openToInspect(path)
    if (inspectSchema(db) !== 'ours') return undefined
    const rows = db.prepare<[], ProducerRow & { producer: string }>('SELECT producer, high, gaps FROM producers').all()
    const sequences = new Map(rows.map((row) => [row.producer, sequencesOf(row)]))
    const queue = db.prepare<[], string>("SELECT value FROM meta WHERE name = 'queue'").pluck().get()
    return { owner: readOwner(db), queue, sequences: (producer) => sequences.get(producer) ?? none }
  } catch (error) {
    if (error instanceof FatalError || isBusy(error)) throw error
    throw new FatalError(`the database ${path} can't be read: ${reasonOf(error)}. ${whatToCheck}`)
  } finally {
    db?.close()
  }
}

/** Moves all of the -wal into the database. @returns false while another connection reads it */
export function checkpoint (db: Database.Database): boolean {
  const [result] = db.pragma('wal_checkpoint(TRUNCATE)') as Array<{ busy: number }>
  return result?.busy === 0
}
