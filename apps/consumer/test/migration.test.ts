// Databases made by the original, and what becomes of them.
import { copyFileSync, existsSync, readdirSync } from 'node:fs'
import { dirname } from 'node:path'
import Database from 'better-sqlite3'
import { expect, test } from 'vitest'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { element } from '../../../packages/queue/test/batches.ts'
import { freshPath, openStore, query, totals } from './open-store.ts'

// As the original makes it.
const original = 'CREATE TABLE numbers(key TEXT, value INTEGER DEFAULT 0); CREATE UNIQUE INDEX numbers_key_index ON numbers(key)'

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
  ['with values at both ends', ["('most', 9223372036854775807)", "('least', -9223372036854775808)"], { most: 2n ** 63n - 1n, least: -(2n ** 63n) }],
  ['with odd keys', ["('', 1)", "('a''b', 2)", "('ключ', 3)", "('__proto__', 4)"], { '': 1n, "a'b": 2n, ключ: 3n, ['__proto__']: 4n }],
])("the original's database %s is taken over, with a copy beside it", (_what, rows, expected) => {
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
  ['the REAL 7.0', '7.0', 7n], ['the REAL -0.0', '-0.0', 0n], ['the REAL 2^62', '4611686018427387904.0', 2n ** 62n], ['the REAL -2^63', '-9223372036854775808.0', -(2n ** 63n)],
  ["the TEXT '7'", "'7'", 7n], ["the TEXT '-9223372036854775808'", "'-9223372036854775808'", -(2n ** 63n)], ['NULL', 'NULL', 0n],
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
])('%s stops it, with the row named and every row as it was, however often it is started', (_what, schema, rows, named) => {
  const path = makeDatabase(schema, "INSERT INTO numbers VALUES ('fine', 1)", ...rows.map((row) => `INSERT INTO numbers VALUES ${row}`))
  const before = [query(path, contents), query(path, schemas)]
  expect(() => openStore({ path })).toThrow(FatalError)
  for (let start = 1; start <= 3; start++) expect(() => openStore({ path })).toThrow(named)
  expect([query(path, contents), query(path, schemas)]).toEqual(before)
  expect(query(path, 'PRAGMA user_version')).toEqual([[0n]])
  // A supervisor would start it again and again: copies of a large database would fill the disk.
  expect(readdirSync(dirname(path)).filter((name) => name.includes('original')).length).toBeLessThanOrEqual(1)
})

test("somebody else's table of that name is refused and left alone", () => {
  const path = makeDatabase('CREATE TABLE numbers(n INTEGER, name TEXT)', "INSERT INTO numbers VALUES (1, 'one')")
  expect(() => openStore({ path })).toThrow(FatalError)
  expect(() => openStore({ path })).toThrow(/somebody else's/)
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
