// What may be a database and what may not: a refusal is one line that says why, and leaves everything as it was.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync, existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, renameSync, statSync, symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { basename, dirname, join } from 'node:path'
import Database from 'better-sqlite3'
import { expect, onTestFinished, test } from 'vitest'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { element } from '@gearbox/test-kit/batches.ts'
import { inspectDatabase } from '../src/store/open.ts'
import { freshPath, openStore, totals } from './open-store.ts'

/** Everything in a directory: names, kinds, times and contents. */
function picture (dir: string): unknown[] {
  return readdirSync(dir).sort().map((name) => {
    const stats = lstatSync(join(dir, name))
    return [name, stats.mode, stats.mtimeMs,
      stats.isFile() ? createHash('sha256').update(readFileSync(join(dir, name))).digest('hex') : '']
  })
}

function database (path: string, ...statements: readonly string[]): string {
  const db = new Database(path)
  for (const statement of statements) db.exec(statement)
  db.close()
  return path
}

const strangers: ReadonlyArray<readonly [string, readonly string[], RegExp]> = [
  ['with other tables', ['CREATE TABLE users(id); CREATE TABLE posts(id)'],
    /another application: it has table "users", table "posts"/],
  ['with very many tables', Array.from({ length: 9 }, (_, i) => `CREATE TABLE t${i}(x)`), /table "t2" and 6 more/],
  ['with a view of that name', ['CREATE TABLE n(key, value); CREATE VIEW numbers AS SELECT * FROM n'],
    /"numbers" is a view/],
  ['with tables of our version', ['CREATE TABLE users(id)', 'PRAGMA user_version = 1'],
    /another application: it has table "users"/],
  ['with tables of a newer version', ['CREATE TABLE users(id)', 'PRAGMA user_version = 7'],
    /another application: it has table "users"/],
  ['with an application_id', ['CREATE TABLE numbers(key TEXT, value INTEGER)', 'PRAGMA application_id = 1234'],
    /application_id is 1234/],
  ['with an application_id and no tables', ['PRAGMA application_id = 1234'], /application_id is 1234/],
  ['with only a view', ['CREATE VIEW v AS SELECT 1'], /view "v"/],
]

test.each(strangers.flatMap(([what, statements, why]) =>
  ['delete', 'wal'].map((mode) => ({ what, statements, why, mode }))))(
  "a stranger's database $what, in $mode mode, is refused untouched", ({ statements, why, mode }) => {
    const path = database(freshPath(), `PRAGMA journal_mode = ${mode}`, ...statements)
    const before = picture(dirname(path))
    expect(() => inspectDatabase(path)).toThrow(why)
    expect(() => openStore({ path })).toThrow(FatalError)
    expect(picture(dirname(path))).toEqual(before)
  })

const places: ReadonlyArray<readonly [string, (dir: string) => string, RegExp]> = [
  ['a directory', (dir) => { mkdirSync(join(dir, 'numbers.db')); return join(dir, 'numbers.db') }, /is a directory/],
  ['a FIFO', (dir) => { spawnSync('mkfifo', [join(dir, 'numbers.db')]); return join(dir, 'numbers.db') }, /is a FIFO/],
  ['another file',
    (dir) => { writeFileSync(join(dir, 'numbers.db'), 'Dear reader, '.repeat(1000)); return join(dir, 'numbers.db') },
    /not a database/],
  ['a short file', (dir) => { writeFileSync(join(dir, 'numbers.db'), 'x'); return join(dir, 'numbers.db') },
    /not a database/],
  ['a read-only database', (dir) => {
    openStore({ path: join(dir, 'numbers.db') }).store.close()
    chmodSync(join(dir, 'numbers.db'), 0o444)
    return join(dir, 'numbers.db')
  }, /read-only/],
  ['memory', (dir) => join(dir, ':memory:'), /in memory/],
  ['a URI', (dir) => join(dir, 'file:numbers.db?mode=memory'), /no URI/],
  ['a path below a file', (dir) => { writeFileSync(join(dir, 'file'), ''); return join(dir, 'file', 'numbers.db') },
    /ENOTDIR/],
  ['a path that is too long', (dir) => join(dir, 'x'.repeat(300)), /ENAMETOOLONG/],
  ['/proc', () => '/proc/numbers.db', /kernel/],
  ['/proc through a link',
    (dir) => { symlinkSync('/proc/self', join(dir, 'link')); return join(dir, 'link', 'numbers.db') }, /kernel/],
  ['/sys', () => '/sys/kernel/numbers.db', /kernel/],
  ['/dev', () => '/dev/numbers.db', /kernel/],
  ['/dev/null', () => '/dev/null', /kernel/],
  ['a link to /dev/null',
    (dir) => { symlinkSync('/dev/null', join(dir, 'numbers.db')); return join(dir, 'numbers.db') }, /kernel/],
]

test.each(places)('%s in place of a database is refused in one line, and nothing is left', (_what, make, why) => {
  const dir = temporaryDir()
  const path = make(dir)
  const before = picture(dir)
  expect(() => openStore({ path })).toThrow(FatalError)
  expect(() => openStore({ path })).toThrow(why)
  expect(() => openStore({ path })).toThrow(/^.*DATABASE_PATH.*$/)
  expect(picture(dir)).toEqual(before)
  expect(existsSync(`${path}-wal`)).toBe(false)
})

test('a socket in place of a database is refused', async () => {
  const path = freshPath()
  const server = createServer()
  onTestFinished(() => { server.close() })
  await new Promise<void>((resolve) => server.listen(path, resolve))
  expect(() => openStore({ path })).toThrow(/is a socket/)
})

test('a -wal without its database is refused: SQLite would delete it', () => {
  const { store, path } = openStore()
  store.apply([element({ sums: { a: 1 } })])
  renameSync(path, `${path}.away`)
  const size = statSync(`${path}-wal`).size
  for (const make of [() => {}, () => { writeFileSync(path, '') }]) {
    make()
    expect(() => openStore({ path })).toThrow(/there is none, but its numbers.db-wal/)
    expect(statSync(`${path}-wal`).size).toBe(size)
  }
  renameSync(`${path}.away`, path)
  store.close()
  expect(totals(path)).toEqual({ a: 1n })
})

test('an empty file becomes a database, and so does what a link names', () => {
  const [path, target] = [freshPath(), freshPath()]
  writeFileSync(path, '')
  openStore({ path }).store.apply([element({ sums: { a: 1 } })])
  expect(totals(path)).toEqual({ a: 1n })
  const link = join(temporaryDir(), 'link.db')
  symlinkSync(target, link)
  openStore({ path: link }).store.apply([element({ sums: { a: 1 } })])
  expect(totals(target)).toEqual({ a: 1n })
})

test.each(['with its consumer at work', 'at rest',
  'of a killed consumer'])('inspecting our database %s leaves nothing behind', (state) => {
  const { store, path } = openStore()
  store.apply([element({ sums: { a: 1 } })])
  if (state === 'at rest') store.close()
  const copied = join(temporaryDir(), basename(path))
  if (state === 'of a killed consumer') {
    for (const suffix of ['', '-wal']) writeFileSync(`${copied}${suffix}`, readFileSync(`${path}${suffix}`))
  }
  const inspected = state === 'of a killed consumer' ? copied : path
  const before = picture(dirname(inspected)).filter((file) => !String((file as unknown[])[0]).endsWith('-shm'))
  expect(inspectDatabase(inspected)?.owner).toEqual(store.owner)
  expect(picture(dirname(inspected)).filter((file) => !String((file as unknown[])[0]).endsWith('-shm'))).toEqual(before)
})
