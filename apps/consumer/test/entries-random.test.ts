// Random runs with entries of plugins, in any order, again and again, through restarts and failures: every entry is
// applied once, its outcome never changes, and what plugins are told is what was added.
import Database from 'better-sqlite3'
import { expect, test } from 'vitest'
import { int64Max } from '@gearbox/protocol/int64.ts'
import type { EntryOutcome, PluginEntry } from '@gearbox/protocol/plugin-entry.ts'
import { refuse, type ConsumerPart } from '@gearbox/runtime/plugin.ts'
import { element, producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { Random } from '@gearbox/test-kit/random.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'
import type { Store } from '../src/store/store.ts'
import { freshPath, openStore, query, totals } from './open-store.ts'
import { append, listMigration, listPlugin, type NoSettings } from './plugin-parts.ts'

const part: ConsumerPart<NoSettings> = {
  migrations: [listMigration, 'CREATE TABLE list_totals(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT'],
  apply: (entry, context) => {
    const text = String(entry.data)
    if (text.startsWith('swallow')) {
      try {
        append(entry, context)
      } catch {}
      return 'swallowed'
    }
    const number = append(entry, context)
    if (text.startsWith('throw')) throw new Error('a bug')
    if (text.startsWith('refuse')) throw refuse(409, 'GBX_NO', 'no')
    return number
  },
  afterSums: ({ sums }, { database }) => {
    for (const { json } of sums) {
      database.run(`
        INSERT INTO list_totals(key, value) SELECT key, value FROM json_each(?) WHERE true
        ON CONFLICT(key) DO UPDATE SET value = value + excluded.value`, json)
    }
  },
  afterCorrection: ({ key, after }, { database }) => {
    if (after === undefined) database.run('DELETE FROM list_totals WHERE key = ?', key)
    else {
      database.run(`
        INSERT INTO list_totals(key, value) VALUES (?, ?)
        ON CONFLICT(key) DO UPDATE SET value = excluded.value`, key, after)
    }
  },
}

const guard = `CREATE TRIGGER guard BEFORE INSERT ON list_items WHEN new.text LIKE 'end%' OR new.text LIKE 'swallow%'
  BEGIN SELECT RAISE(ROLLBACK, 'the end') ; END`

/** A batch with some of everything. */
function randomBatch (random: Random, producer: string, seq: number): Buffer {
  const sum = (): bigint | number => random.chance(0.1) ? int64Max : random.int(-5, 5)
  const sums = Object.fromEntries(Array.from({ length: random.int(0, 4) }, () => [`k${random.int(0, 6)}`, sum()]))
  const once = Array.from({ length: random.int(0, 2) }, () =>
    ({ id: `r${random.int(0, 20)}`.padEnd(64, '0'), at: Date.now(), sums: { [`k${random.int(0, 6)}`]: sum() } }))
  const entries = Array.from({ length: random.int(0, 4) }, (_, i): PluginEntry => {
    if (random.chance(0.05)) return { plugin: 'other', data: null }
    if (random.chance(0.1)) {
      const total = random.chance(0.3) ? null : String(random.int(-9, 9))
      return { plugin: 'totals', data: { key: `k${random.int(0, 6)}`, total } }
    }
    const kind = random.pick(['fine', 'fine', 'fine', 'fine', 'throw', 'refuse', 'end', 'swallow'])
    if (random.chance(0.7)) return { plugin: 'list', data: `${kind} ${producer} ${seq} ${i}` }
    const id = random.int(0, 9)
    return { plugin: 'list', data: `${kind} id ${id}`, id: String(id).repeat(64), at: Date.now() }
  })
  return element({ producer, seq, at: Date.now(), sums, once, entries })
}

test(`every entry is applied once, whatever is repeated (seed ${seed})`, () => {
  const random = new Random(seed)
  const path = freshPath()
  const open = (): Store => openStore({ path, plugins: [listPlugin(part)] }).store
  let store = open()
  const db = new Database(path)
  db.exec(guard)
  db.close()
  const pushed: Buffer[] = []
  const seqs = new Map([[producerA, 0], [producerB, 0]])
  const outcomes = new Map<string, EntryOutcome>()
  for (let run = 0; run < 120; run++) {
    const fresh = Array.from({ length: random.int(1, 4) }, () => {
      const producer = random.pick([producerA, producerB])
      const seq = (seqs.get(producer) ?? 0) + 1
      seqs.set(producer, seq)
      return randomBatch(random, producer, seq)
    })
    const again = Array.from({ length: random.int(0, 3) }, () => random.pick([fresh[0]!, ...pushed]))
    const { results } = store.apply(random.shuffle([...fresh, ...again]))
    pushed.push(...fresh)
    for (const { producer, seq, entry, outcome } of results) {
      const name = `${producer} ${seq} ${entry}`
      expect(outcomes.get(name) ?? outcome, name).toEqual(outcome)
      outcomes.set(name, outcome)
    }
    if (random.chance(0.1)) {
      store.close()
      store = open()
    } else if (random.chance(0.1)) store.reopen()
  }
  const kept = query(path, 'SELECT producer, seq, entry, result FROM results')
    .map(([producer, seq, entry, result]) => [`${producer} ${seq} ${entry}`, JSON.parse(String(result))] as const)
  expect(new Map(kept)).toEqual(outcomes)
  const mirrored = Object.fromEntries(query(path, 'SELECT key, value FROM list_totals ORDER BY key')
    .map(([key, value]) => [String(key), value]))
  expect(mirrored).toEqual(totals(path))
  // Each number was given to one entry, or to all entries with one id; none is missing.
  const numbers = [...outcomes.values()].flatMap((outcome) =>
    'result' in outcome && typeof outcome.result === 'number' ? [outcome.result] : [])
  const items = query(path, 'SELECT number, text FROM list_items ORDER BY number')
  expect([...new Set(numbers)].sort((one, other) => one - other)).toEqual(items.map(([number]) => Number(number)))
  expect(items.map(([number]) => number)).toEqual(items.map((_item, i) => BigInt(i + 1)))
  expect(new Set(items.map(([, text]) => text)).size).toBe(items.length)
  expect([...outcomes.values()]).not.toContainEqual({ result: 'swallowed' })
})
