// Databases that piccolo-daimao made, the original, and what becomes of them.
import { copyFileSync, existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import Database from 'better-sqlite3'
import { expect, test } from 'vitest'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { element } from '@gearbox/test-kit/batches.ts'
import { freshPath, openStore, query, totals } from './open-store.ts'

// As the original makes it.
const original =
  'CREATE TABLE numbers(key TEXT, value INTEGER DEFAULT 0); CREATE UNIQUE INDEX numbers_key_index ON numbers(key)'

/** The original's table without what its index and its column's affinity keep out. */
const loose = 'CREATE TABLE numbers(key, value)'

function makeDatabase (...statements: readonly string[]): string {
  const path = freshPath()
  const db = new Database(path)
  for (const statement of statements) db.exec(statement)
  db.close()
  return path
}

const contents = 'SELECT typeof(key), key, typeof(value), value FROM numbers ORDER BY rowid'
const schemas = 'SELECT type, name, sql FROM sqlite_schema ORDER BY name'

test.each([
  ['empty', [], {}],
  ['with rows', ["('foo', 4)", "('bar', -2)"], { foo: 4n, bar: -2n }],
  ['with a value NULL', ["('foo', NULL)"], { foo: 0n }],
  ['with values at both ends', ["('most', 9223372036854775807)", "('least', -9223372036854775808)"],
    { most: 2n ** 63n - 1n, least: -(2n ** 63n) }],
  ['with odd keys', ["('', 1)", "('a''b', 2)", "('ключ', 3)", "('__proto__', 4)"],
    { '': 1n, "a'b": 2n, ключ: 3n, ['__proto__']: 4n }],
])("the original's database %s is migrated, with a copy next to it", (_what, rows, expected) => {
  const path = makeDatabase(original, ...rows.map((row) => `INSERT INTO numbers VALUES ${row}`))
  const before = [query(path, contents), query(path, schemas)]
  const { store } = openStore({ path })
  expect(totals(path)).toEqual(expected)
  expect(store.copiedTo).toBe(`${path}.original`)
  expect([query(`${path}.original`, contents), query(`${path}.original`, schemas)]).toEqual(before)
  store.apply([element({ sums: { foo: 1, new: 1 } })])
  expect(totals(path)['new']).toBe(1n)
  store.close()

  const again = openStore({ path }).store
  expect(again.copiedTo).toBeUndefined()
  expect(readdirSync(dirname(path)).filter((name) => name.includes('original'))).toHaveLength(1)
})

test.each([
  ['the REAL 7.0', '7.0', 7n], ['the REAL -0.0', '-0.0', 0n], ['the REAL 2^62', '4611686018427387904.0', 2n ** 62n],
  ['the REAL -2^63', '-9223372036854775808.0', -(2n ** 63n)],
  ["the TEXT '7'", "'7'", 7n], ["the TEXT '-9223372036854775808'", "'-9223372036854775808'", -(2n ** 63n)], ['NULL',
    'NULL', 0n],
])('%s is converted', (_what, value, expected) => {
  const path = makeDatabase(loose, `INSERT INTO numbers VALUES ('foo', ${value})`)
  openStore({ path })
  expect(totals(path)).toEqual({ foo: expected })
})

test.each([
  ['the REAL 1e19', loose, ["('bad', 1e19)"], /"?bad/],
  ['the REAL 2^63', loose, ["('bad', 9223372036854775808.0)"], /"?bad/],
  ['the REAL 1.5', original, ["('bad', 1.5)"], /"?bad/],
  ['the REAL infinity', original, ["('bad', 9e999)"], /"?bad/],
  ["the TEXT 'abc'", original, ["('bad', 'abc')"], /"?bad/],
  ['an empty TEXT', original, ["('bad', '')"], /"?bad/],
  ["the TEXT '9223372036854775808'", loose, ["('bad', '9223372036854775808')"], /"?bad/],
  ['a BLOB', original, ["('bad', x'31')"], /"?bad/],
  ['a key NULL', original, ['(NULL, 1)'], /key NULL/],
  ['a key that is a BLOB', original, ["(x'62', 1)"], /X'62'/],
  ['a key that is a number', loose, ['(62, 1)'], /62/],
  ['a key twice', 'CREATE TABLE numbers(key TEXT, value INTEGER DEFAULT 0)', ["('bad', 1)", "('bad', 2)"], /"?bad/],
])('%s stops it, with the row named and every row as it was, however often it is started', (_what, schema, rows,
  named) => {
  const path = makeDatabase(schema, "INSERT INTO numbers VALUES ('fine', 1)",
    ...rows.map((row) => `INSERT INTO numbers VALUES ${row}`))
  const before = [query(path, contents), query(path, schemas)]
  expect(() => openStore({ path })).toThrow(FatalError)
  for (let start = 1; start <= 3; start++) expect(() => openStore({ path })).toThrow(named)
  expect([query(path, contents), query(path, schemas)]).toEqual(before)
  expect(query(path, 'PRAGMA user_version')).toEqual([[0n]])
  // A supervisor would start it again and again: copies of a large database would fill the disk.
  expect(readdirSync(dirname(path)).filter((name) => name.includes('original')).length).toBeLessThanOrEqual(1)
})

test("another application's table of that name is refused and left alone", () => {
  const path = makeDatabase('CREATE TABLE numbers(n INTEGER, name TEXT)', "INSERT INTO numbers VALUES (1, 'one')")
  expect(() => openStore({ path })).toThrow(FatalError)
  expect(() => openStore({ path })).toThrow(/belongs to another application/)
  expect(query(path, 'SELECT * FROM numbers')).toEqual([[1n, 'one']])
})

test('a copy that is there already is kept', () => {
  const path = makeDatabase(original, "INSERT INTO numbers VALUES ('foo', 1)")
  const older = makeDatabase(original, "INSERT INTO numbers VALUES ('old', 1)")
  copyFileSync(older, `${path}.original`)
  expect(openStore({ path }).store.copiedTo).toBe(`${path}.original.2`)
  expect(query(`${path}.original`, 'SELECT key FROM numbers')).toEqual([['old']])
  expect(query(`${path}.original.2`, 'SELECT key FROM numbers')).toEqual([['foo']])
})

test('a new database is made without a copy, and its directory too', () => {
  const path = `${freshPath()}/deep/numbers.db`
  const { store } = openStore({ path })
  expect(store.copiedTo).toBeUndefined()
  expect(existsSync(path)).toBe(true)
})

// What its owner has added to it

const rows = "INSERT INTO numbers VALUES ('a', 1), ('b', 20)"

test('views, indexes, triggers and tables of its owner still work after the migration', () => {
  const path = makeDatabase(original, rows, `
    CREATE TABLE log(key, value);
    CREATE TABLE labels(key TEXT REFERENCES numbers(key) ON DELETE CASCADE, label TEXT);
    INSERT INTO labels VALUES ('a', 'Apples');
    CREATE INDEX by_value ON numbers(value DESC);
    CREATE INDEX large ON numbers(key) WHERE value > 10;
    CREATE VIEW top AS SELECT key, value FROM numbers ORDER BY value DESC;
    CREATE VIEW labelled AS SELECT label, value FROM labels JOIN numbers USING (key);
    CREATE VIEW broken_before AS SELECT * FROM nowhere;
    CREATE TRIGGER seen AFTER UPDATE OF value ON numbers BEGIN
      INSERT INTO log VALUES (new.key, new.value - old.value);
    END;
    CREATE TRIGGER "made ""anew""" AFTER INSERT ON numbers BEGIN INSERT INTO log VALUES (new.key, new.value); END;
    CREATE TRIGGER add_one INSTEAD OF INSERT ON top BEGIN UPDATE numbers SET value = value + 1 WHERE key = new.key; END;
    CREATE TABLE numbers_new_1(mine);
  `)
  const { store } = openStore({ path })
  store.apply([element({ sums: { a: 100, c: 3 } })])
  expect(query(path, 'SELECT * FROM top')).toEqual([['a', 101n], ['b', 20n], ['c', 3n]])
  expect(query(path, 'SELECT * FROM labelled')).toEqual([['Apples', 101n]])
  expect(query(path, 'SELECT key, CAST(value AS INTEGER) FROM log ORDER BY key')).toEqual([['a', 100n], ['c', 3n]])
  expect(query(path,
    "SELECT name FROM sqlite_schema WHERE type IN ('index', 'trigger') AND tbl_name = 'numbers' AND sql IS NOT NULL " +
      'ORDER BY name'))
    .toEqual([['by_value'], ['large'], ['made "anew"'], ['seen']])
  expect(query(path, 'PRAGMA integrity_check')).toEqual([['ok']])
  expect(query(path, 'PRAGMA foreign_key_check')).toEqual([])
  store.close()
  const db = new Database(path)
  db.exec("INSERT INTO top(key) VALUES ('b'); DELETE FROM numbers WHERE key = 'a'")
  expect(db.prepare('SELECT count(*) FROM labels').pluck().get()).toBe(0)
  db.close()
  expect(totals(path)).toEqual({ b: 21n, c: 3n })
})

test.each([
  ['a view of rowids', 'CREATE VIEW v AS SELECT rowid, value FROM numbers', /view "v" would not work/],
  ['a view by the index of the original', 'CREATE VIEW v AS SELECT key FROM numbers INDEXED BY numbers_key_index',
    /view "v" would not work/],
  ['a trigger that uses rowids',
    'CREATE TABLE log(id); CREATE TRIGGER tr AFTER INSERT ON numbers BEGIN INSERT INTO log VALUES (new.rowid); END',
    /trigger "tr" would not work/],
  ['a trigger on another table that uses rowids',
    'CREATE TABLE log(id); CREATE TRIGGER tr AFTER DELETE ON log BEGIN DELETE FROM numbers WHERE rowid = 1; END',
    /trigger "tr" would not work/],
  ['a trigger on a view that uses rowids',
    'CREATE VIEW v AS SELECT key FROM numbers; CREATE TRIGGER tr INSTEAD OF UPDATE ON v BEGIN DELETE FROM numbers ' +
      'WHERE rowid = 1; END', /trigger "tr" would not work/],
  ['a trigger that calls a function of its program',
    'CREATE TRIGGER tr AFTER INSERT ON numbers BEGIN SELECT their_function(new.key); END',
    /trigger "tr" would not work/],
  ['one bad trigger of two',
    'CREATE TABLE log(id); CREATE TRIGGER good AFTER INSERT ON numbers BEGIN INSERT INTO log VALUES (new.key); END; ' +
      'CREATE TRIGGER bad AFTER INSERT ON numbers BEGIN INSERT INTO log VALUES (new.rowid); END',
    /: trigger "bad" would not work/],
  ['more columns', "ALTER TABLE numbers ADD COLUMN note TEXT DEFAULT 'x'", /more columns \("note"\)/],
  ['a generated column', 'ALTER TABLE numbers ADD COLUMN twice AS (value * 2)', /more columns \("twice"\)/],
  ['a unique index on values', 'CREATE UNIQUE INDEX one_each ON numbers(value)', /unique index "one_each"/],
  ['a partial unique index', 'CREATE UNIQUE INDEX some ON numbers(key) WHERE value > 0', /unique index "some"/],
  ['a table with a name of ours', 'CREATE TABLE Meta(x)', /table "Meta" has a name that Gearbox needs/],
  ['an index with a name of ours', 'CREATE TABLE t(x); CREATE INDEX rejected_batch ON t(x)',
    /index "rejected_batch" has a name/],
])("the original's database with %s is refused, and nothing is changed", (_what, statements, why) => {
  const path = makeDatabase(original, rows, statements)
  const before = readFileSync(path)
  for (let start = 1; start <= 2; start++) expect(() => openStore({ path })).toThrow(why)
  expect(readFileSync(path).equals(before)).toBe(true)
  expect(readdirSync(dirname(path))).toEqual(['numbers.db'])
})

test.each([
  ['a CHECK', 'CREATE TABLE numbers(key TEXT, value INTEGER CHECK (value >= 0))'],
  ['a foreign key',
    'CREATE TABLE k(key TEXT PRIMARY KEY); CREATE TABLE numbers(key TEXT REFERENCES k(key), value INTEGER)'],
])("a table with %s is refused: its owner's rule would be lost", (_what, schema) => {
  const path = makeDatabase(schema)
  expect(() => openStore({ path })).toThrow(/CHECK or a foreign key/)
})

test('a table of the original without rowids is migrated', () => {
  const path = makeDatabase('CREATE TABLE numbers(key TEXT PRIMARY KEY, value INTEGER DEFAULT 0) WITHOUT ROWID', rows)
  openStore({ path })
  expect(totals(path)).toEqual({ a: 1n, b: 20n })
})
