// A database of piccolo-daimao, from which Gearbox grew: what of it can't be migrated without loss, the copy that is
// kept, and the change itself. Its table is `numbers(key, value DEFAULT 0)` with an index on `key`; its owner may have
// added views, indexes, triggers and tables. Called by schema.ts only.
import { closeSync, existsSync, fsyncSync, openSync } from 'node:fs'
import Database from 'better-sqlite3'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import {
  describeObject, isNamed, listObjects, namedMax, quotedName, shownName, type SchemaObject,
} from '../schema-objects.ts'

/** Names of ours that such a database must not use for anything else. */
const ourNames = [
  'producers', 'once', 'once_elapsed', 'rejected', 'rejected_batch', 'rejected_key', 'rejected_once', 'rejected_reason',
  'reports', 'results', 'results_elapsed', 'corrections', 'meta',
]

const ourTable = 'numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID'

// The column took whatever came: '7' and 7.0 are sevens, NULL was its DEFAULT 0 undone.
const converted = `
  SELECT key, typeof(key) AS key_type, value AS found, typeof(value) AS found_type, CASE typeof(value)
    WHEN 'null' THEN 0
    WHEN 'integer' THEN value
    WHEN 'real' THEN iif(value BETWEEN -9223372036854775808 AND 9223372036854774784 AND value = CAST(value AS INTEGER),
      CAST(value AS INTEGER), NULL)
    WHEN 'text' THEN iif(CAST(CAST(value AS INTEGER) AS TEXT) = value, CAST(value AS INTEGER), NULL)
    END AS value
  FROM numbers`

type Refuse = (what: string, advice: string) => FatalError

/**
 * Refuses a database of which the migration would lose or break anything. Only reads.
 * @param numbers the table of that name among its objects
 * @throws FatalError that names what of the table, its rows or what depends on it is in the way
 */
export function checkOriginal (db: Database.Database, objects: readonly SchemaObject[], numbers: SchemaObject): void {
  const refuse: Refuse = (what, advice) =>
    new FatalError(`${db.name} can't be migrated: ${what}. ${advice} and start again; nothing was changed`)
  checkTable(db, numbers, refuse)
  const taken = objects.filter((object) => ourNames.includes(object.name.toLowerCase()))
  if (taken.length > 0) throw refuse(`its ${listObjects(taken)} has a name that Gearbox needs`, 'Rename it')
  const unique = db.prepare<[], string>(`
    SELECT list.name FROM pragma_index_list('numbers') AS list
    WHERE list."unique" = 1 AND (list.partial = 1
      OR (SELECT group_concat(info.name) FROM pragma_index_info(list.name) AS info) IS NOT 'key')`).pluck().get()
  if (unique !== undefined) throw refuse(`its unique index ${shownName(unique)} would refuse totals`, 'Drop it')
  const broken = findBroken(objects)
  if (broken.length > 0) {
    throw refuse(`${broken.slice(0, namedMax).join(', ')} would not work on the table of Gearbox, ${ourTable}`,
      `Drop ${broken.length === 1 ? 'it' : 'them'}`)
  }
  checkRows(db, refuse)
}

function checkTable (db: Database.Database, { sql }: SchemaObject, refuse: Refuse): void {
  const columns = db.prepare<[], string>("SELECT name FROM pragma_table_xinfo('numbers')").pluck().all()
  if (!columns.includes('key') || !columns.includes('value')) {
    throw new FatalError(`${db.name} belongs to another application: its table "numbers" lacks the columns "key" and ` +
      '"value". Name another file in DATABASE_PATH; nothing was changed')
  }
  const others = columns.filter((name) => name !== 'key' && name !== 'value')
  if (others.length > 0) {
    const named = others.slice(0, namedMax).map(shownName).join(', ')
    throw refuse(`"numbers" has more columns (${named}), which would be lost`, 'Move them to another table')
  }
  if (/^\s*CREATE\s+VIRTUAL/i.test(sql ?? '')) throw refuse('"numbers" is a virtual table', 'Make it an ordinary one')
  const hasForeignKey = db.prepare("SELECT 1 FROM pragma_foreign_key_list('numbers')").get() !== undefined
  if (/\bCHECK\s*\(/i.test(sql ?? '') || hasForeignKey) {
    throw refuse('"numbers" has a CHECK or a foreign key, which would be lost', 'Remove it')
  }
}

interface BadRow {
  readonly row: number | string
  readonly key: string
  readonly key_type: string
  readonly found: string
  readonly found_type: string
}

function checkRows (db: Database.Database, refuse: Refuse): void {
  const listed = db.prepare("SELECT wr FROM pragma_table_list('numbers') WHERE schema = 'main'").pluck().get()
  const numbered = converted.replace('SELECT', listed === 1 ? "SELECT 'with that key' AS row," : 'SELECT rowid AS row,')
  const bad = db.prepare<[], BadRow>(`
    SELECT row, substr(quote(key), 1, 64) AS key, substr(quote(found), 1, 64) AS found, found_type, key_type
    FROM (${numbered}) WHERE key_type <> 'text' OR value IS NULL LIMIT 1`).get()
  if (bad !== undefined) {
    const why = bad.key_type === 'text'
      ? `its value ${bad.found} (${bad.found_type}) is not a 64-bit integer`
      : `its key ${bad.key} (${bad.key_type}) is not text`
    throw refuse(`in row ${bad.row} of "numbers", key ${bad.key}, ${why}`, 'Correct or delete that row')
  }
  const twice = db.prepare(`
    SELECT substr(quote(key), 1, 64) FROM numbers
    GROUP BY key COLLATE BINARY HAVING count(*) > 1 LIMIT 1`).pluck().get()
  if (twice !== undefined) throw refuse(`key ${String(twice)} has more than one row in "numbers"`, 'Leave one of them')
}

/** Copies the database as it is to a free name next to it, and syncs the copy. @returns the copy's path */
export function copyOriginal (db: Database.Database): string {
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

/**
 * Puts our table in the place of the original one, with the same rows; to be called in a transaction, without foreign
 * keys. Views, and tables that refer to it, stay as they are; indexes and triggers go with a table and are made again.
 * @throws Error that names one that can't be made again
 */
export function migrateFromPiccoloDaimao (db: Database.Database, objects: readonly SchemaObject[]): void {
  const free = (n = 1): string =>
    objects.some((object) => isNamed(object, `numbers_new_${n}`)) ? free(n + 1) : `numbers_new_${n}`
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
    // The primary key does what the original index was for.
    const isOwners = object.type === 'trigger' || (object.type === 'index' && !isNamed(object, 'numbers_key_index'))
    if (!isOfNumbers(object) || !isOwners || object.sql === null) continue
    try {
      db.exec(object.sql)
    } catch (error) {
      throw new Error(describeObject(object), { cause: error })
    }
  }
}

function isOfNumbers ({ table }: SchemaObject): boolean {
  return table.toLowerCase() === 'numbers'
}

/**
 * Tries the change on a copy of the definitions alone.
 * @returns the owner's views, indexes and triggers that would stop working, and triggers under which nothing could be
 * counted
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
    const failure = failureOf(() => migrateFromPiccoloDaimao(copy, objects))
    if (failure !== undefined) return [failure]
    copy.pragma('foreign_keys = ON')
    return dependents
      .filter((object) => {
        if (worked.has(object)) return !works(copy, objects, object)
        return object.type === 'trigger' && isOfNumbers(object) && !works(copy, objects, object, [upsert])
      })
      .map(describeObject)
  } finally {
    copy.close()
  }
}

/** What the consumer runs; here it is only compiled. */
const upsert = 'INSERT INTO numbers(key, value) VALUES (1, 1) ON CONFLICT(key) DO UPDATE SET value = 1'

/** Whether the statements compile that use a view, or fire a trigger. None of them is run. */
function works (
  db: Database.Database, objects: readonly SchemaObject[], object: SchemaObject, statements = uses(db, object)
): boolean {
  // Without the other triggers, so that it is known whose fault it is.
  const triggers = objects.filter(({ type }) => type === 'trigger')
  const others = object.type === 'trigger' ? triggers.filter((other) => other !== object) : []
  db.exec('BEGIN')
  try {
    for (const { name } of others) db.exec(`DROP TRIGGER IF EXISTS ${quotedName(name)}`)
    return statements.every((sql) => failureOf(() => db.prepare(sql)) === undefined)
  } finally {
    db.exec('ROLLBACK')
  }
}

function uses (db: Database.Database, { type, name, table }: SchemaObject): string[] {
  if (type === 'view') return [`SELECT * FROM ${quotedName(name)}`]
  const columns = db.prepare<[string], string>('SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0')
    .pluck().all(table).map(quotedName)
  const event = /\b(INSERT|DELETE|UPDATE)\b/i.exec(triggerSql(db, name))?.[1]?.toUpperCase()
  if (event === 'INSERT') return [`INSERT INTO ${quotedName(table)} DEFAULT VALUES`]
  if (event === 'DELETE') return [`DELETE FROM ${quotedName(table)}`]
  return [`UPDATE ${quotedName(table)} SET ${columns.map((column) => `${column} = ${column}`).join(', ')}`]
}

/** A trigger's definition from behind its name, which may hold anything. */
function triggerSql (db: Database.Database, name: string): string {
  const sql = db.prepare<[string], string>("SELECT sql FROM sqlite_schema WHERE type = 'trigger' AND name = ?")
    .pluck().get(name) ?? ''
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
