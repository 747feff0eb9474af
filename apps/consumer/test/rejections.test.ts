// What can't be applied: refused where nobody was promised it, kept where somebody was, within limits, and without harm
// to anything else.
import Database from 'better-sqlite3'
import { describe, expect, onTestFinished, test } from 'vitest'
import { int64Max } from '@gearbox/protocol/int64.ts'
import { element, producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { Store } from '../src/store/store.ts'
import { freshPath, openStore, query, totals } from './open-store.ts'

const kept = (path: string): unknown[][] => query(path,
  'SELECT key, value, exact, once, reason FROM rejected ORDER BY id')

/** A store where nothing more can be added to the key "full", and the path of its file. */
function openFull (settings: Partial<ConstructorParameters<typeof Store>[0]> = {}): { store: Store, path: string } {
  const path = freshPath()
  const store = new Store({ path, idempotencyHours: 24, idempotencyRowsMax: 1000, ...settings })
  onTestFinished(() => store.close())
  store.apply([element({ seq: 1, sums: { full: int64Max } })])
  return { store, path }
}

function execute (path: string, sql: string): void {
  const db = new Database(path)
  db.exec(sql)
  db.close()
}

describe('what nobody was promised', () => {
  test('is refused and kept nowhere, with its value for whoever has to send it again', () => {
    const { store, path } = openFull()
    const applied = store.apply([element({
      seq: 2,
      at: Date.now(),
      storedWithinMs: 5000,
      sums: {
        full: 7,
        a: 1,
      },
      once: [{ id: 'x', storedWithinMs: 5000, sums: { a: 1, full: 1 } }],
    })])
    expect(applied.rejections).toEqual([
      { producer: producerA, seq: 2, key: 'full', reason: 'overflow', filed: false, value: '7' },
      { producer: producerA, seq: 2, once: 'x', key: 'full', reason: 'overflow', filed: false },
    ])
    expect(totals(path)).toEqual({ a: 1n, full: int64Max })
    expect(kept(path)).toEqual([])
  })

  test('is reported again to a worker that has no report, although this process died in between', () => {
    const { store, path } = openFull()
    const batch = element({ seq: 2, at: Date.now(), storedWithinMs: 5000, sums: { full: 7 } })
    const rejection = { seq: 2, key: 'full', reason: 'overflow', filed: false, value: '7' }
    expect(store.apply([batch]).rejections).toEqual([{ producer: producerA, ...rejection }])
    store.close()
    const again = openStore({ path }).store
    expect(again.reportsTo(producerA)).toEqual([{ seq: 2, rejections: [rejection], omitted: undefined }])
    expect(again.apply([batch]).repeated)
      .toEqual([{ producer: producerA, seq: 2, rejections: [rejection], omitted: undefined }])
  })

  test.each([
    ['older than half of its replies\' time', { at: -2600 }, Number.POSITIVE_INFINITY, true],
    ['younger than that', { at: -2000 }, Number.POSITIVE_INFINITY, false],
    ['from a clock that is behind, but not long in the queue', { at: -3_600_000 }, 1000, false],
    ['from a clock that is ahead, but not long in the queue', { at: 30 * 86_400_000 }, 1000, false],
    ['from a clock that is ahead, and perhaps long in the queue', { at: 30 * 86_400_000 }, 2600, true],
  ])('is kept all the same in a batch %s: %s', (_what, { at }, queuedMs, filed) => {
    const { store, path } = openFull()
    const applied = store.apply([element({
      seq: 2,
      at: Date.now() +
        at,
      storedWithinMs: 5000,
      sums: { full: 7 },
      once: [{ id: 'x', storedWithinMs: 5000, sums: { full: 1 } }],
    })], queuedMs)
    expect(applied.rejections.map(({ filed = true }) => filed)).toEqual([filed, filed])
    expect(kept(path)).toHaveLength(filed ? 2 : 0)
    const [latest] = query(path, 'SELECT max(at) FROM rejected')[0]!
    expect(Number(latest ?? 0)).toBeLessThanOrEqual(Date.now())
  })

  test('removes what the same request was promised before: its client has got a refusal since', () => {
    const { store, path } = openFull()
    const request = { id: 'x', sums: { full: 1 } }
    store.apply([element({ seq: 2, once: [request, { id: 'y', sums: { full: 1 } }] }),
      element({ seq: 3, once: [request] })])
    expect(kept(path).map(([, , , once]) => once)).toEqual(['x', 'y'])
    store.apply([element({ seq: 4, at: Date.now(), once: [{ ...request, storedWithinMs: 5000 }] })])
    expect(kept(path).map(([, , , once]) => once)).toEqual(['y'])
  })

  test('is kept with what is promised in the same flush, so that a reply to both can be one', () => {
    const { store, path } = openFull()
    execute(path,
      "CREATE TRIGGER guard BEFORE INSERT ON numbers WHEN new.key = 'guarded' BEGIN SELECT RAISE(ABORT, 'no'); END")
    const applied =
      store.apply([element({ seq: 2, at: Date.now(), storedWithinMs: 5000, sums: { full: 7, guarded: 1 } })])
    expect(applied.rejections.map(({ key, reason, filed = true }) => [key, reason, filed]))
      .toEqual([['full', 'overflow', true], ['guarded', 'trigger', true]])
    expect(kept(path)).toHaveLength(2)
  })
})

test('more rejections of a batch than are listed: it is said whether they were kept', () => {
  const { store } = openStore()
  const sums = Object.fromEntries(Array.from({ length: 700 }, (_, i) => [`key ${i}`, int64Max]))
  store.apply([element({ seq: 1, sums })])
  store.apply([element({ seq: 2, sums }), element({ seq: 3, at: Date.now(), storedWithinMs: 5000, sums }),
    element({ seq: 4, at: Date.now(), storedWithinMs: 5000, sums })])
  expect(store.reportsTo(producerA).map(({ seq, rejections, omitted }) => [seq, rejections.length, omitted]))
    .toEqual([[2, 0, 'filed'], [3, 0, 'refused'], [4, 700, undefined]])
})

describe('limits', () => {
  test('from half of them on, what is rejected of one key is added up in one row, exact beyond 64 bits', () => {
    const { store, path } = openFull({ rejectedRowsMax: 10 })
    for (let seq = 2; seq <= 101; seq++) store.apply([element({ seq, sums: { full: int64Max } })])
    const rows = kept(path)
    expect(rows).toHaveLength(5)
    expect(rows.at(-1)).toEqual(['full', null, String(96n * int64Max), null, 'overflow'])
    expect(store.rejected().reduce((sum, { entries }) => sum + entries![0]!.value, 0n)).toBe(100n * int64Max)
    const { id } = store.rejected().at(-1)!
    expect(store.retryRejected(id)).toContain('64 bits')
    execute(path, `UPDATE rejected SET exact = '${int64Max + 5n}' WHERE id = ${id}; UPDATE numbers SET value = -6`)
    expect(store.retryRejected(id)).toBeUndefined()
    expect(totals(path)).toEqual({ full: int64Max - 1n })
  })

  test('promised sums take the place of what is worth less, and what finds no room is reported', () => {
    const { store, path } = openFull({ rejectedRowsMax: 3 })
    store.apply([element({ seq: 2, sums: { b: int64Max }, once: [{ id: 'x', sums: { a: 1 } }] })])
    store.apply([Buffer.from('one'), Buffer.from('two'), element({ seq: 3, once: [{ id: 'x', sums: { a: 2 } }] })])
    expect(kept(path).map(([, , , , reason]) => reason)).toEqual(['unreadable', 'unreadable', 'other body'])
    expect(store.apply([Buffer.from('three')]).dropped).toMatchObject([{ reason: 'unreadable' }])
    expect(store.apply([element({ seq: 4, sums: { full: 1 } })])).toMatchObject({ dropped: [], evicted: 1 })
    expect(store.apply([element({ seq: 5, once: [{ id: 'x', sums: { a: 3 } }] })]))
      .toMatchObject({ dropped: [], evicted: 1 })
    expect(store.apply([element({ seq: 6, once: [{ id: 'x', sums: { a: 4 } }] })]).dropped)
      .toMatchObject([{ reason: 'other body', once: 'x' }])
    expect(store.apply([element({ seq: 7, once: [{ id: 'y', sums: { full: 1 } }, { id: 'z', sums: { full: 1 } }] })]))
      .toMatchObject({ dropped: [], evicted: 2 })
    const last = store.apply([element({ seq: 8, sums: { b: 5 } })])
    expect(last.dropped).toEqual([{ reason: 'overflow', key: 'b', value: 5n, once: undefined }])
    expect(last.rejections).toEqual([{ producer: producerA, seq: 8, key: 'b', reason: 'overflow' }])
    expect(kept(path).map(([key, , , once]) => [key, once])).toEqual([['full', null], ['full', 'y'], ['full', 'z']])
    expect(store.rejectedRows).toBe(3)
    // Room that another connection made is seen.
    execute(path, 'DELETE FROM rejected')
    expect(store.apply([element({ seq: 9, sums: { b: 5 } })]).dropped).toEqual([])
  })

  test('bytes count too, of one large batch and of many', () => {
    const { store, path } = openFull({ rejectedBytesMax: 10_000 })
    expect(store.apply([Buffer.alloc(10_001, 'x')]).dropped).toHaveLength(1)
    for (let i = 0; i < 20; i++) store.apply([Buffer.alloc(2000, String(i))])
    expect(Number(query(path, 'SELECT sum(octet_length(batch)) FROM rejected')[0]![0])).toBeLessThanOrEqual(10_000)
    expect(store.apply([element({ seq: 2, sums: { full: 1 } })]).dropped).toEqual([])
  })

  test('a producer whose numbers are made up does not stop everything', () => {
    const { store } = openStore()
    const increments = 999_999_999_999_999
    for (let first = 1; first < 10_000; first += 250) {
      store.apply(Array.from({ length: 250 },
        (_, i) => element({ seq: first + i, requests: increments, increments, sums: {} })))
    }
    expect(store.apply([element({ seq: 20_000, increments, requests: increments, sums: { a: 1 } })]))
      .toMatchObject({ batches: 1 })
  })
})

describe('a trigger of the database\'s owner', () => {
  const raising = (what: string): string =>
    `CREATE TRIGGER guard BEFORE INSERT ON numbers WHEN new.key LIKE 'guarded%' BEGIN SELECT RAISE(${what}); END`

  describe.each(["ABORT, 'no'", "FAIL, 'no'", "ROLLBACK, 'no'", 'IGNORE'])('that raises %s for a key', (what) => {
    test('sets that key aside, and everything else is applied once', () => {
      const { store, path } = openStore()
      store.apply([element({ seq: 1, sums: { a: 1 } })])
      execute(path, raising(what))
      const run = [
        element({
          seq: 2,
          sums: { a: 1, guarded: 5, b: 1 },
          once: [{ id: 'x', sums: { b: 1 } }, { id: 'y', sums: { b: 1, guarded: 1 } }],
        }),
        element({ producer: producerB, seq: 1, sums: { guarded: 6, 'guarded too': 7, b: 1 } }),
        element({ seq: 3, sums: { b: 1 } }),
      ]
      const applied = store.apply(run)
      expect(applied).toMatchObject({ batches: 3, duplicates: 0, gaps: [] })
      expect(applied.rejections.map(({ producer, seq, key, once, reason }) => [producer, seq, key, once, reason]))
        .toEqual([
          [producerA, 2, 'guarded', undefined, 'trigger'], [producerA, 2, undefined, 'y', 'trigger'],
          [producerB, 1, 'guarded', undefined, 'trigger'], [producerB, 1, 'guarded too', undefined, 'trigger'],
        ])
      expect(totals(path)).toEqual({ a: 2n, b: 4n })
      expect(query(path, 'SELECT id FROM once')).toEqual([['x']])
      expect(store.apply(run)).toMatchObject({ batches: 0, duplicates: 3 })
      // The batches alone, as they would come under light load.
      expect(store.apply([element({ seq: 4, sums: { guarded: 1 } })]).rejections).toHaveLength(1)
      expect(store.apply([element({ seq: 5, sums: { a: 1 } })]).rejections).toEqual([])
      const ids = store.rejected().map(({ id }) => id)
      expect(ids).toHaveLength(5)
      for (const id of ids) expect(store.retryRejected(id)).toContain('trigger')
      execute(path, 'DROP TRIGGER guard')
      for (const id of ids) expect(store.retryRejected(id)).toBeUndefined()
      expect(totals(path)).toEqual({ a: 3n, b: 5n, guarded: 13n, 'guarded too': 7n })
    })

    test('takes no longer for a thousand such keys than it must', () => {
      const { store, path } = openStore()
      execute(path, raising(what))
      const keys = Array.from({ length: 1000 }, (_, i) => `guarded ${i}`)
      const startedAt = performance.now()
      const applied = store.apply(Array.from({ length: 4 },
        (_, i) => element({ seq: i + 1, sums: Object.fromEntries([...keys, 'a'].map((key) => [key, 1])) })))
      expect(performance.now() - startedAt).toBeLessThan(5000)
      expect(applied.rejections).toHaveLength(4000)
      expect(totals(path)).toEqual({ a: 4n })
    })
  })

  test('an index that refuses a value sets aside that key too', () => {
    const { store, path } = openStore()
    execute(path, 'CREATE UNIQUE INDEX one_of_each ON numbers(value)')
    expect(store.apply([element({ seq: 1, sums: { a: 1, b: 1, c: 2 } })]).rejections)
      .toMatchObject([{ key: 'b', reason: 'trigger' }])
    expect(totals(path)).toEqual({ a: 1n, c: 2n })
  })

  test('a trigger that is broken stops the run with its error, and nothing is set aside', () => {
    const { store, path } = openStore()
    store.apply([element({ seq: 1, sums: { a: 1 } })])
    execute(path, 'CREATE TRIGGER broken AFTER UPDATE ON numbers BEGIN INSERT INTO missing VALUES (new.key); END')
    expect(() => store.apply([element({ seq: 2, sums: { a: 1 } })])).toThrow(/missing/)
    expect(kept(path)).toEqual([])
    expect(totals(path)).toEqual({ a: 1n })
  })
})

describe('a wrong clock', () => {
  const markOf = (path: string): number =>
    Number(query(path, "SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'once_mark'")[0]![0])
  const later = (path: string, ms: number): void =>
    execute(path, `UPDATE meta SET value = value + ${ms} WHERE name = 'elapsed_ms'`)

  test('of a worker, 30 days ahead, moves the mark nowhere near', () => {
    const { store, path } = openStore({ idempotencyHours: 1 })
    store.apply([element({ seq: 1, once: [{ id: 'x', at: Date.now() + 30 * 86_400_000, sums: { a: 1 } }] })])
    expect(Number(query(path, 'SELECT at FROM once')[0]![0])).toBeLessThanOrEqual(Date.now())
    store.close()
    later(path, 3_600_001)
    const again = openStore({ path, idempotencyHours: 1 }).store
    again.prune()
    expect(again.idempotencyRows).toBe(0)
    expect(markOf(path)).toBeLessThanOrEqual(Date.now() - 3_600_000)
    expect(again.apply([element({ seq: 2, once: [{ id: 'y', at: Date.now() - 1000, sums: { a: 1 } }] })]).rejections)
      .toEqual([])
  })

  test('that has left a mark in the future heals at open, and rows from then move it no further than ' +
    'they are old', () => {
    const { store, path } = openStore({ idempotencyHours: 1 })
    store.apply([element({ seq: 1, once: [{ id: 'x', at: 5, sums: { a: 1 } }] })])
    store.close()
    const future = Date.now() + 30 * 86_400_000
    execute(path, `UPDATE meta SET value = ${future} WHERE name = 'once_mark'; UPDATE once SET at = ${future}`)
    later(path, 3_600_001)
    const again = openStore({ path, idempotencyHours: 1 }).store
    const healed = markOf(path)
    expect(healed).toBeLessThanOrEqual(Date.now())
    again.prune()
    expect(markOf(path)).toBe(healed)
    expect(again.apply([element({ seq: 2, once: [{ id: 'y', at: Date.now() + 1000, sums: { a: 1 } }] })]).rejections)
      .toHaveLength(Date.now() === healed ? 1 : 0)
  })

  test('of the consumer, set back while it runs, refuses what may be a repeat and nothing after it', async () => {
    const { store, path } = openStore({ idempotencyRowsMax: 1 })
    const now = Date.now
    onTestFinished(() => { Date.now = now })
    Date.now = () => now() + 86_400_000
    store.apply([element({ seq: 1, once: [{ id: 'x', at: Date.now(), sums: { a: 1 } }] }),
      element({ seq: 2, once: [{ id: 'y', at: Date.now(), sums: { a: 1 } }] })])
    expect(markOf(path)).toBeGreaterThan(now())
    Date.now = now
    store.apply([element({ seq: 3, once: [{ id: 'z', at: now() - 1, sums: { a: 1 } }] })])
    const moved = markOf(path)
    expect(moved).toBeLessThanOrEqual(now())
    await new Promise((resolve) => setTimeout(resolve, 5))
    expect(store.apply([element({ seq: 4, once: [{ id: 'w', at: now(), sums: { a: 1 } }] })]).rejections).toEqual([])
  })
})

describe('a database', () => {
  test('of the version before gets what it lacks, and keeps what it has', () => {
    const { store, path } = openFull()
    store.apply([element({ seq: 2, sums: { full: 5 } })])
    store.close()
    execute(path,
      'DROP TABLE reports; DROP INDEX rejected_reason; DROP INDEX rejected_key; ALTER TABLE rejected DROP COLUMN exact')
    const again = openStore({ path }).store
    expect(again.rejected().map(({ entries }) => entries)).toEqual([[{ key: 'full', value: 5n }]])
    again.apply([element({ seq: 3, sums: { full: 6 } })])
    expect(again.reportsTo(producerA)).toHaveLength(1)
    expect(query(path, 'PRAGMA user_version')).toEqual([[1n]])
  })

  test('that lacks nothing can be listed while another program writes to it', () => {
    const { store, path } = openFull()
    store.apply([element({ seq: 2, sums: { full: 5 } })])
    const other = new Database(path)
    onTestFinished(() => { other.close() })
    other.exec('BEGIN IMMEDIATE')
    expect(openStore({ path }).store.rejected()).toHaveLength(1)
  })
})
