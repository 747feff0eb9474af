// `npm run backup -- FILE`: copies the database as it is at one moment, while the consumer goes on, and checks the
// copy.
import { existsSync, renameSync, rmSync } from 'node:fs'
import { resolve } from 'node:path'
import Database from 'better-sqlite3'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { openForReading } from '@gearbox/runtime/open-for-reading.ts'
import { defineCommand } from '@gearbox/runtime/process/command.ts'
import { readVersion } from '../store/schema.ts'

const usage = `The consumer goes on meanwhile. docs/operations.md says how to restore a copy.

usage: npm run backup -- FILE`

const busyTimeoutMs = 5000

/** `npm run backup`. */
export const command = defineCommand({
  name: 'backup',
  summary: 'Copies the database into FILE as it is at one moment, and checks the copy.',
  usage,
  options: {},
  positionals: true,
  settings: ['databasePath'],
  run: async ({ positionals: [file] }, { databasePath }) => await backUp(file, databasePath),
})

/** @returns the exit code */
async function backUp (file: string | undefined, databasePath: string): Promise<number> {
  if (file === undefined) throw new FatalError('name the copy: npm run backup -- FILE')
  const target = resolve(file)
  if (existsSync(target)) throw new FatalError(`${target} exists; a backup never replaces a file`)
  if (!existsSync(databasePath)) throw new FatalError(`there is no database ${databasePath}; DATABASE_PATH names it`)
  const partial = `${target}.partial`
  try {
    await copy(databasePath, partial)
    const keys = check(partial)
    renameSync(partial, target)
    process.stdout.write(`${target}: ${keys} keys, checked\n`)
    return 0
  } catch (error) {
    rmSync(partial, { force: true })
    if (error instanceof FatalError) throw error
    throw new FatalError(`${databasePath} could not be copied to ${target}: ${reasonOf(error)}`)
  }
}

async function copy (databasePath: string, target: string): Promise<void> {
  rmSync(target, { force: true })
  const db = openForReading(databasePath, busyTimeoutMs)
  try {
    // An open read pins one snapshot. Without it SQLite starts over whenever the consumer commits, and never ends.
    db.exec('BEGIN')
    db.prepare('SELECT count(*) FROM sqlite_schema').get()
    await db.backup(target)
  } finally {
    db.close()
  }
}

/** @returns how many keys the copy has @throws FatalError if it is not whole */
function check (path: string): number {
  const db = new Database(path)
  try {
    // One file is easier to keep than three: the copy leaves WAL mode until it is used.
    db.pragma('journal_mode = DELETE')
    const found = db.pragma('integrity_check', { simple: true })
    if (found !== 'ok') {
      throw new FatalError(`the copy is not whole: ${String(found)}. The database itself may be damaged: ` +
        'check it with sqlite3 and "PRAGMA integrity_check"')
    }
    if (readVersion(db) === 0) {
      throw new FatalError('the copy has no tables of Gearbox: was DATABASE_PATH ever started?')
    }
    return Number(db.prepare('SELECT count(*) FROM numbers').pluck().get())
  } finally {
    db.close()
  }
}
