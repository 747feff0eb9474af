// Entries of plugins in the store: applied once in the transaction of their batch, each on its own, whatever fails in
// one of them.
import Database from 'better-sqlite3'
import { describe, expect, test } from 'vitest'
import type { Json, PluginEntry } from '@gearbox/protocol/plugin-entry.ts'
import { refuse, type ConsumerPart } from '@gearbox/runtime/plugin.ts'
import { captureLog } from '@gearbox/test-kit/captured-log.ts'
import { element, producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { Store } from '../src/store/store.ts'
import { freshPath, openStore, query, totals } from './open-store.ts'
import { append, listMigration, listPlugin, recordingPlugin, type NoSettings } from './plugin-parts.ts'

type Apply = NonNullable<ConsumerPart<NoSettings>['apply']>

const list = (data: Json): PluginEntry => ({ plugin: 'list', data })

const items = (path: string): unknown[] => query(path, 'SELECT text FROM list_items ORDER BY number').flat()

const results = (path: string): unknown[][] => query(path,
  'SELECT seq, entry, result FROM results ORDER BY producer, seq, entry')
  .map(([seq, entry, result]) => [Number(seq), Number(entry), JSON.parse(String(result))])

const pluginFailed = { error: expect.objectContaining({ statusCode: 500, code: 'GBX_PLUGIN_FAILED' }) }

function execute (path: string, sql: string): void {
  const db = new Database(path)
  db.exec(sql)
  db.close()
}

test('entries are applied in their order, after the sums, and their results are kept and returned', () => {
  const { loaded, calls } = recordingPlugin((entry, context) => {
    const sum = context.database.get<{ value: number }>("SELECT value FROM numbers WHERE key = 'a'")?.value
    return { number: append(entry, context), sum: sum ?? null }
  })
  const { store, path } = openStore({ plugins: [loaded] })
  const { results: returned } = store.apply([
    element({ seq: 1, sums: { a: 1 }, entries: [list('one'), list('two')] }),
    element({ seq: 2, sums: { a: 2 }, once: [{ id: 'x', sums: { a: 4 } }], entries: [list('three')] }),
  ])
  const all = [
    { seq: 1, entry: 0, outcome: { result: { number: 1, sum: 7 } } },
    { seq: 1, entry: 1, outcome: { result: { number: 2, sum: 7 } } },
    { seq: 2, entry: 0, outcome: { result: { number: 3, sum: 7 } } },
  ]
  expect(returned).toMatchObject(all.map((result) => ({ ...result, producer: producerA })))
  expect(results(path)).toEqual(all.map(({ seq, entry, outcome }) => [seq, entry, outcome]))
  expect(items(path)).toEqual(['one', 'two', 'three'])
  expect(calls[2]).toEqual({ data: 'three', producer: producerA, seq: 2, entry: 0, at: 1_700_000_000_000 })
})

test('a batch that comes again has the same results, and apply is not asked again, also by another process', () => {
  const { loaded, calls } = recordingPlugin()
  const { store, path } = openStore({ plugins: [loaded] })
  const batch = element({ seq: 1, entries: [list('one'), list('two')] })
  const first = store.apply([batch])
  expect(store.apply([batch])).toMatchObject({ duplicates: 1, results: first.results, entries: [] })
  store.close()
  const again = openStore({ path, plugins: [loaded] }).store
  expect(again.apply([batch, element({ seq: 2, entries: [list('three')] })]).results.map(({ outcome }) => outcome))
    .toEqual([{ result: 1 }, { result: 2 }, { result: 3 }])
  expect(again.results.read(producerA, 1)).toEqual(first.results)
  expect(calls).toHaveLength(3)
})

test('a batch twice in one run is applied once', () => {
  const { loaded, calls } = recordingPlugin()
  const { store } = openStore({ plugins: [loaded] })
  const batch = element({ seq: 1, entries: [list('one')] })
  expect(store.apply([batch, batch]).results.map(({ outcome }) => outcome)).toEqual([{ result: 1 }])
  expect(calls).toHaveLength(1)
})

test('the batch of an entry is never in the future for its plugin', () => {
  const { loaded, calls } = recordingPlugin()
  openStore({ plugins: [loaded] }).store.apply([
    element({ seq: 1, at: Date.now() + 3_600_000, entries: [list('one')] }),
  ])
  expect(calls[0]?.at).toBeLessThanOrEqual(Date.now())
})

describe('an entry that fails', () => {
  const failing = new Map<string, [Apply, unknown]>([
    ['throws', [() => { throw new Error('no luck') }, pluginFailed]],
    ['throws what is no error', [() => { throw 'no luck' }, pluginFailed]], // eslint-disable-line no-throw-literal
    ['throws what can not be read', [() => { throw Object.create(null) }, pluginFailed]],
    ['throws an error whose message throws', [() => {
      throw Object.defineProperty(new Error(), 'message', { get: () => { throw new Error('no message') } })
    }, pluginFailed]],
    ['returns a promise', [() => Promise.reject(new Error('late')) as unknown as Json, pluginFailed]],
    ['returns nothing', [() => undefined as unknown as Json, pluginFailed]],
    ['returns what is no JSON', [() => 1n as unknown as Json, pluginFailed]],
    ['returns more than 4 KiB', [() => 'x'.repeat(4096), pluginFailed]],
    ['executes something else than a statement of data', [(_entry, { database }) => database.run('COMMIT'),
      pluginFailed]],
    ['executes two statements', [(_entry, { database }) =>
      database.run("DELETE FROM list_items; INSERT INTO list_items(text) VALUES ('x')"), pluginFailed]],
    ['breaks a constraint', [(_entry, { database }) => database.run('INSERT INTO list_items(text) VALUES (NULL)'),
      pluginFailed]],
    ['refuses', [() => { throw refuse(409, 'GBX_SOLD_OUT', 'sold out', { left: 0 }) },
      { error: { statusCode: 409, code: 'GBX_SOLD_OUT', message: 'sold out', details: { left: 0 } } }]],
    ['refuses with what is no error reply', [() => { throw refuse(200, 'FINE', 'fine') }, pluginFailed]],
    ['refuses with more than 4 KiB', [() => { throw refuse(409, 'GBX_X', 'x'.repeat(5000)) }, pluginFailed]],
  ])

  test.each([...failing.keys()])('as it %s leaves nothing, and all around it is applied', (what) => {
    const [apply, outcome] = failing.get(what)!
    const { store, path } = openStore({
      plugins: [listPlugin({
        apply: (entry, context) => {
          const number = append(entry, context)
          return entry.data === 'bad' ? apply(entry, context) : number
        },
      })],
    })
    const applied = store.apply([element({ seq: 1, sums: { a: 1 }, entries: [list('one'), list('bad'), list('two')] }),
      element({ seq: 2, sums: { a: 1 } })])
    expect(applied.results.map((result) => result.outcome)).toEqual([{ result: 1 }, outcome, { result: 2 }])
    expect(items(path)).toEqual(['one', 'two'])
    expect(totals(path)).toEqual({ a: 2n })
    const kind = outcome === pluginFailed ? 'failed' : 'refused'
    expect(applied.entries.map((entry) => entry.outcome)).toEqual(['applied', kind, 'applied'])
  })

  test('of no plugin at the consumer gets an error, and nothing is set aside', () => {
    const { store, path } = openStore({ plugins: [listPlugin({})] })
    const entries = [{ plugin: 'other', data: 1 }, list(1)]
    const applied = store.apply([element({ seq: 1, sums: { a: 1 }, entries })])
    const error = { statusCode: 503, code: 'GBX_NO_PLUGIN' }
    expect(applied.results.map(({ outcome }) => outcome)).toMatchObject([{ error }, { error }])
    expect(applied.rejections).toEqual([])
    expect(totals(path)).toEqual({ a: 1n })
  })

  test('a result is that of its own entry, although the plugin uses the same object again', () => {
    const reused = { number: 0 }
    const { store } = openStore({
      plugins: [listPlugin({ apply: () => { reused.number++; return reused as unknown as Json } })],
    })
    expect(store.apply([element({ seq: 1, entries: [list(1), list(2)] })]).results.map(({ outcome }) => outcome))
      .toEqual([{ result: { number: 1 } }, { result: { number: 2 } }])
  })
})

describe('a transaction that an entry ends', () => {
  const guard = `CREATE TRIGGER guard BEFORE INSERT ON list_items WHEN new.text LIKE 'bad%'
    BEGIN SELECT RAISE(ROLLBACK, 'no bad ones'); END`
  const swallow: Apply = (entry, context) => {
    try {
      return append(entry, context)
    } catch {
      try {
        context.database.run("INSERT INTO list_items(text) VALUES ('after the end')")
      } catch {}
      return 'all is well'
    }
  }

  const plugins = [['lets the error pass', append], ['goes on', swallow]] as const
  test.each(plugins)('is lost for nobody else: the plugin %s', (_what, apply) => {
    const { loaded, calls } = recordingPlugin(apply)
    const { store, path } = openStore({ plugins: [loaded] })
    execute(path, guard)
    const applied = store.apply([
      element({ seq: 1, sums: { a: 1 }, entries: [list('one'), list('bad'), list('two')] }),
      element({
        producer: producerB,
        seq: 1,
        sums: { a: 1 },
        once: [{ id: 'x', sums: { b: 1 } }],
        entries: [list('bad too')]
      }),
    ])
    expect(applied.results.map(({ outcome }) => outcome))
      .toEqual([{ result: 1 }, pluginFailed, { result: 2 }, pluginFailed])
    expect(totals(path)).toEqual({ a: 2n, b: 1n })
    expect(items(path)).toEqual(['one', 'two'])
    expect(query(path, 'SELECT producer, high FROM producers')).toHaveLength(2)
    expect(calls.filter(({ data }) => String(data).startsWith('bad')), 'each is tried once').toHaveLength(2)
  })

  test('again and again in one batch: after ten of them the others of that plugin are not tried', () => {
    const { loaded, calls } = recordingPlugin()
    const { store, path } = openStore({ plugins: [loaded] })
    execute(path, guard)
    const entries = Array.from({ length: 200 }, (_, i) => list(`bad ${i}`))
    const applied = store.apply([element({ seq: 1, sums: { a: 1 }, entries })])
    expect(applied.results).toHaveLength(200)
    expect(applied.results.every(({ outcome }) => 'error' in outcome)).toBe(true)
    expect(calls).toHaveLength(10)
    expect(totals(path)).toEqual({ a: 1n })
  })
})

describe('a disk that is full within apply', () => {
  const fill: Apply = (entry, { database }) => {
    for (let i = 0; i < 100; i++) database.run('INSERT INTO list_items(text) VALUES (?)', 'x'.repeat(10_000))
    return String(entry.data)
  }
  const fillInSilence: Apply = (entry, context) => {
    try {
      return fill(entry, context)
    } catch {
      return 'all is well'
    }
  }

  test.each([['lets the error pass', fill], ['goes on', fillInSilence]])(
    'gives up the whole run, which is applied once there is room: the plugin %s', (_what, apply) => {
      // The limit is the connection's own: another one has room.
      const migrations = [listMigration, 'PRAGMA max_page_count = 60']
      const { store, path } = openStore({ plugins: [listPlugin({ apply, migrations })] })
      const run = [element({ seq: 1, sums: { a: 1 }, entries: [list('one')] })]
      expect(() => store.apply(run)).toThrow(/full/)
      expect(query(path, 'SELECT count(*) FROM producers').flat()).toEqual([0n])
      expect(totals(path)).toEqual({})
      store.reopen()
      expect(store.apply(run).results.map(({ outcome }) => outcome)).toEqual([{ result: 'one' }])
      expect(totals(path)).toEqual({ a: 1n })
      expect(query(path, 'SELECT count(*) FROM list_items').flat()).toEqual([100n])
    })
})

describe('an entry with an id', () => {
  const withId = (data: Json, id = 'a'.repeat(64), at = 1_700_000_000_000): PluginEntry =>
    ({ plugin: 'list', data, id, at })

  test('is applied once, and every repeat has its result, from any worker and after a restart', () => {
    const { loaded, calls } = recordingPlugin((entry, context) => append(
      { ...entry, data: JSON.stringify(entry.data) }, context))
    const { store, path } = openStore({ plugins: [loaded] })
    const data = { name: 'x', count: [1, { a: 1, b: 2 }] }
    const same = { count: [1, { b: 2, a: 1 }], name: 'x' }
    const outcomes = store.apply([element({ seq: 1, entries: [withId(data), withId(same)] })]).results
    expect(outcomes.map(({ outcome }) => outcome)).toEqual([{ result: 1 }, { result: 1 }])
    store.close()
    const again = openStore({ path, plugins: [loaded] }).store
    expect(again.idempotencyRows).toBe(1)
    expect(again.apply([element({ producer: producerB, seq: 1, entries: [withId(same)] })]).results)
      .toMatchObject([{ producer: producerB, outcome: { result: 1 } }])
    expect(calls).toHaveLength(1)
  })

  test('is refused with other data, and with the id of a request that was counted', () => {
    const { store } = openStore({ plugins: [listPlugin()] })
    const error = { statusCode: 422, code: 'GBX_OTHER_BODY' }
    const applied = store.apply([
      element({ seq: 1, once: [{ id: 'b'.repeat(64), sums: { a: 1 } }], entries: [withId('one'), withId('two')] }),
      element({ seq: 2, entries: [withId('one', 'b'.repeat(64))] }),
    ])
    expect(applied.results.map(({ outcome }) => outcome)).toMatchObject([{ result: 1 }, { error }, { error }])
    expect(applied.entries.map(({ outcome }) => outcome)).toEqual(['applied', 'refused', 'refused'])
  })

  test('is refused where its row may have been pruned', () => {
    const { store, path } = openStore({ plugins: [listPlugin()], idempotencyRowsMax: 1 })
    const now = Date.now()
    store.apply([element({
      seq: 1,
      entries: [withId('one', 'a'.repeat(64), now - 2000), withId('two', 'b'.repeat(64), now - 1000)],
    })])
    expect(store.idempotencyRows).toBe(1)
    expect(store.apply([element({ seq: 2, entries: [withId('one', 'a'.repeat(64), now - 2000)] })]).results)
      .toMatchObject([{ outcome: { error: { statusCode: 422, code: 'GBX_TOO_LATE' } } }])
    expect(items(path)).toEqual(['one', 'two'])
  })

  test('that failed is tried again under the same id', () => {
    let isOpen = false
    const { store } = openStore({
      plugins: [listPlugin({
        apply: (entry, context) => {
          if (!isOpen) throw refuse(409, 'GBX_CLOSED', 'closed')
          return append(entry, context)
        },
      })],
    })
    expect(store.apply([element({ seq: 1, entries: [withId('one')] })]).results)
      .toMatchObject([{ outcome: { error: { code: 'GBX_CLOSED' } } }])
    isOpen = true
    expect(store.apply([element({ seq: 2, entries: [withId('one')] })]).results)
      .toMatchObject([{ outcome: { result: 1 } }])
  })

  test('has data that is nested deeper than the stack: it fails, and nothing else does', () => {
    const { store, path } = openStore({ plugins: [listPlugin({ apply: () => 'fine' })] })
    const deep = `${'['.repeat(30_000)}${']'.repeat(30_000)}`
    const batch = element({ seq: 1, sums: { a: 1 }, entries: [list('HERE'), withId('HERE'), list('flat')] })
    const applied = store.apply([Buffer.from(batch.toString().replaceAll('"HERE"', deep))])
    const fine = { result: 'fine' }
    expect(applied.results.map(({ outcome }) => outcome)).toEqual([fine, pluginFailed, fine])
    expect(totals(path)).toEqual({ a: 1n })
  })
})

describe('outcomes', () => {
  test('are deleted in the next transaction once their worker has them', () => {
    const { store, path } = openStore({ plugins: [listPlugin()] })
    store.apply([1, 2, 3].map((seq) => element({ seq, entries: [list(seq)] })))
    store.results.noteReceived(producerA, [1, 3])
    expect(results(path)).toHaveLength(3)
    store.apply([element({ seq: 4, sums: { a: 1 } })])
    expect(results(path).map(([seq]) => seq)).toEqual([2])
    expect(store.results.mayHaveRows).toBe(true)
    store.results.noteReceived(producerA, [2])
    expect(store.prune()).toBe(false)
    expect(results(path)).toEqual([])
    expect(store.results.mayHaveRows).toBe(false)
  })

  test('stay where the transaction that deletes them fails', () => {
    const { store, path } = openStore({ plugins: [listPlugin()] })
    store.apply([element({ seq: 1, entries: [list(1)] })])
    store.results.noteReceived(producerA, [1])
    execute(path, "UPDATE meta SET value = value + 1 WHERE name = 'epoch'")
    expect(() => store.apply([element({ seq: 2, sums: { a: 1 } })])).toThrow(/newer consumer/)
    expect(results(path)).toHaveLength(1)
    execute(path, "UPDATE meta SET value = value - 1 WHERE name = 'epoch'")
    expect(store.discardRejected(1n)).toBe(false)
    store.apply([element({ seq: 2, sums: { a: 1 } })])
    expect(results(path)).toEqual([])
  })

  test('that nobody asked for go after ten minutes of the database\'s clock', () => {
    const { store, path } = openStore({ plugins: [listPlugin()] })
    store.apply([element({ seq: 1, entries: [list(1)] }), element({ seq: 2, entries: [list(2)] })])
    store.close()
    execute(path, `
      UPDATE results SET elapsed_ms = 1000 WHERE seq = 1;
      UPDATE results SET elapsed_ms = 200000 WHERE seq = 2;
      UPDATE meta SET value = 601100 WHERE name = 'elapsed_ms'`)
    const again = openStore({ path, plugins: [listPlugin()] }).store
    expect(again.prune()).toBe(false)
    expect(results(path).map(([seq]) => seq)).toEqual([2])
  })

  test('that many workers never ask for go as fast as others come', () => {
    const { store: first, path } = openStore({ plugins: [listPlugin()] })
    first.apply([element({ seq: 1, entries: [list(1)] })])
    first.close()
    execute(path, `
      WITH RECURSIVE number(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM number LIMIT 12000)
      INSERT INTO results(producer, seq, entry, result, elapsed_ms)
        SELECT 'gone', i, 0, '{"result":1}', -700000 FROM number`)
    const { store } = openStore({ path, plugins: [listPlugin()] })
    for (let seq = 2; seq <= 4; seq++) store.apply([element({ seq, sums: { a: 1 } })])
    expect(results(path)).toHaveLength(1)
  })

  test('of batches with many entries are deleted a few batches per transaction', () => {
    const { store, path } = openStore({ plugins: [listPlugin({ apply: () => 1 })] })
    const entries = Array.from({ length: 3000 }, () => list(1))
    store.apply([1, 2, 3, 4].map((seq) => element({ seq, entries })))
    store.results.noteReceived(producerA, [1, 2, 3, 4])
    const left = [5, 6].map((seq) => {
      store.apply([element({ seq, sums: { a: 1 } })])
      return results(path).length
    })
    expect(left).toEqual([6000, 0])
  })
})

test('a plugin\'s table that could not be made, or is of a newer version, ends the process with one line', () => {
  const path = freshPath()
  const openWith = (...migrations: readonly string[]): void => {
    const { plugin, settings } = listPlugin({})
    const loaded = [{ plugin: { ...plugin, consumer: { migrations } }, settings }]
    const { logger } = captureLog()
    new Store({ path, idempotencyHours: 1, idempotencyRowsMax: 10, pluginParts: { loaded, logger } }).close()
  }
  const refused = (message: RegExp): unknown =>
    expect.objectContaining({ name: 'FatalError', exitCode: 78, message: expect.stringMatching(message) })
  const thrownBy = (run: () => void): unknown => {
    try {
      run()
    } catch (error) {
      return error
    }
    return undefined
  }
  const first = 'CREATE TABLE list_items(text TEXT) STRICT'
  openWith(first)
  openWith(first)
  openWith(first, 'ALTER TABLE list_items ADD COLUMN number INTEGER; CREATE INDEX list_number ON list_items(number)')
  expect(thrownBy(() => openWith(first))).toEqual(refused(/^plugin list: .*version 2 and this one knows 1/))
  const both = [first, '']
  const broken = [
    ['CREATE TABLE', /^plugin list: migration 3 failed: incomplete input$/],
    ['CREATE TABLE other(a)', /table "other" is not its own/],
    ['CREATE TABLE listed(a)', /table "listed" is not its own/],
    ['CREATE TRIGGER list_spy AFTER INSERT ON numbers BEGIN SELECT 1; END', /trigger "list_spy" is not its own/],
    ['DROP TABLE rejected', /it removes table "rejected"/],
    ['ALTER TABLE numbers ADD COLUMN a INTEGER', /table "numbers" is not its own/],
    ['CREATE TABLE list_more(a REFERENCES list_items DEFERRABLE INITIALLY DEFERRED)', /deferred foreign key/],
    ['COMMIT', /it ends the transaction/],
  ] as const
  for (const [sql, message] of broken) {
    expect(thrownBy(() => openWith(...both, sql)), sql).toEqual(refused(message))
    expect(query(path, "SELECT value FROM meta WHERE name = 'plugin:list'").flat(), sql).toEqual([2n])
  }
})
