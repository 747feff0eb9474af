// The database's file moved, removed or replaced under a store that has it open: what is committed elsewhere is never
// returned as stored, nothing is made in its place, and with the right file back all of it is applied once.
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readdirSync, renameSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import Database from 'better-sqlite3'
import { expect, onTestFinished, test } from 'vitest'
import { element } from '@gearbox/test-kit/batches.ts'
import { DatabaseMovedError } from '../src/store/database-file.ts'
import { type Store } from '../src/store/store.ts'
import { openStore, query, totals } from './open-store.ts'

const one = (seq: number): Buffer[] => [element({ seq, sums: { a: 1 } })]
const files = ['', '-wal', '-shm']

function expectMoved (store: Store, seq: number): void {
  expect(() => store.checkFile()).toThrow(DatabaseMovedError)
  expect(() => store.apply(one(seq))).toThrow(DatabaseMovedError)
}

function moveAll (from: string, to: string): void {
  for (const suffix of files) if (existsSync(`${from}${suffix}`)) renameSync(`${from}${suffix}`, `${to}${suffix}`)
}

interface Move { readonly what: string, readonly away: (path: string) => void, readonly back: (path: string) => void }

const moves: readonly Move[] = [
  {
    what: 'renamed',
    away: (path) => renameSync(path, `${path}.away`),
    back: (path) => renameSync(`${path}.away`, path),
  },
  {
    what: 'renamed with its -wal and -shm',
    away: (path) => moveAll(path, `${path}.away`),
    back: (path) => moveAll(`${path}.away`, path),
  },
  {
    what: 'in a directory that is renamed',
    away: (path) => renameSync(dirname(path), `${dirname(path)}-away`),
    back: (path) => renameSync(`${dirname(path)}-away`, dirname(path)),
  },
  {
    what: 'replaced by a directory',
    away: (path) => { renameSync(path, `${path}.away`); mkdirSync(path) },
    back: (path) => { rmdirSync(path); renameSync(`${path}.away`, path) },
  },
  {
    what: 'replaced by a FIFO',
    away: (path) => { renameSync(path, `${path}.away`); spawnSync('mkfifo', [path]) },
    back: (path) => renameSync(`${path}.away`, path),
  },
  {
    what: 'replaced by an empty file',
    away: (path) => { renameSync(path, `${path}.away`); writeFileSync(path, '') },
    back: (path) => renameSync(`${path}.away`, path),
  },
  {
    what: 'replaced by another database',
    away: (path) => { moveAll(path, `${path}.away`); openStore({ path }).store.close() },
    back: (path) => { moveAll(`${path}.away`, path) },
  },
  {
    what: 'replaced by a copy without what is in its -wal',
    away: (path) => {
      copyFileSync(path, `${path}.copy`)
      renameSync(path, `${path}.away`)
      renameSync(`${path}.copy`, path)
    },
    back: (path) => renameSync(`${path}.away`, path),
  },
]

test.each(moves)('a database $what: noticed at once, and when it is back everything is applied once', ({
  away,
  back,
}) => {
  const { store, path } = openStore()
  store.apply(one(1))
  away(path)
  onTestFinished(() => rmSync(`${dirname(path)}-away`, { recursive: true, force: true }))
  const before = existsSync(dirname(path)) ? readdirSync(dirname(path)) : undefined
  expectMoved(store, 2)
  expect(existsSync(dirname(path)) ? readdirSync(dirname(path)) : undefined).toEqual(before)
  back(path)
  store.checkFile()
  expect(store.apply(one(2))).toMatchObject({ batches: 1, duplicates: 0 })
  expect(totals(path)).toEqual({ a: 2n })
  expect(query(path, 'PRAGMA integrity_check')).toEqual([['ok']])
})

test('a commit that went into a file moved away is not returned, and is skipped when that file is back', () => {
  const { store, path } = openStore()
  store.apply(one(1))
  // Moved between the check before the commit and the one after it.
  const { apply } = movedDuring(store, path)
  expect(() => apply(2)).toThrow(DatabaseMovedError)
  renameSync(`${path}.away`, path)
  expect(totals(path)).toEqual({ a: 2n })
  expect(store.apply(one(2))).toMatchObject({ batches: 0, duplicates: 1 })
  expect(totals(path)).toEqual({ a: 2n })
})

test('a commit that went into a file moved away is applied to the copy in its place, which lacks it', () => {
  const { store, path } = openStore()
  store.apply(one(1))
  new Database(path).pragma('wal_checkpoint(TRUNCATE)')
  copyFileSync(path, `${path}.copy`)
  const { apply } = movedDuring(store, path)
  expect(() => apply(2)).toThrow(DatabaseMovedError)
  rmSync(`${path}-wal`)
  rmSync(`${path}-shm`)
  renameSync(`${path}.copy`, path)
  expect(store.apply(one(2))).toMatchObject({ batches: 1, duplicates: 0 })
  expect(totals(path)).toEqual({ a: 2n })
})

/** Moves the database away within an apply: a batch's text is read in its transaction. */
function movedDuring (store: Store, path: string): { apply: (seq: number) => void } {
  return {
    apply: (seq) => {
      const batch = one(seq)[0]!
      const read = batch.toString.bind(batch)
      batch.toString = (...args: Parameters<Buffer['toString']>) => {
        if (existsSync(path)) renameSync(path, `${path}.away`)
        return read(...args)
      }
      store.apply([batch])
    },
  }
}

test('a copy with all that was stored takes its place; an older one does not', () => {
  const { store, path } = openStore()
  store.apply(one(1))
  const backup = (name: string): void => {
    const db = new Database(path, { readonly: true })
    db.prepare('VACUUM INTO ?').run(`${path}.${name}`)
    db.close()
  }
  backup('older')
  store.apply(one(2))
  backup('newest')
  moveAll(path, `${path}.gone`)
  copyFileSync(`${path}.older`, path)
  expect(() => store.apply(one(3))).toThrow(/an older copy is in its place/)
  rmSync(path)
  copyFileSync(`${path}.newest`, path)
  expect(store.apply(one(3))).toMatchObject({ batches: 1 })
  expect(totals(path)).toEqual({ a: 3n })
  expect(query(`${path}.gone`, 'SELECT value FROM numbers')).toEqual([[2n]])
})

test('a copy from before the last start is refused', () => {
  const { store, path } = openStore()
  store.raiseEpoch()
  const db = new Database(path, { readonly: true })
  db.prepare('VACUUM INTO ?').run(`${path}.older`)
  db.close()
  store.raiseEpoch()
  moveAll(path, `${path}.gone`)
  renameSync(`${path}.older`, path)
  expectMoved(store, 1)
})

test.each(['-wal',
  '-shm'])('without its %s, which somebody removed, what it had is kept, and all goes on', (suffix) => {
  const { store, path } = openStore()
  store.apply(one(1))
  rmSync(`${path}${suffix}`)
  expect(store.apply(one(2))).toMatchObject({ batches: 1 })
  expect(totals(path)).toEqual({ a: 2n })
  expect(existsSync(`${path}${suffix}`)).toBe(true)
  store.close()
  expect(totals(path)).toEqual({ a: 2n })
  expect(query(path, 'PRAGMA integrity_check')).toEqual([['ok']])
})

test('without its -wal, which somebody removed while others have the database open, nothing is lost either', () => {
  const { store, path } = openStore()
  const reader = new Database(path, { readonly: true })
  onTestFinished(() => { reader.close() })
  store.apply(one(1))
  expect(reader.prepare('SELECT value FROM numbers').pluck().get()).toBe(1)
  rmSync(`${path}-wal`)
  // A snapshot of another connection needs the removed one: until that ends, nothing is stored.
  reader.exec('BEGIN')
  reader.prepare('SELECT count(*) FROM numbers').get()
  expect(() => store.apply(one(2))).toThrow(DatabaseMovedError)
  reader.exec('COMMIT')
  expect(store.apply(one(2))).toMatchObject({ batches: 1 })
  reader.close()
  store.close()
  expect(totals(path)).toEqual({ a: 2n })
  expect(query(path, 'PRAGMA integrity_check')).toEqual([['ok']])
})

test('a -wal that is removed within a commit: the commit is not returned, and skipped when it comes again', () => {
  const { store, path } = openStore()
  store.apply(one(1))
  const batch = one(2)[0]!
  const read = batch.toString.bind(batch)
  batch.toString = (...args: Parameters<Buffer['toString']>) => {
    rmSync(`${path}-wal`, { force: true })
    return read(...args)
  }
  expect(() => store.apply([batch])).toThrow(DatabaseMovedError)
  expect(store.apply(one(2))).toMatchObject({ batches: 0, duplicates: 1 })
  store.close()
  expect(totals(path)).toEqual({ a: 2n })
})

test('a new connection after an error is not opened on whatever is there', () => {
  const { store, path } = openStore()
  store.apply(one(1))
  moveAll(path, `${path}.away`)
  expect(() => store.reopen()).toThrow(DatabaseMovedError)
  expect(existsSync(path)).toBe(false)
  moveAll(`${path}.away`, path)
  store.reopen()
  expect(store.apply(one(2))).toMatchObject({ batches: 1 })
  expect(totals(path)).toEqual({ a: 2n })
})
