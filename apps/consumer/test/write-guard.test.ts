// What a plugin may write: its own tables, whatever its statements look like. What it may read: everything.
import { expect, test } from 'vitest'
import type { Json } from '@gearbox/protocol/plugin-entry.ts'
import { element } from '@gearbox/test-kit/batches.ts'
import { openStore, query, totals } from './open-store.ts'
import { namedPlugin } from './plugin-parts.ts'

const migrations = [`
  CREATE TABLE my_list_items(number INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT UNIQUE) STRICT;
  CREATE TABLE my_list_parts(number INTEGER REFERENCES my_list_items(number) ON DELETE CASCADE) STRICT;
  CREATE TABLE my_list_log(text TEXT) STRICT;
  CREATE VIRTUAL TABLE my_list_words USING fts5(text);
  CREATE VIEW my_list_view AS SELECT text FROM my_list_log;
  CREATE TRIGGER my_list_noted INSTEAD OF INSERT ON my_list_view BEGIN INSERT INTO my_list_log VALUES (new.text); END;
  CREATE TABLE my_list_bad(text TEXT) STRICT;
  CREATE TRIGGER my_list_counted AFTER INSERT ON my_list_bad BEGIN UPDATE numbers SET value = value + 1; END;
`]

/** Executes statements of a plugin, each as an entry of its own. @returns results, or why each failed */
function execute (statements: readonly string[]): { outcomes: Json[], path: string, reasons: string[] } {
  const reasons: string[] = []
  const { store, path } = openStore({
    plugins: [namedPlugin('my-list', {
      migrations,
      apply: ({ data }, { database }) => {
        try {
          return /^SELECT/i.test(String(data)) ? database.all<{ x: Json }>(String(data)) : database.run(String(data))
        } catch (error) {
          reasons.push(String(error))
          throw error
        }
      },
    })],
  })
  store.apply([element({ seq: 1, sums: { a: 1, b: 2 } })])
  const entries = statements.map((data) => ({ plugin: 'my-list', data }))
  const { results } = store.apply([element({ seq: 2, entries })])
  return { outcomes: results.map(({ outcome }) => 'result' in outcome ? outcome.result : null), path, reasons }
}

test('its own tables, with what belongs to them', () => {
  const { outcomes, path, reasons } = execute([
    "INSERT INTO my_list_items(text) VALUES ('one'), ('two')",
    "INSERT INTO main.\"MY_LIST_ITEMS\"(text) VALUES ('one') ON CONFLICT DO UPDATE SET text = 'three'",
    "REPLACE INTO my_list_items(text) VALUES ('two')",
    'WITH a AS (SELECT max(number) AS n FROM my_list_items) INSERT INTO my_list_parts SELECT n FROM a',
    'DELETE FROM my_list_items WHERE number > 1',
    'INSERT INTO my_list_log SELECT key FROM numbers /* INSERT INTO numbers */',
    'DELETE FROM my_list_log',
    "INSERT INTO my_list_view VALUES ('seen')",
    "INSERT INTO my_list_words VALUES ('word')",
    'SELECT count(*) AS x FROM numbers',
    "SELECT 'DELETE FROM numbers' AS x",
  ])
  expect(reasons).toEqual([])
  expect(outcomes).toEqual([2, 1, 1, 1, 1, 2, 2, 0, 1, [{ x: 2 }], [{ x: 'DELETE FROM numbers' }]])
  expect(query(path, 'SELECT text FROM my_list_items').flat()).toEqual(['three'])
  expect(query(path, 'SELECT count(*) FROM my_list_parts').flat()).toEqual([0n])
  expect(query(path, 'SELECT text FROM my_list_log').flat()).toEqual(['seen'])
})

test.each([
  'UPDATE numbers SET value = 9',
  "INSERT INTO numbers(key, value) VALUES ('c', 1)",
  "INSERT INTO numbers(key, value) SELECT 'c', 1 WHERE 0",
  "REPLACE INTO \"numbers\" VALUES ('a', 9)",
  'DELETE FROM numbers',
  "DELETE FROM main.[Numbers] WHERE key = 'a' RETURNING key",
  "WITH my_list_items AS (SELECT 'a' AS k) UPDATE numbers SET value = 9 FROM my_list_items WHERE key = k",
  'DELETE FROM producers',
  'UPDATE once SET at = 0',
  "UPDATE meta SET value = 'x'",
  'DELETE FROM results',
  'DELETE FROM rejected',
  'DELETE FROM corrections',
  'UPDATE sqlite_sequence SET seq = 0',
  "INSERT INTO my_list_bad VALUES ('by a trigger')",
])('nothing else: %s', (sql) => {
  const { outcomes, path, reasons } = execute([sql, 'SELECT 1 AS x'])
  expect(outcomes).toEqual([null, [{ x: 1 }]])
  const refusal = /^TypeError: it writes (the table "\w+", which is not|no table of) its own/
  expect(reasons).toEqual([expect.stringMatching(refusal)])
  expect(totals(path)).toEqual({ a: 1n, b: 2n })
  expect(query(path, 'SELECT count(*) FROM producers').flat()).toEqual([1n])
})
