// The one transaction, on real files: what it adds, what it skips, what it refuses, and that nothing else is affected.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { int64Max, int64Min } from '@gearbox/protocol/int64.ts'
import { SupersededError } from '@gearbox/protocol/owner.ts'
import { has, type Sequences } from '@gearbox/protocol/sequences.ts'
import { element, producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'
import { openDatabase } from '../src/store/open.ts'
import type { Applied } from '../src/store/run.ts'
import { freshPath, openStore, query, totals } from './open-store.ts'

const int64 = fc.oneof(
  fc.bigInt({ min: int64Min, max: int64Max }), fc.bigInt({ min: -10n, max: 10n }),
  fc.constantFrom(int64Max, int64Min, int64Max - 1n, int64Min + 1n, 2n ** 53n, 2n ** 53n + 1n, -(2n ** 53n) - 1n))
const key = fc.oneof(fc.constantFrom('a', 'b', '__proto__', '"', '\\', 'key', 'value', '$', '0'),
  fc.string({ unit: 'binary', minLength: 1, maxLength: 8 }).filter((text) => !/\p{Cc}|\p{Cs}/u.test(text)))

function rejectedRows (path: string): unknown[][] {
  return query(path, 'SELECT producer, seq, key, value, reason FROM rejected ORDER BY id')
}

/** Adds up like the store: in order, each entry that would leave 64 bits set aside. */
class Model {
  readonly totals = new Map<string, bigint>()
  readonly rejected: Array<[seq: bigint, key: string, value: bigint]> = []

  apply (seq: number, sums: ReadonlyArray<readonly [string, bigint]>): void {
    for (const [key, value] of sums) {
      const total = (this.totals.get(key) ?? 0n) + value
      if (total > int64Max || total < int64Min) this.rejected.push([BigInt(seq), key, value])
      else this.totals.set(key, total)
    }
  }
}

function fromPairs (pairs: ReadonlyArray<readonly [string, bigint]>): { [key: string]: bigint } {
  const object: { [key: string]: bigint } = Object.create(null)
  for (const [key, value] of pairs) object[key] = value
  return object
}

/** The store inserts a run of long batches in the order of its keys. */
const lengths: ReadonlyArray<readonly [string, (batch: Buffer) => Buffer]> = [
  ['short', (batch) => batch],
  ['long', (batch) => Buffer.concat([batch.subarray(0, -1), Buffer.from(`,"more":"${'x'.repeat(300_000)}"}`)])],
]

describe.each(lengths)('sums of %s batches', (_length, lengthened) => {
  test('are exact over all 64 bits, whatever the keys, and every overflow is a separate entry', () => {
    const batches = fc.array(fc.uniqueArray(fc.tuple(key, int64), { selector: ([key]) => key, maxLength: 6 }),
      { minLength: 1, maxLength: 6 })
    fc.assert(fc.property(batches, fc.integer({ min: 1, max: 6 }), (batches, runLength) => {
      const { store, path } = openStore()
      const model = new Model()
      // As the batch gives them: integer-like keys come first in an object.
      const written = batches.map((pairs) => fromPairs(pairs))
      for (const [i, sums] of written.entries()) model.apply(i + 1, Object.entries(sums))
      const elements = written.map((sums, i) => lengthened(element({ seq: i + 1, sums })))
      let overflows = 0
      for (let at = 0; at < elements.length; at += runLength) {
        overflows += store.apply(elements.slice(at, at + runLength)).rejections.length
      }
      expect(new Map(query(path, 'SELECT key, value FROM numbers').map(([key, value]) => [key, value])))
        .toEqual(new Map(model.totals))
      expect(query(path, 'SELECT seq, key, value FROM rejected ORDER BY id')).toEqual(model.rejected)
      expect(overflows).toBe(model.rejected.length)
      store.close()
    }), { seed, numRuns: 30 })
  })

  test('of zero make a row', () => {
    const { store, path } = openStore()
    store.apply([lengthened(element({ sums: { zero: 0 } }))])
    expect(totals(path)).toEqual({ zero: 0n })
  })

  test.each([['highest', int64Max, 1n],
    ['lowest', int64Min,
      -1n]])('one past the %s total is refused alone, before or behind others', (_end, end, step) => {
    const { store, path } = openStore()
    store.apply([element({ seq: 1, sums: { full: end, other: 1 } })])
    const applied = store.apply([
      lengthened(element({ seq: 2, sums: { before: 1, full: step, behind: 1 } })),
      element({ seq: 3, sums: { other: 1 } }),
      element({ producer: producerB, seq: 1, sums: { full: -step } }),
      element({ producer: producerB, seq: 2, sums: { full: step } }),
    ])
    expect(applied).toMatchObject({ batches: 4, duplicates: 0 })
    expect(applied.rejections).toEqual([{ producer: producerA, seq: 2, key: 'full', reason: 'overflow' }])
    expect(totals(path)).toEqual({ before: 1n, behind: 1n, full: end, other: 2n })
    expect(rejectedRows(path)).toEqual([[producerA, 2n, 'full', step, 'overflow']])
    // A refused entry is part of a stored batch: a repeat does nothing.
    expect(store.apply([element({ seq: 2, sums: { before: 1, full: step, behind: 1 } })]))
      .toMatchObject({ duplicates: 1, rejections: [] })
    expect(rejectedRows(path)).toHaveLength(1)
  })

  test('a total may go to the very ends of 64 bits and back', () => {
    const { store, path } = openStore()
    const sums = [int64Max, -1n, 1n, int64Min, 1n, int64Min, 1n, -1n]
    const applied = store.apply(sums.map((sum, i) => lengthened(element({ seq: i + 1, sums: { a: sum } }))))
    expect(applied.rejections).toEqual([])
    expect(totals(path)).toEqual({ a: sums.reduce((total, sum) => total + sum) })
  })
})

describe('sequences', () => {
  test('each is applied once, however often and in whatever order it comes', () => {
    const arrival = fc.record({ producer: fc.constantFrom(producerA, producerB), seq: fc.integer({ min: 1, max: 12 }) })
    fc.assert(fc.property(fc.array(fc.array(arrival, { minLength: 1, maxLength: 6 }), { maxLength: 6 }), (runs) => {
      const { store, path } = openStore()
      const seen = new Set<string>()
      let gapped = 0
      for (const run of runs) {
        const before = seen.size
        const applied =
          store.apply(run.map(({ producer, seq }) =>
            element({ producer, seq, requests: 1, increments: 2, sums: { [`${producer} ${seq}`]: 1, all: 1 } })))
        for (const { producer, seq } of run) seen.add(`${producer} ${seq}`)
        expect(applied.batches).toBe(seen.size - before)
        expect(applied.duplicates).toBe(run.length - applied.batches)
        gapped += applied.gaps.length
        for (const { producer } of run) {
          const stored = applied.stored.get(producer)
          for (let seq = 1; seq <= 12; seq++) {
            expect(stored !== undefined && has(stored, seq)).toBe(seen.has(`${producer} ${seq}`))
          }
        }
      }
      expect(totals(path)).toEqual(Object.fromEntries([...[...seen].map((name) => [name, 1n] as const),
        ...(seen.size > 0 ? [['all', BigInt(seen.size)] as const] : [])]))
      expect(query(path, 'SELECT coalesce(sum(requests), 0), coalesce(sum(increments), 0) FROM producers'))
        .toEqual([[BigInt(seen.size), BigInt(2 * seen.size)]])
      if (runs.flat().every(({ seq }, i) => seq === i + 1)) expect(gapped).toBe(0)
      store.close()
    }), { seed, numRuns: 25 })
  })

  test('a gap is found, kept over a restart, and filled', () => {
    const { store, path } = openStore()
    const sequences = (applied: Applied): Sequences | undefined => applied.stored.get(producerA)
    expect(store.apply([element({ seq: 3, sums: { a: 1 } })]).gaps).toEqual([{ producer: producerA, from: 1, to: 2 }])
    expect(sequences(store.apply([element({ seq: 7, sums: { a: 1 } })]))).toEqual({ high: 7, gaps: [[1, 2], [4, 6]] })
    store.close()
    const again = openStore({ path }).store
    const filled = again.apply([element({ seq: 5, sums: { a: 1 } }), element({ seq: 3, sums: { a: 1 } })])
    expect(filled).toMatchObject({ batches: 1, duplicates: 1, gaps: [] })
    expect(sequences(filled)).toEqual({ high: 7, gaps: [[1, 2], [4, 4], [6, 6]] })
    expect(totals(path)).toEqual({ a: 3n })
  })

  test('duplicates inside one run count once', () => {
    const { store, path } = openStore()
    const batch = element({ sums: { a: 5 }, once: [{ id: 'x', sums: { b: 1 } }] })
    expect(store.apply([batch, batch, batch])).toMatchObject({ batches: 1, duplicates: 2, rejections: [] })
    expect(totals(path)).toEqual({ a: 5n, b: 1n })
  })

  test('an empty run does nothing', () => {
    expect(openStore().store.apply([])).toMatchObject({ batches: 0, duplicates: 0 })
  })
})

describe('a batch that can not be read', () => {
  const header = (seq: number): string =>
    `{"v":1,"producer":"${producerB}","seq":${seq},"at":5,"requests":1,"increments":1,"sums":`
  const kinds: ReadonlyArray<readonly [string, string | Buffer]> = [
    ['not JSON', 'hello'],
    ['empty', ''],
    ['null', 'null'],
    ['no object', '[1,2]'],
    ['not UTF-8', Buffer.from([0x7b, 0xff, 0x7d])],
    ['not UTF-8 in a key',
      Buffer.concat([Buffer.from(`${header(9)}{"`), Buffer.from([0xff]), Buffer.from('":1},"once":[]}')])],
    ['of another version', `${header(9)}{"a":1},"once":[]}`.replace('"v":1', '"v":3')],
    ['with entries of plugins that are none', `${header(9)}{"a":1},"once":[],"plugins":[1]}`.replace('"v":1', '"v":2')],
    ['truncated in its sums', `${header(9)}{"a":1,"b`],
    ['truncated before its end', `${header(9)}{"a":1},"once":[`],
    ['with something behind it', `${header(9)}{"a":1},"once":[]} x`],
    ['with a NUL and something behind it', `${header(9)}{"a":1},"once":[]}\0,"once":[]}`],
    ['with an object of requests', `${header(9)}{"a":1},"once":{}}`],
    ['with a request that is none', `${header(9)}{"a":1},"once":[1]}`],
    ['with a value 1.0', `${header(9)}{"a":1,"b":1.0},"once":[]}`],
    ['with a value 1e3', `${header(9)}{"a":1,"b":1e3},"once":[]}`],
    ['with a value "5"', `${header(9)}{"a":1,"b":"5"},"once":[]}`],
    ['with a value null', `${header(9)}{"a":1,"b":null},"once":[]}`],
    ['with a value true', `${header(9)}{"a":1,"b":true},"once":[]}`],
    ['with a value 2^63', `${header(9)}{"a":1,"b":9223372036854775808},"once":[]}`],
    ['with a value -2^63 - 1', `${header(9)}{"a":1,"b":-9223372036854775809},"once":[]}`],
    ['with a value of 100 digits', `${header(9)}{"a":1,"b":${'9'.repeat(100)}},"once":[]}`],
    ['with a value of 400 digits', `${header(9)}{"a":1,"b":${'9'.repeat(400)}},"once":[]}`],
    ['with a hexadecimal value', `${header(9)}{"a":1,"b":0x10},"once":[]}`],
    ['with a value +1', `${header(9)}{"a":1,"b":+1},"once":[]}`],
    ['with a value NaN', `${header(9)}{"a":1,"b":NaN},"once":[]}`],
    ['with a comment', `${header(9)}{"a":1/* one */},"once":[]}`],
    ['with a comma too many', `${header(9)}{"a":1,},"once":[]}`],
    ['with a key without quotes', `${header(9)}{a:1},"once":[]}`],
    ['with a nested object', `${header(9)}{"a":1,"b":{"c":1}},"once":[]}`],
    ['with a nested array', `${header(9)}{"a":1,"b":[1]},"once":[]}`],
    ['with an array of sums', `${header(9)}[1],"once":[]}`],
    ['with sums that are a number', `${header(9)}1,"once":[]}`],
    ['with once an object', `${header(9)}{"a":1},"once":{"id":"x"}}`],
    ['with once a number', `${header(9)}{"a":1},"once":7}`],
    ['with a number in once', `${header(9)}{"a":1},"once":[7]}`],
    ['with a once that lacks its id', `${header(9)}{"a":1},"once":[{"at":5,"sums":{"a":1}}]}`],
    ['with a once whose id is a number', `${header(9)}{"a":1},"once":[{"id":5,"at":5,"sums":{"a":1}}]}`],
    ['with a once whose time is none', `${header(9)}{"a":1},"once":[{"id":"x","at":"5","sums":{"a":1}}]}`],
    ['with a once that lacks its sums', `${header(9)}{"a":1},"once":[{"id":"x","at":5}]}`],
    ['with a once whose sums are an array', `${header(9)}{"a":1},"once":[{"id":"x","at":5,"sums":[1]}]}`],
    ['with a once value 1.0', `${header(9)}{"a":1},"once":[{"id":"x","at":5,"sums":{"a":1.0}}]}`],
    ['with a once value "1"', `${header(9)}{"a":1},"once":[{"id":"x","at":5,"sums":{"a":"1"}}]}`],
    ['with a once value 2^63', `${header(9)}{"a":1},"once":[{"id":"x","at":5,"sums":{"a":9223372036854775808}}]}`],
    ['that closes its own braces and opens others', `${header(9)}{"a":1},"once":[]},${header(10)}{"a":1},"once":[]}`],
    ['that closes its own braces and opens others, and once',
      `${header(9)}{"a":1},"once":[]},{"sums":{"a":7},"once":[{"id":"y","at":5,"sums":{"a":1}}]}`],
    ['that closes its own braces and opens others twice',
      `${header(9)}{"a":1},"once":[]},{"sums":{"a":7}},{"sums":{"a":7}}`],
  ]

  describe.each(lengths)('among %s ones', (_length, lengthened) => {
    test.each(kinds)('%s is set aside whole and once, and all around it is applied', (_kind, bad) => {
      const { store, path } = openStore()
      const broken = Buffer.from(bad)
      const before = lengthened(element({ seq: 1, sums: { a: 1, good: 10 } }))
      const behind = element({ seq: 2, sums: { a: 1, good: 10 }, once: [{ id: 'good', sums: { good: 5 } }] })
      const applied = store.apply([before, broken, behind])
      expect(applied).toMatchObject({ batches: 2, duplicates: 0 })
      expect(applied.rejections.map(({ reason }) => reason)).toEqual(['unreadable'])
      expect(totals(path)).toEqual({ a: 2n, good: 25n })
      expect(query(path, 'SELECT batch, reason FROM rejected')).toEqual([[broken, 'unreadable']])
      // Acknowledging may have failed: it comes again, also in company that needs checking.
      expect(store.apply([broken]).rejections).toEqual([])
      expect(store.apply([element({ seq: 3, sums: { a: int64Max } }), broken]).rejections.map(({ key }) => key))
        .toEqual(['a'])
      expect(query(path, 'SELECT count(*) FROM rejected WHERE batch IS NOT NULL')).toEqual([[1n]])
      expect(totals(path)).toEqual({ a: 2n, good: 25n })
    })

    test.each(kinds)('%s is set aside in company that needs checking, too', (_kind, bad) => {
      const { store, path } = openStore()
      store.apply([element({ seq: 1, sums: { full: int64Max } })])
      const applied = store.apply([lengthened(element({ seq: 2, sums: { full: 1, good: 1 } })), Buffer.from(bad),
        element({ seq: 3, sums: { good: 1 } })])
      expect(applied.rejections.map(({ reason }) => reason).sort()).toEqual(['overflow', 'unreadable'])
      expect(totals(path)).toEqual({ full: int64Max, good: 2n })
    })

    test('several that make sense only together are set aside one by one, and what is between them counts', () => {
      const { store, path } = openStore()
      const opening = Buffer.from(`${header(9)}{"a":1},"x":[0`)
      const closing = Buffer.from(`${header(10)}{"a":1},"once":[]}]}`)
      const making = Buffer.from(`${header(11)}{"a":1},"once":[]},{"sums":{"a":1}},{"sums":{"a":1}}`)
      const applied = store.apply([opening, lengthened(element({ seq: 1, sums: { good: 1 } })), closing, making])
      expect(totals(path)).toEqual({ good: 1n })
      expect(applied.rejections.map(({ reason }) => reason)).toEqual(['unreadable', 'unreadable', 'unreadable'])
    })

    test('one that nests as deep as SQLite goes does not block the others', () => {
      const { store, path } = openStore()
      for (const [i, depth] of [997, 998, 999, 1000, 1001, 1002].entries()) {
        const deep = Buffer.from(`${header(i + 1)}{"a":1},"x":${'['.repeat(depth)}${']'.repeat(depth)},"once":[]}`)
        store.apply([lengthened(element({ seq: 2 * i + 1, sums: { good: 1 } })), deep,
          element({ seq: 2 * i + 2, sums: { good: 1 } })])
      }
      expect(totals(path)['good']).toBe(12n)
    })
  })

  test('different ones are each set aside', () => {
    const { store, path } = openStore()
    store.apply([Buffer.from('x'), Buffer.from('y'), Buffer.from('x')])
    expect(query(path, 'SELECT batch FROM rejected ORDER BY id')).toEqual([[Buffer.from('x')], [Buffer.from('y')]])
  })

  test('the sequence of one that said which it is counts as stored, so that its worker waits for it no longer', () => {
    const { store } = openStore()
    const applied = store.apply([Buffer.from(`${header(1)}{"a":1.0},"once":[]}`)])
    expect(applied.rejections).toEqual([{ producer: producerB, seq: 1, reason: 'unreadable' }])
    expect(applied.stored.get(producerB)).toEqual({ high: 1, gaps: [] })
  })

  test('the version before is applied', () => {
    const { store, path } = openStore()
    store.apply([Buffer.from(element({ sums: { a: 1 } }).toString().replace('"v":1', '"v":0'))])
    expect(totals(path)).toEqual({ a: 1n })
  })
})

describe('requests with an idempotency key', () => {
  test('a repeat is skipped, in the same batch, run, another batch, or another worker, and the order of its keys ' +
    'does not matter', () => {
    const { store, path } = openStore()
    const first = { id: 'x', sums: { a: 1, b: int64Max } }
    const turned = { id: 'x', sums: { b: int64Max, a: 1 } }
    const applied = store.apply([
      element({ seq: 1, once: [first, turned, first] }), element({ seq: 2, once: [turned] }),
      element({ producer: producerB, seq: 1, once: [first] }),
    ])
    expect(applied.rejections).toEqual([])
    store.close()
    expect(openStore({ path }).store.apply([element({ seq: 3, once: [turned] })]).rejections).toEqual([])
    expect(totals(path)).toEqual({ a: 1n, b: int64Max })
  })

  test.each([
    ['another value', { a: 2 }], ['another key', { b: 1 }], ['a key more', { a: 1, b: 0 }], ['a key less', {}],
  ])('the same key with %s is refused', (_what, other) => {
    const { store, path } = openStore()
    store.apply([element({ seq: 1, once: [{ id: 'x', sums: { a: 1 } }] })])
    const applied =
      store.apply([element({ seq: 2, sums: { c: 1 }, once: [{ id: 'x', sums: other }, { id: 'y', sums: { c: 1 } }] })])
    expect(applied.rejections).toEqual([{ producer: producerA, seq: 2, once: 'x', reason: 'other body' }])
    expect(totals(path)).toEqual({ a: 1n, c: 2n })
    expect(query(path, 'SELECT once, sums, reason FROM rejected')).toEqual([['x', JSON.stringify(other), 'other body']])
  })

  test('applies whole or not at all when a total would overflow, and may come again then', () => {
    const { store, path } = openStore()
    store.apply([element({ seq: 1, sums: { full: int64Max } })])
    const request = { id: 'x', sums: { a: 1, full: 1, b: 1 } }
    const applied = store.apply([element({ seq: 2, sums: { c: 1 }, once: [request] })])
    expect(applied.rejections).toEqual([{ producer: producerA, seq: 2, once: 'x', key: 'full', reason: 'overflow' }])
    expect(totals(path)).toEqual({ c: 1n, full: int64Max })
    store.apply([element({ seq: 3, sums: { full: -1 } }), element({ seq: 4, once: [request] })])
    expect(totals(path)).toEqual({ a: 1n, b: 1n, c: 1n, full: int64Max })
  })

  test('sums and requests of a run that overflows are each applied once', () => {
    const { store, path } = openStore()
    store.apply([
      element({ seq: 1, sums: { full: int64Max }, once: [{ id: 'x', sums: { a: 1 } }] }),
      element({ seq: 2, sums: { full: 1, b: 1 }, once: [{ id: 'y', sums: { a: 1 } }] }),
    ])
    expect(totals(path)).toEqual({ a: 2n, b: 1n, full: int64Max })
  })

  test('what was pruned can not be applied again: older requests are refused as too late, newer ones count', () => {
    const { store, path } = openStore({ idempotencyRowsMax: 2 })
    const at = (n: number) => ({ id: `id ${n}`, at: 1000 + n, sums: { a: 1 } })
    for (const n of [1, 2, 3, 4]) store.apply([element({ seq: n, once: [at(n)] })])
    expect(store.idempotencyRows).toBe(2)
    expect(query(path, "SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'once_mark'")).toEqual([[1002n]])
    const applied = store.apply([element({ seq: 5, once: [at(1), at(2), { id: 'unseen', at: 999, sums: { a: 1 } }] })])
    expect(applied.rejections.map(({ once, reason }) => [once, reason]))
      .toEqual([['id 1', 'too late'], ['id 2', 'too late'], ['unseen', 'too late']])
    store.close()
    // After a restart the mark is the same.
    const again = openStore({ path, idempotencyRowsMax: 2 }).store
    expect(again.idempotencyRows).toBe(2)
    expect(again.apply([element({ seq: 6, once: [at(1), at(5), at(4)] })]).rejections.map(({ once }) => once))
      .toEqual(['id 1'])
    expect(totals(path)).toEqual({ a: 5n })
  })

  test('a clock that jumps ahead prunes nothing early', () => {
    const { store } = openStore({ idempotencyHours: 1 })
    store.apply([element({
      seq: 1,
      once: [{ id: 'x', at: 1, sums: { a: 1 } }, { id: 'y', at: Date.now() + 1e12, sums: { a: 1 } }],
    })])
    expect(store.prune()).toBe(false)
    expect(store.idempotencyRows).toBe(2)
  })

  test("time that has passed on the database's own clock prunes", () => {
    const { store, path } = openStore({ idempotencyHours: 1 })
    store.apply([element({ seq: 1, once: [{ id: 'x', at: 5, sums: { a: 1 } }] })])
    store.close()
    const db = new Database(path)
    db.exec("UPDATE meta SET value = value + 3600001 WHERE name = 'elapsed_ms'")
    db.close()
    const again = openStore({ path, idempotencyHours: 1 }).store
    expect(again.prune()).toBe(false)
    expect(again.idempotencyRows).toBe(0)
    expect(again.apply([element({ seq: 2, once: [{ id: 'x', at: 5, sums: { a: 1 } }] })]).rejections)
      .toMatchObject([{ reason: 'too late' }])
    expect(totals(path)).toEqual({ a: 1n })
  })
})

describe('rejected entries', () => {
  test('can be tried again, one by one, until they fit', () => {
    const { store, path } = openStore()
    store.apply([element({ seq: 1, sums: { full: int64Max } }),
      element({ seq: 2, sums: { full: 5 }, once: [{ id: 'x', sums: { a: 1, full: 1 } }] })])
    const [sum, request] = store.rejected()
    expect([sum?.reason, request?.reason]).toEqual(['overflow', 'overflow'])
    expect(store.retryRejected(sum!.id)).toContain('64 bits')
    store.apply([element({ seq: 3, sums: { full: -6 } })])
    expect(store.retryRejected(request!.id)).toBeUndefined()
    expect(store.retryRejected(request!.id)).toContain('no such entry')
    expect(store.retryRejected(sum!.id)).toBeUndefined()
    expect(store.rejected()).toEqual([])
    expect(totals(path)).toEqual({ a: 1n, full: int64Max })
  })

  test('a batch that can not be read can not be retried', () => {
    const { store } = openStore()
    store.apply([Buffer.from('x')])
    expect(store.retryRejected(store.rejected()[0]!.id)).toBeTypeOf('string')
    expect(store.rejected()).toHaveLength(1)
  })
})

describe('the file', () => {
  test('is synced at every commit, at the first open and at every other', () => {
    const path = freshPath()
    for (let open = 1; open <= 3; open++) {
      const { db } = openDatabase(path, open > 1)
      // 2 is FULL.
      expect(db.pragma('synchronous', { simple: true })).toBe(2)
      expect(db.pragma('journal_mode', { simple: true })).toBe('wal')
      db.exec('CREATE TABLE IF NOT EXISTS t(x)')
      db.close()
    }
  })

  test("has the original's table", () => {
    const { path } = openStore()
    expect(query(path, "SELECT name, type FROM pragma_table_info('numbers')"))
      .toEqual([['key', 'TEXT'], ['value', 'INTEGER']])
  })

  test('of a newer schema is refused', () => {
    const { store, path } = openStore()
    store.close()
    const db = new Database(path)
    db.pragma('user_version = 2')
    db.close()
    expect(() => openStore({ path })).toThrow(FatalError)
    expect(() => openStore({ path })).toThrow(/newer/)
  })

  test('that is no database is refused and left alone', () => {
    const path = freshPath()
    spawnSync('cp', [import.meta.filename, path])
    expect(() => openStore({ path })).toThrow(FatalError)
    expect(spawnSync('cmp', [import.meta.filename, path]).status).toBe(0)
  })

  test('can be read while it is written', () => {
    const { store, path } = openStore()
    store.apply([element({ seq: 1, sums: { a: 1 } })])
    const reader = new Database(path, { readonly: true })
    onTestFinished(() => { reader.close() })
    reader.exec('BEGIN')
    const read = reader.prepare<[], number>('SELECT value FROM numbers').pluck()
    expect(read.get()).toBe(1)
    store.apply([element({ seq: 2, sums: { a: 1 } })])
    expect(read.get()).toBe(1)
    reader.exec('COMMIT')
    expect(read.get()).toBe(2)
  })

  test('while another writer holds it nothing is applied, and all of it later', () => {
    const { store, path } = openStore()
    const batch = element({ sums: { a: 1 }, once: [{ id: 'x', sums: { b: 1 } }] })
    const other = new Database(path)
    onTestFinished(() => { other.close() })
    other.exec('BEGIN IMMEDIATE')
    expect(() => store.apply([batch])).toThrow(expect.objectContaining({ code: 'SQLITE_BUSY' }))
    other.exec('ROLLBACK')
    expect(store.apply([batch])).toMatchObject({ batches: 1, duplicates: 0, rejections: [] })
    expect(totals(path)).toEqual({ a: 1n, b: 1n })
  })

  test('that is full changes nothing, and takes everything when there is room again', () => {
    const { store, path } = openStore()
    store.apply([element({ seq: 1, sums: { a: 1 } })])
    store.close()
    // A file can't grow past what the process may write, as on a full disk.
    const full = spawnSync('sh',
      ['-c', 'ulimit -f 400 && exec "$@"', 'sh', process.execPath, join(import.meta.dirname, 'fill-disk.ts'), path],
      { encoding: 'utf8' })
    expect(full.stderr).toBe('')
    expect(full.stdout).toMatch(/^SQLITE_(FULL|IOERR)/)
    expect(totals(path)).toEqual({ a: 2n })
    expect(openStore({ path }).store.apply([element({ seq: 2, sums: { a: 1 } })])).toMatchObject({ duplicates: 1 })
  })
})

describe('epochs', () => {
  test('rise with every consumer and outlive a restart', () => {
    const { store, path } = openStore()
    const { uuid } = store.owner
    expect(store.owner.epoch).toBe(0)
    expect(store.raiseEpoch()).toEqual({ uuid, epoch: 1 })
    expect(store.owner).toEqual({ uuid, epoch: 1 })
    store.close()
    expect(openStore({ path }).store.raiseEpoch()).toEqual({ uuid, epoch: 2 })
  })

  test('an older consumer finds out in its next transaction and changes nothing', () => {
    const { store, path } = openStore()
    store.raiseEpoch()
    store.apply([element({ seq: 1, sums: { a: 1 } })])
    const newer = openStore({ path }).store
    newer.raiseEpoch()
    expect(() => store.apply([element({ seq: 2, sums: { a: 1 } })])).toThrow(SupersededError)
    expect(() => store.apply([Buffer.from('x')])).toThrow(SupersededError)
    expect(() => store.prune()).toThrow(SupersededError)
    expect(totals(path)).toEqual({ a: 1n })
    expect(newer.apply([element({ seq: 2, sums: { a: 1 } })])).toMatchObject({ batches: 1 })
  })

  test('a renewed database is another one', () => {
    const { store, path } = openStore()
    const { uuid } = store.raiseEpoch()
    const renewing = openStore({ path }).store
    const renewed = renewing.renew()
    expect(renewed.uuid).not.toBe(uuid)
    expect(renewed.epoch).toBeGreaterThan(1)
    expect(() => store.apply([element({ sums: { a: 1 } })])).toThrow(SupersededError)
  })
})

test('producers of which nothing was stored lately are named', () => {
  const { store } = openStore()
  store.apply([element({ sums: { a: 1 } })])
  expect(store.producersUnseenSince(Date.now() - 60_000)).toEqual([])
  expect(store.producersUnseenSince(Date.now() + 60_000)).toEqual([producerA])
})
