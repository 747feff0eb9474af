// The database's tables and how a database gets them: created, migrated from one that piccolo-daimao made, or extended
// by what a later version of the same schema added. Called by the store before it prepares anything.
import { randomUUID } from 'node:crypto'
import type Database from 'better-sqlite3'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { checkOriginal, copyOriginal, migrateFromPiccoloDaimao } from './migrations/piccolo-daimao.ts'
import { extendRejected, isExtended } from './rejections.ts'
import { createReports, hasReports } from './reports.ts'
import { createResults, hasResults } from './results.ts'
import { isNamed, listObjects, readObjects } from './schema-objects.ts'

/** PRAGMA user_version of the tables below. */
export const schemaVersion = 1

const schema = `
  CREATE TABLE IF NOT EXISTS numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  -- What was applied of each producer: the highest sequence and the gaps below it, [[from, to], …].
  CREATE TABLE producers(producer TEXT PRIMARY KEY, high INTEGER NOT NULL, gaps TEXT NOT NULL,
    requests INTEGER NOT NULL, increments INTEGER NOT NULL, seen_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  -- Requests with an idempotency key; elapsed_ms is this database's own clock, which only runs while a consumer does.
  CREATE TABLE once(id TEXT PRIMARY KEY, sums_hash TEXT NOT NULL, at INTEGER NOT NULL,
    elapsed_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  CREATE INDEX once_elapsed ON once(elapsed_ms);
  -- What could not be applied. An entry of the sums has a key and a value; an idempotent request has its id and its
  -- sums; a batch that could not be read has its bytes and their hash.
  CREATE TABLE rejected(id INTEGER PRIMARY KEY, producer TEXT, seq INTEGER, key TEXT, value INTEGER,
    reason TEXT NOT NULL, at INTEGER NOT NULL, once TEXT, sums TEXT, batch BLOB, hash TEXT UNIQUE) STRICT;
  CREATE INDEX rejected_batch ON rejected(producer, seq);
  CREATE TABLE meta(name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
`

/** The version of the tables in a database; 0: none of ours. @throws FatalError if they are newer than this program */
export function readVersion (db: Database.Database): number {
  const version = Number(db.pragma('user_version', { simple: true }))
  if (version > schemaVersion) {
    throw new FatalError(`${db.name} has schema version ${version} and this Gearbox knows ${schemaVersion}: ` +
      'it was written by a newer one. Start that one')
  }
  return version
}

/**
 * Refuses a database of another application, and one of piccolo-daimao that can't be migrated without loss. Only reads.
 * @returns 'ours', 'original' (piccolo-daimao's), or 'empty'
 * @throws FatalError that names what is in the way
 */
export function inspectSchema (db: Database.Database): 'ours' | 'original' | 'empty' {
  const objects = readObjects(db)
  const version = Number(db.pragma('user_version', { simple: true }))
  const foreign = (what: string): FatalError => new FatalError(
    `${db.name} belongs to another application: ${what}. Name another file in DATABASE_PATH; nothing was changed`)
  const ours = ['numbers', 'producers', 'meta']
    .every((name) => objects.some((object) => object.type === 'table' && isNamed(object, name)))
  if (version > 0 && (ours || objects.length === 0)) {
    readVersion(db)
    if (ours) return 'ours'
  }
  const applicationId = Number(db.pragma('application_id', { simple: true }))
  if (applicationId !== 0) throw foreign(`its application_id is ${applicationId}`)
  if (objects.length === 0) return 'empty'
  const numbers = objects.find((object) => isNamed(object, 'numbers'))
  if (numbers === undefined || version > 0) throw foreign(`it has ${listObjects(objects)}`)
  if (numbers.type !== 'table') throw foreign(`its "numbers" is a ${numbers.type}`)
  checkOriginal(db, objects, numbers)
  return 'original'
}

/**
 * Gives a database the tables of this version, in one transaction. One that piccolo-daimao made is copied first.
 * @returns the path of that copy
 * @throws FatalError that names what can't be migrated; the database is as it was
 */
export function createSchema (db: Database.Database): string | undefined {
  if (inspectSchema(db) === 'ours') return undefined
  // Before the copy: a supervisor that starts this again and again must not fill the disk with them.
  const copy = inspectSchema(db) === 'original' ? copyOriginal(db) : undefined
  // Dropping a table deletes its rows first, which would cascade to tables of its owner. In a transaction this can't be
  // set.
  db.pragma('foreign_keys = OFF')
  try {
    db.transaction(() => {
      // Another consumer may have been faster, or another program may have written since.
      const found = inspectSchema(db)
      if (found === 'ours') return
      if (found === 'original') migrateFromPiccoloDaimao(db, readObjects(db))
      db.exec(schema)
      db.prepare("INSERT INTO meta(name, value) VALUES ('uuid', ?), ('epoch', 0), ('elapsed_ms', 0), ('once_mark', -1)")
        .run(randomUUID())
      db.pragma(`user_version = ${schemaVersion}`)
    }).immediate()
  } finally {
    db.pragma('foreign_keys = ON')
  }
  return copy
}

/**
 * Adds what a database of the version before lacks. Where nothing is missing nothing is written, so that a command
 * which only reads waits for no lock. A mark in the future, from a wrong clock, would have every idempotent request
 * refused as too late until that time: it is moved to the present.
 */
export function extendSchema (db: Database.Database): void {
  const now = Date.now()
  const isAhead = db.prepare<[number], number>("SELECT value > ? FROM meta WHERE name = 'once_mark'")
    .pluck().get(now) === 1
  if (!isAhead && hasReports(db) && isExtended(db) && hasResults(db)) return
  db.transaction(() => {
    extendRejected(db)
    createReports(db)
    createResults(db)
    db.prepare<{ now: number }>(`
      UPDATE meta SET value = CAST(@now AS INTEGER) WHERE name = 'once_mark' AND value > @now`).run({ now })
  }).immediate()
}
