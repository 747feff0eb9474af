// The database's tables, and how a database comes to have them: made anew, or taken over from the original.
import { closeSync, existsSync, fsyncSync, openSync } from 'node:fs'
import Database from 'better-sqlite3'
import { FatalError } from '@gearbox/runtime/errors.ts'

/** PRAGMA user_version of the tables below. */
export const schemaVersion = 1

const schema = `
  CREATE TABLE IF NOT EXISTS numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  -- What was applied of each producer: the highest sequence and the gaps below it, [[from, to], …].
  CREATE TABLE producers(producer TEXT PRIMARY KEY, high INTEGER NOT NULL, gaps TEXT NOT NULL,
    requests INTEGER NOT NULL, increments INTEGER NOT NULL, seen_at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  -- Requests with an idempotency key; elapsed_ms is this database's own clock, which only runs while a consumer does.
  CREATE TABLE once(id TEXT PRIMARY KEY, sums_hash TEXT NOT NULL, at INTEGER NOT NULL, elapsed_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  CREATE INDEX once_elapsed ON once(elapsed_ms);
  -- What could not be applied. An entry of the sums has a key and a value; an idempotent request has its id and its sums;
  -- a batch that could not be read has its bytes and their hash.
  CREATE TABLE rejected(id INTEGER PRIMARY KEY, producer TEXT, seq INTEGER, key TEXT, value INTEGER, reason TEXT NOT NULL,
    at INTEGER NOT NULL, once TEXT, sums TEXT, batch BLOB, hash TEXT UNIQUE) STRICT;
  CREATE INDEX rejected_batch ON rejected(producer, seq);
  CREATE TABLE meta(name TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
`

/** The version of the tables in a database; 0: none of ours. @throws FatalError if they are newer than this program */
export function readVersion (db: Database.Database): number {
  const version = Number(db.pragma('user_version', { simple: true }))
  if (version > schemaVersion) {
    throw new FatalError(`${db.name} has schema version ${version} and this Gearbox knows ${schemaVersion}: it was written by a newer one. Start that one`)
  }
  return version
}

/**
 * Gives a database the tables of this version, in one transaction. One of the original's making is copied beside itself first.
 * @returns the path of that copy
 * @throws FatalError that names the row which can't be taken over; the database is as it was
 */
export function migrate (db: Database.Database, uuid: string): string | undefined {
  if (readVersion(db) === schemaVersion) return undefined
  const inherited = db.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'numbers'").get() !== undefined
  // Before the copy: a supervisor that starts this again and again must not fill the disk with them.
  if (inherited) checkInherited(db)
  const copy = inherited ? backUp(db) : undefined
  db.transaction(() => {
    // Another consumer may have been faster.
    if (readVersion(db) === schemaVersion) return
    if (inherited) takeOver(db)
    db.exec(schema)
    db.prepare("INSERT INTO meta(name, value) VALUES ('uuid', ?), ('epoch', 0), ('elapsed_ms', 0), ('once_mark', -1)").run(uuid)
    db.pragma(`user_version = ${schemaVersion}`)
  }).immediate()
  return copy
}

function backUp (db: Database.Database): string {
  const free = (name: string, n = 1): string => {
    const candidate = n === 1 ? name : `${name}.${n}`
    return existsSync(candidate) ? free(name, n + 1) : candidate
  }
  const copy = free(`${db.name}.original`)
  db.prepare('VACUUM INTO ?').run(copy)
  const file = openSync(copy, 'r')
  fsyncSync(file)
  closeSync(file)
  return copy
}

// The original's column took whatever came: '7' and 7.0 are sevens, NULL was its DEFAULT 0 undone.
const converted = `
  SELECT rowid, key, typeof(key) AS key_type, value AS found, typeof(value) AS found_type, CASE typeof(value)
    WHEN 'null' THEN 0
    WHEN 'integer' THEN value
    WHEN 'real' THEN iif(value BETWEEN -9223372036854775808 AND 9223372036854774784 AND value = CAST(value AS INTEGER), CAST(value AS INTEGER), NULL)
    WHEN 'text' THEN iif(CAST(CAST(value AS INTEGER) AS TEXT) = value, CAST(value AS INTEGER), NULL)
    END AS value
  FROM numbers`

function checkInherited (db: Database.Database): void {
  const columns = db.prepare("SELECT name FROM pragma_table_info('numbers')").pluck().all()
  if (!columns.includes('key') || !columns.includes('value')) {
    throw new FatalError(`${db.name} has a table "numbers" without the columns "key" and "value": it is somebody else's. Name another file in DATABASE_PATH`)
  }
  const where = `FROM (${converted}) WHERE key_type <> 'text' OR value IS NULL`
  const bad = db.prepare<[], { rowid: number, key: string, found: string, found_type: string, key_type: string }>(
    `SELECT rowid, substr(quote(key), 1, 64) AS key, substr(quote(found), 1, 64) AS found, found_type, key_type ${where} LIMIT 1`).get()
  if (bad !== undefined) {
    const why = bad.key_type === 'text' ? `its value ${bad.found} (${bad.found_type}) is no 64-bit integer` : `its key ${bad.key} (${bad.key_type}) is no text`
    throw new FatalError(`${db.name} can't be taken over: in row ${bad.rowid} of "numbers", key ${bad.key}, ${why}. Mend or delete that row and start again; nothing was changed`)
  }
  const twice = db.prepare('SELECT substr(quote(key), 1, 64) FROM numbers GROUP BY key HAVING count(*) > 1 LIMIT 1').pluck().get()
  if (twice !== undefined) {
    throw new FatalError(`${db.name} can't be taken over: key ${String(twice)} has more than one row in "numbers". Leave one of them and start again; nothing was changed`)
  }
}

function takeOver (db: Database.Database): void {
  // Again: somebody may have written since.
  checkInherited(db)
  db.exec(`
    ALTER TABLE numbers RENAME TO numbers_taken_over;
    CREATE TABLE numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO numbers(key, value) SELECT key, value FROM (${converted.replace('FROM numbers', 'FROM numbers_taken_over')});
    DROP TABLE numbers_taken_over;
  `)
}
