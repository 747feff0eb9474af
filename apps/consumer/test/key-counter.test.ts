// Counting keys next to a consumer: exact at rest, never holding a snapshot for long, and never more often than once a
// minute.
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { pino } from 'pino'
import { expect, onTestFinished, test } from 'vitest'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { KeyCounter } from '../src/store/key-counter.ts'

/** A database in WAL mode with so many keys; more than one slice of the count are in 50,000. */
function makeDatabase (keys: number): { path: string, db: Database.Database } {
  const path = join(temporaryDir(), 'numbers.db')
  const db = new Database(path)
  onTestFinished(() => { db.close() })
  db.pragma('journal_mode = WAL')
  db.exec('CREATE TABLE numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID')
  addKeys(db, 'key', keys)
  return { path, db }
}

function addKeys (db: Database.Database, prefix: string, keys: number): void {
  db.prepare(`INSERT INTO numbers
    WITH RECURSIVE i(n) AS (SELECT 1 WHERE @keys > 0 UNION ALL SELECT n + 1 FROM i WHERE n < @keys)
    SELECT @prefix || n, n FROM i`).run({ prefix, keys })
}

function makeCounter (path: string): KeyCounter {
  const counter = new KeyCounter(path, pino({ level: 'silent' }))
  onTestFinished(async () => { await counter.close() })
  return counter
}

test.each([0, 1, 19_999, 20_000, 20_001, 50_000])('%i keys are counted', async (keys) => {
  const { path } = makeDatabase(keys)
  const counter = makeCounter(path)
  expect(counter.keys, 'nobody asked yet').toBe(undefined)
  await counter.refresh()
  expect(await until('the count', () => counter.keys === keys)).toBe(true)
})

test('asked again within a minute, the last count is returned', async () => {
  const { path, db } = makeDatabase(10)
  const counter = makeCounter(path)
  await counter.refresh()
  await until('the first count', () => counter.keys === 10)
  addKeys(db, 'more', 5)
  for (let asks = 1; asks <= 20; asks++) await counter.refresh()
  expect(counter.keys).toBe(10)
})

test('while a large table is counted, checkpoints cut back the WAL', async () => {
  const { path, db } = makeDatabase(2_000_000)
  const counter = makeCounter(path)
  let counted = false
  const counting = counter.refresh().then(async () => await until('the count', () => counter.keys === 2_000_000))
    .then(() => { counted = true })
  let checkpoints = 0
  await until('checkpoints while it counts', () => {
    db.exec("UPDATE numbers SET value = value + 1 WHERE key = 'key1'")
    const [{ busy }] = db.pragma('wal_checkpoint(TRUNCATE)') as [{ busy: number }]
    if (busy === 0 && !counted) checkpoints++
    return checkpoints >= 20 || counted
  })
  expect(checkpoints).toBeGreaterThanOrEqual(20)
  await counting
})

test('a database that can not be read has no count, and closing ends one under way', async () => {
  const missing = makeCounter(join(temporaryDir(), 'none.db'))
  await missing.refresh()
  expect(missing.keys).toBe(undefined)
  const { path } = makeDatabase(500_000)
  const counter = makeCounter(path)
  const counting = counter.refresh()
  await counter.close()
  await counting
  expect(counter.keys).toBe(undefined)
})
