// The database's tables, and how a database gets them: created, or migrated from one that the original made.
import { closeSync, existsSync, fsyncSync, openSync } from 'node:fs'
import Database from 'better-sqlite3'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'

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

/** Names of ours that a database of the original's must not use for anything else. */
const ourNames = [
  'producers', 'once', 'once_elapsed', 'rejected', 'rejected_batch', 'rejected_key', 'rejected_once', 'rejected_reason', 'reports', 'meta',
]

/** Objects of another application that a refusal names. */
const namedMax = 3

/** The version of the tables in a database; 0: none of ours. @throws FatalError if they are newer than this program */
export function readVersion (db: Database.Database): number {
  const version = Number(db.pragma('user_version', { simple: true }))
  if (version > schemaVersion) {
    throw new FatalError(`${db.name} has schema version ${version} and this Gearbox knows ${schemaVersion}: it was written by a newer one. Start that one`)
  }
  return version
}

interface SchemaObject { readonly type: string, readonly name: string, readonly table: string, readonly sql: string | null }

function readObjects (db: Database.Database): SchemaObject[] {
  return db.prepare<[], SchemaObject>(`
    SELECT type, name, tbl_name AS 'table', sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    ORDER BY CASE type WHEN 'table' THEN 1 WHEN 'index' THEN 2 WHEN 'view' THEN 3 ELSE 4 END, rowid`).all()
}

function is (object: SchemaObject, name: string): boolean {
  return object.name.toLowerCase() === name
}

/**
 * Refuses a database of another application, and one of the original's that can't be migrated without loss. Only reads.
 * @returns 'ours', 'original', or 'empty'
 * @throws FatalError that names what is in the way
 */
export function inspectSchema (db: Database.Database): 'ours' | 'original' | 'empty' {
  const objects = readObjects(db)
  const version = Number(db.pragma('user_version', { simple: true }))
  const foreign = (what: string): FatalError =>
    new FatalError(`${db.name} belongs to another application: ${what}. Name another file in DATABASE_PATH; nothing was changed`)
  const ours = ['numbers', 'producers', 'meta'].every((name) => objects.some((object) => object.type === 'table' && is(object, name)))
  if (version > 0 && (ours || objects.length === 0)) {
    readVersion(db)
    if (ours) return 'ours'
  }
  const applicationId = Number(db.pragma('application_id', { simple: true }))
  if (applicationId !== 0) throw foreign(`its application_id is ${applicationId}`)
  if (objects.length === 0) return 'empty'
  const numbers = objects.find((object) => is(object, 'numbers'))
  if (numbers === undefined || version > 0) throw foreign(`it has ${list(objects)}`)
  if (numbers.type !== 'table') throw foreign(`its "numbers" is a ${numbers.type}`)
  checkOriginal(db, objects, numbers)
  return 'original'
}

function list (objects: readonly SchemaObject[]): string {
  const named = objects.slice(0, namedMax).map(({ type, name }) => `${type} ${shown(name)}`).join(', ')
  return objects.length > namedMax ? `${named} and ${objects.length - namedMax} more` : named
}

function shown (name: string): string {
  return JSON.stringify(name.length > 64 ? `${name.slice(0, 63)}…` : name)
}

function quoted (name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

/**
 * Gives a database the tables of this version, in one transaction. One that the original made is copied first.
 * @returns the path of that copy
 * @throws FatalError that names what can't be migrated; the database is as it was
 */
export function migrate (db: Database.Database, uuid: string): string | undefined {
  if (inspectSchema(db) === 'ours') return undefined
  // Before the copy: a supervisor that starts this again and again must not fill the disk with them.
  const copy = inspectSchema(db) === 'original' ? backUp(db) : undefined
  // Dropping a table deletes its rows first, which would cascade to tables of its owner. Within a transaction this can't be set.
  db.pragma('foreign_keys = OFF')
  try {
    db.transaction(() => {
      // Another consumer may have been faster, or somebody may have written since.
      const found = inspectSchema(db)
      if (found === 'ours') return
      if (found === 'original') replaceTable(db, readObjects(db))
      db.exec(schema)
      db.prepare("INSERT INTO meta(name, value) VALUES ('uuid', ?), ('epoch', 0), ('elapsed_ms', 0), ('once_mark', -1)").run(uuid)
      db.pragma(`user_version = ${schemaVersion}`)
    }).immediate()
  } finally {
    db.pragma('foreign_keys = ON')
  }
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
  SELECT key, typeof(key) AS key_type, value AS found, typeof(value) AS found_type, CASE typeof(value)
    WHEN 'null' THEN 0
    WHEN 'integer' THEN value
    WHEN 'real' THEN iif(value BETWEEN -9223372036854775808 AND 9223372036854774784 AND value = CAST(value AS INTEGER), CAST(value AS INTEGER), NULL)
    WHEN 'text' THEN iif(CAST(CAST(value AS INTEGER) AS TEXT) = value, CAST(value AS INTEGER), NULL)
    END AS value
  FROM numbers`

/** @throws FatalError for whatever of the table, its rows and what depends on it would be lost or stop working */
function checkOriginal (db: Database.Database, objects: readonly SchemaObject[], numbers: SchemaObject): void {
  const refuse = (what: string, advice: string): FatalError => new FatalError(`${db.name} can't be taken over: ${what}. ${advice} and start again; nothing was changed`)
  const columns = db.prepare<[], string>("SELECT name FROM pragma_table_xinfo('numbers')").pluck().all()
  if (!columns.includes('key') || !columns.includes('value')) {
    throw new FatalError(`${db.name} belongs to another application: its table "numbers" lacks the columns "key" and "value". Name another file in DATABASE_PATH; nothing was changed`)
  }
  const others = columns.filter((name) => name !== 'key' && name !== 'value')
  if (others.length > 0) throw refuse(`"numbers" has more columns (${others.slice(0, namedMax).map(shown).join(', ')}), which would be lost`, 'Move them to another table')
  if (/^\s*CREATE\s+VIRTUAL/i.test(numbers.sql ?? '')) throw refuse('"numbers" is a virtual table', 'Make it an ordinary one')
  if (/\bCHECK\s*\(/i.test(numbers.sql ?? '') || db.prepare("SELECT 1 FROM pragma_foreign_key_list('numbers')").get() !== undefined) {
    throw refuse('"numbers" has a CHECK or a foreign key, which would be lost', 'Remove it')
  }
  const taken = objects.filter((object) => ourNames.includes(object.name.toLowerCase()))
  if (taken.length > 0) throw refuse(`its ${list(taken)} has a name that Gearbox needs`, 'Rename it')
  const unique = db.prepare<[], string>(`
    SELECT list.name FROM pragma_index_list('numbers') AS list
    WHERE list."unique" = 1 AND (list.partial = 1 OR (SELECT group_concat(info.name) FROM pragma_index_info(list.name) AS info) IS NOT 'key')`).pluck().get()
  if (unique !== undefined) throw refuse(`its unique index ${shown(unique)} would refuse totals`, 'Drop it')
  const broken = findBroken(objects)
  if (broken.length > 0) {
    throw refuse(`${broken.slice(0, namedMax).join(', ')} would not work on the table of Gearbox, numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID`,
      `Drop ${broken.length === 1 ? 'it' : 'them'}`)
  }
  checkRows(db, refuse)
}

function checkRows (db: Database.Database, refuse: (what: string, advice: string) => FatalError): void {
  const withoutRowid = db.prepare("SELECT wr FROM pragma_table_list('numbers') WHERE schema = 'main'").pluck().get() === 1
  const numbered = converted.replace('SELECT', withoutRowid ? "SELECT 'with that key' AS row," : 'SELECT rowid AS row,')
  const where = `FROM (${numbered}) WHERE key_type <> 'text' OR value IS NULL`
  const bad = db.prepare<[], { row: number | string, key: string, found: string, found_type: string, key_type: string }>(
    `SELECT row, substr(quote(key), 1, 64) AS key, substr(quote(found), 1, 64) AS found, found_type, key_type ${where} LIMIT 1`).get()
  if (bad !== undefined) {
    const why = bad.key_type === 'text' ? `its value ${bad.found} (${bad.found_type}) is not a 64-bit integer` : `its key ${bad.key} (${bad.key_type}) is not text`
    throw refuse(`in row ${bad.row} of "numbers", key ${bad.key}, ${why}`, 'Correct or delete that row')
  }
  const twice = db.prepare('SELECT substr(quote(key), 1, 64) FROM numbers GROUP BY key COLLATE BINARY HAVING count(*) > 1 LIMIT 1').pluck().get()
  if (twice !== undefined) throw refuse(`key ${String(twice)} has more than one row in "numbers"`, 'Leave one of them')
}

/**
 * Puts our table in the place of the original's, with the same rows. Views, and tables that refer to it, stay as they are;
 * indexes and triggers go with a table and are made again.
 * @throws Error that names one that can't be made again
 */
function replaceTable (db: Database.Database, objects: readonly SchemaObject[]): void {
  const free = (n = 1): string => objects.some((object) => is(object, `numbers_new_${n}`)) ? free(n + 1) : `numbers_new_${n}`
  const name = free()
  // Else a rename changes the definitions of views and triggers, and fails at any that does not work.
  db.pragma('legacy_alter_table = ON')
  db.exec(`
    CREATE TABLE ${name}(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO ${name}(key, value) SELECT key, value FROM (${converted});
    DROP TABLE numbers;
    ALTER TABLE ${name} RENAME TO numbers;
  `)
  db.pragma('legacy_alter_table = OFF')
  for (const object of objects) {
    // The primary key does what the original's own index was for.
    const lost = isOfNumbers(object) && (object.type === 'trigger' || (object.type === 'index' && !is(object, 'numbers_key_index')))
    if (!lost || object.sql === null) continue
    try {
      db.exec(object.sql)
    } catch (error) {
      throw new Error(`${object.type} ${shown(object.name)}`, { cause: error })
    }
  }
}

function isOfNumbers ({ table }: SchemaObject): boolean {
  return table.toLowerCase() === 'numbers'
}

/**
 * Tries the change on a copy of the definitions alone.
 * @returns the owner's views, indexes and triggers that would stop working, and triggers under which nothing could be counted
 */
function findBroken (objects: readonly SchemaObject[]): string[] {
  const copy = new Database(':memory:')
  try {
    copy.pragma('foreign_keys = OFF')
    for (const { sql } of objects) {
      // What needs an extension of its owner's program, or is made together with another object, does not matter here.
      if (sql !== null) failureOf(() => copy.exec(sql))
    }
    const dependents = objects.filter(({ type }) => type === 'view' || type === 'trigger')
    const worked = new Set(dependents.filter((object) => works(copy, objects, object)))
    const failure = failureOf(() => replaceTable(copy, objects))
    if (failure !== undefined) return [failure]
    copy.pragma('foreign_keys = ON')
    return dependents
      .filter((object) => worked.has(object) ? !works(copy, objects, object) : object.type === 'trigger' && isOfNumbers(object) && !works(copy, objects, object, [upsert]))
      .map(({ type, name }) => `${type} ${shown(name)}`)
  } finally {
    copy.close()
  }
}

/** What the consumer runs; here it is only compiled. */
const upsert = 'INSERT INTO numbers(key, value) VALUES (1, 1) ON CONFLICT(key) DO UPDATE SET value = 1'

/** Whether the statements compile that use a view, or fire a trigger. None of them is run. */
function works (db: Database.Database, objects: readonly SchemaObject[], object: SchemaObject, statements = uses(db, object)): boolean {
  // Without the other triggers, so that it is known whose fault it is.
  const others = object.type === 'trigger' ? objects.filter((other) => other.type === 'trigger' && other !== object) : []
  db.exec('BEGIN')
  try {
    for (const { name } of others) db.exec(`DROP TRIGGER IF EXISTS ${quoted(name)}`)
    return statements.every((sql) => failureOf(() => db.prepare(sql)) === undefined)
  } finally {
    db.exec('ROLLBACK')
  }
}

function uses (db: Database.Database, { type, name, table }: SchemaObject): string[] {
  if (type === 'view') return [`SELECT * FROM ${quoted(name)}`]
  const columns = db.prepare<[string], string>('SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0').pluck().all(table)
  const event = /\b(INSERT|DELETE|UPDATE)\b/i.exec(triggerSql(db, name))?.[1]?.toUpperCase()
  if (event === 'INSERT') return [`INSERT INTO ${quoted(table)} DEFAULT VALUES`]
  if (event === 'DELETE') return [`DELETE FROM ${quoted(table)}`]
  return [`UPDATE ${quoted(table)} SET ${columns.map((column) => `${quoted(column)} = ${quoted(column)}`).join(', ')}`]
}

/** A trigger's definition from behind its name, which may hold anything. */
function triggerSql (db: Database.Database, name: string): string {
  const sql = db.prepare<[string], string>("SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND name = ?").pluck().get(name) ?? ''
  return sql.slice(sql.indexOf(name) + name.length)
}

function failureOf (action: () => unknown): string | undefined {
  try {
    action()
    return undefined
  } catch (error) {
    return reasonOf(error)
  }
}
