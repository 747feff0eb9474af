// Corrections of totals: exact, on a condition, written down, and known to plugins that follow them.
import Database from 'better-sqlite3'
import { expect, test } from 'vitest'
import { int64Max, int64Min } from '@gearbox/protocol/int64.ts'
import type { EntryOutcome, Json } from '@gearbox/protocol/plugin-entry.ts'
import type { Correction } from '@gearbox/runtime/plugin.ts'
import { element } from '@gearbox/test-kit/batches.ts'
import type { Store } from '../src/store/store.ts'
import { openStore, query, totals } from './open-store.ts'
import { listPlugin } from './plugin-parts.ts'

let seq = 100

function correct (store: Store, data: Json): EntryOutcome | undefined {
  seq++
  return store.apply([element({ seq, entries: [{ plugin: 'totals', data }] })]).results[0]?.outcome
}

test('a total is set and removed, exactly over all 64 bits, and each correction is written down', () => {
  const { store, path } = openStore()
  store.apply([element({ seq: 1, sums: { a: 5 } })])
  expect(correct(store, { key: 'a', total: String(int64Max), by: 'admin 1' }))
    .toEqual({ result: { key: 'a', before: '5', after: String(int64Max) } })
  expect(correct(store, { key: 'a', total: String(int64Min) }))
    .toEqual({ result: { key: 'a', before: String(int64Max), after: String(int64Min) } })
  expect(totals(path)).toEqual({ a: int64Min })
  expect(correct(store, { key: 'a', total: null, by: 'x'.repeat(1000) }))
    .toEqual({ result: { key: 'a', before: String(int64Min), after: null } })
  expect(correct(store, { key: 'new', total: '0' })).toEqual({ result: { key: 'new', before: null, after: '0' } })
  expect(correct(store, { key: 'none', total: null })).toMatchObject({ error: { code: 'GBX_NOT_FOUND' } })
  expect(totals(path)).toEqual({ new: 0n })
  expect(query(path, 'SELECT key, before, after, by, at > 1700000000000 FROM corrections')).toEqual([
    ['a', 5n, int64Max, 'admin 1', 1n],
    ['a', int64Max, int64Min, null, 1n],
    ['a', int64Min, null, 'x'.repeat(256), 1n],
    ['new', null, 0n, null, 1n],
  ])
})

test('a correction on a condition that is not met changes nothing, and says what the total is', () => {
  const { store, path } = openStore()
  store.apply([element({ seq: 1, sums: { a: int64Max } })])
  expect(correct(store, { key: 'a', total: '1', if: String(int64Max - 1n) })).toMatchObject({
    error: { statusCode: 412, code: 'GBX_PRECONDITION_FAILED', details: { total: String(int64Max) } },
  })
  expect(correct(store, { key: 'none', total: '1', if: '0' }))
    .toMatchObject({ error: { code: 'GBX_PRECONDITION_FAILED', details: { total: null } } })
  expect(totals(path)).toEqual({ a: int64Max })
  expect(query(path, 'SELECT * FROM corrections')).toEqual([])
  expect(correct(store, { key: 'a', total: '1', if: String(int64Max) })).toHaveProperty('result.after', '1')
})

test.each([
  ['no object', 'a'], ['no key', { total: '1' }], ['no total', { key: 'a' }], ['a total that is a number',
    { key: 'a', total: 1 }], ['a total beyond 64 bits', { key: 'a', total: String(int64Max + 1n) }],
  ['a condition that is no total', { key: 'a', total: '1', if: 'x' }],
])('what is not a correction is refused: %s', (_what, data) => {
  const { store, path } = openStore()
  expect(correct(store, data)).toMatchObject({ error: { statusCode: 400 } })
  expect(totals(path)).toEqual({})
})

test.each([
  ['an error', "SELECT RAISE(ABORT, 'no')", 'GBX_REFUSED_BY_DATABASE'],
  ['leaving it out', 'SELECT RAISE(IGNORE)', 'GBX_REFUSED_BY_DATABASE'],
  ['ending the transaction', "SELECT RAISE(ROLLBACK, 'no')", 'GBX_PLUGIN_FAILED'],
])('a trigger of the owner refuses a correction by %s: nothing is changed, and its client knows', (_how, sql, code) => {
  const { store, path } = openStore()
  store.apply([element({ seq: 1, sums: { a: 5, b: 1 } })])
  const db = new Database(path)
  db.exec(`CREATE TRIGGER guard BEFORE UPDATE ON numbers WHEN new.key = 'a' BEGIN ${sql}; END`)
  db.close()
  expect(correct(store, { key: 'a', total: '6' })).toMatchObject({ error: { code } })
  expect(correct(store, { key: 'b', total: '2' })).toHaveProperty('result.after', '2')
  expect(totals(path)).toEqual({ a: 5n, b: 2n })
})

test('plugins follow corrections in their transaction: one that throws undoes it', () => {
  const seen: Correction[] = []
  const corrected: string[][] = []
  const { store, path } = openStore({
    plugins: [listPlugin({
      afterCorrection: (correction, { database }) => {
        seen.push(correction)
        database.run('INSERT INTO list_items(text) VALUES (?)', `${correction.before} to ${correction.after}`)
        if (correction.key === 'bad') throw new Error('not this one')
      },
      afterCommit: (changes) => corrected.push([...changes.corrected]),
    })],
  })
  expect(correct(store, { key: 'a', total: '6' })).toHaveProperty('result')
  expect(correct(store, { key: 'bad', total: '6' })).toMatchObject({ error: { code: 'GBX_PLUGIN_FAILED' } })
  expect(correct(store, { key: 'a', total: null })).toHaveProperty('result')
  expect(seen[0]).toEqual({ key: 'a', before: undefined, after: 6n })
  expect(query(path, 'SELECT text FROM list_items').flat()).toEqual(['undefined to 6', '6 to undefined'])
  expect(corrected).toEqual([['a'], ['a']])
  expect(totals(path)).toEqual({})
})

test('a repeat of a correction with an id has its result, and changes nothing again', () => {
  const { store, path } = openStore()
  const entry = { plugin: 'totals', data: { key: 'a', total: '6' }, id: 'a'.repeat(64), at: Date.now() }
  const outcomes = [1, 2].map((seq) => store.apply([element({ seq, entries: [entry] })]).results[0]?.outcome)
  expect(outcomes[0]).toEqual({ result: { key: 'a', before: null, after: '6' } })
  expect(outcomes[1]).toEqual(outcomes[0])
  expect(query(path, 'SELECT count(*) FROM corrections').flat()).toEqual([1n])
})
