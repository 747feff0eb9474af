// Plugins that follow what is counted: they get exactly what was added, whichever way a run was applied.
import Database from 'better-sqlite3'
import { describe, expect, test } from 'vitest'
import { int64Max } from '@gearbox/protocol/int64.ts'
import type { Changes, ConsumerPart } from '@gearbox/runtime/plugin.ts'
import { element, producerA, producerB } from '@gearbox/test-kit/batches.ts'
import type { Store } from '../src/store/store.ts'
import { freshPath, openStore, query, totals } from './open-store.ts'
import { append, listPlugin, namedPlugin, type NoSettings } from './plugin-parts.ts'

/** A plugin that adds up on its own what it is told: its table must always be the table of totals. */
const mirror: ConsumerPart<NoSettings> = {
  migrations: ['CREATE TABLE list_totals(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID'],
  apply: ({ data }) => data,
  afterSums: ({ sums }, { database }) => {
    for (const { json } of sums) {
      database.run(`
        INSERT INTO list_totals(key, value) SELECT key, value FROM json_each(?) WHERE true
        ON CONFLICT(key) DO UPDATE SET value = value + excluded.value`, json)
    }
  },
}

function openMirror (path = freshPath()): { store: Store, path: string } {
  return openStore({ path, plugins: [listPlugin(mirror)] })
}

function mirrored (path: string): { [key: string]: bigint } {
  return Object.fromEntries(query(path, 'SELECT key, value FROM list_totals')
    .map(([key, value]) => [String(key), BigInt(String(value))]))
}

const awkward = { 'a"},"once":[': 1, '\\': 2, '}': 3, 'é😀': 4, '"sums":{': 5, big: int64Max, least: -(2n ** 63n) }

test('sums and idempotent requests of a run are passed on, each once, and repeats are not', () => {
  const { store, path } = openMirror()
  const request = { id: 'x', sums: { a: 10, once: 1 } }
  const run = [
    element({ seq: 1, sums: { a: 1, ...awkward } }),
    element({ seq: 2, sums: { a: 2 }, once: [request], entries: [{ plugin: 'list', data: ',"plugins":[' }] }),
    element({ producer: producerB, seq: 1, storedWithinMs: 5000, once: [request] }),
    element({ producer: producerB, seq: 2, sums: { zero: 0 } }),
  ]
  store.apply(run)
  store.apply(run)
  store.apply([run[0]!, element({ seq: 3, sums: { a: 4 } })])
  expect(totals(path)).toEqual({
    a: 17n,
    once: 1n,
    zero: 0n,
    ...Object.fromEntries(
      Object.entries(awkward).map(([key, value]) => [key, BigInt(value)]))
  })
  expect(mirrored(path)).toEqual(totals(path))
})

test('what was refused is left out, and all else of the same batch is not', () => {
  const { store, path } = openMirror()
  store.apply([element({ seq: 1, sums: { full: int64Max } })])
  const { rejections } = store.apply([
    element({
      seq: 2,
      sums: { full: 1, a: 1, ...awkward },
      once: [{ id: 'x', sums: { full: 1, b: 1 } },
        { id: 'y', sums: { b: 2 } }]
    }),
    element({ seq: 3, sums: { a: 1, full: 2 } }),
  ])
  expect(rejections).toHaveLength(3)
  expect(mirrored(path)).toEqual(totals(path))
  expect(totals(path)).toMatchObject({ a: 2n, b: 2n, full: int64Max })
})

test('what a trigger of the owner refuses is left out, also where it ends the transaction', () => {
  const { store, path } = openMirror()
  const db = new Database(path)
  db.exec(`
    CREATE TRIGGER no BEFORE INSERT ON numbers WHEN new.key = 'no' BEGIN SELECT RAISE(ABORT, 'no'); END;
    CREATE TRIGGER out BEFORE INSERT ON numbers WHEN new.key = 'out' BEGIN SELECT RAISE(IGNORE); END;
    CREATE TRIGGER end BEFORE INSERT ON numbers WHEN new.key = 'end' BEGIN SELECT RAISE(ROLLBACK, 'end'); END`)
  db.close()
  store.apply([element({ seq: 1, sums: { a: 1, no: 1, out: 1, end: 1 }, once: [{ id: 'x', sums: { b: 1, end: 1 } }] })])
  expect(totals(path)).toEqual({ a: 1n })
  expect(mirrored(path)).toEqual({ a: 1n })
})

test('a batch of another program is read by SQLite where its sums can not be cut out', () => {
  const { store, path } = openMirror()
  const header = `"requests":1,"increments":1,"producer":"${producerA}","at":1`
  const batches = [
    `{"v":1,"seq":1,${header},"sums":{"a":1}}`,
    `{"v":1,"seq":2,${header},"extra":{"sums":{"a":100},"once":[]},"sums":{"a":2},"once":[]}`,
    `{"v":1, "seq":3,${header}, "once":[{"id":"x","at":1,"sums":{"a":4}}], "sums" : {"a":8} }`,
    `{"v":1,"producer":"${producerA}","seq":4,"at":1,"requests":1,"increments":1,"sums":{"a":16},"x":{},"once":[]}`,
    `{"v":1,"producer":"${producerA}","seq":5,"at":1,"requests":1,"increments":1,"sums":{"a":32} ,"once":[]}`,
  ]
  store.apply(batches.map((text) => Buffer.from(text)))
  expect(totals(path)).toEqual({ a: 63n })
  expect(mirrored(path)).toEqual({ a: 63n })
})

test('what is retried from the rejected is passed on, also a sum beyond 64 bits', () => {
  const { store, path } = openStore({ plugins: [listPlugin(mirror)] })
  store.apply([element({ seq: 1, sums: { full: int64Max } }), element({ seq: 2, sums: { full: int64Max } })])
  const db = new Database(path)
  db.prepare('UPDATE rejected SET value = NULL, exact = ?').run(String(int64Max + 10n))
  db.exec("UPDATE numbers SET value = -20; UPDATE list_totals SET value = -20 WHERE key = 'full'")
  db.close()
  expect(store.retryRejected(1n)).toBeUndefined()
  expect(totals(path)).toEqual({ full: int64Max - 10n })
  expect(mirrored(path)).toEqual(totals(path))
})

test('a batch with entries that the release before filed is applied by a retry, once', () => {
  const { store, path } = openStore({ plugins: [listPlugin()] })
  const file = (batch: Buffer): void => {
    const db = new Database(path)
    db.prepare("INSERT INTO rejected(reason, at, batch) VALUES ('unreadable', 1, ?)").run(batch)
    db.close()
  }
  const batch = element({ seq: 1, sums: { a: 1 }, entries: [{ plugin: 'list', data: 'one' }] })
  file(batch)
  file(batch)
  expect(store.retryRejected(1n)).toBeUndefined()
  expect(store.results.read(producerA, 1)).toMatchObject([{ outcome: { result: 1 } }])
  expect(store.retryRejected(2n)).toMatch(/came again/)
  expect(totals(path)).toEqual({ a: 1n })
  expect(store.rejected()).toEqual([])
})

describe('a plugin that fails', () => {
  test('in afterSums stops the run until it works: nothing is stored meanwhile', () => {
    let isBroken = true
    const { store, path } = openStore({
      plugins: [listPlugin({
        afterSums: (_run, { database }) => {
          database.run("INSERT INTO list_items(text) VALUES ('x')")
          if (isBroken) throw new Error('a bug')
        },
      })],
    })
    const run = [element({ seq: 1, sums: { a: 1 } })]
    expect(() => store.apply(run)).toThrow('plugin list failed in afterSums: a bug')
    expect(totals(path)).toEqual({})
    isBroken = false
    expect(store.apply(run)).toMatchObject({ batches: 1, duplicates: 0 })
    expect(query(path, 'SELECT count(*) FROM list_items').flat()).toEqual([1n])
  })

  test('in afterCommit is no harm: the run is stored', () => {
    const { store, path } = openStore({
      plugins: [listPlugin({ afterCommit: () => { throw new Error('a bug') } }),
        namedPlugin('other', { afterCommit: async () => { throw new Error('late') } })],
    })
    expect(store.apply([element({ seq: 1, sums: { a: 1 } })])).toMatchObject({ batches: 1 })
    expect(totals(path)).toEqual({ a: 1n })
  })
})

test('after a commit a plugin gets what was added, and the results of its own entries that are new', () => {
  const commits: Changes[] = []
  const { store } = openStore({
    plugins: [listPlugin({ apply: append, afterCommit: (changes) => { commits.push(changes) } })],
  })
  const batch = element({ seq: 1, sums: { a: 1 }, entries: [{ plugin: 'list', data: 'x' }, { plugin: 'no', data: 1 }] })
  store.apply([batch])
  store.apply([batch])
  expect(commits).toEqual([
    { sums: [{ at: 1_700_000_000_000, json: '{"a":1}' }], corrected: [], results: [1] },
  ])
})
