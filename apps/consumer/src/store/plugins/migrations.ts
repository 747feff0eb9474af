// The tables of plugins: each plugin has migrations and a version of its own in the same database. Called by the store
// when it opens a database, before it prepares anything.
import type Database from 'better-sqlite3'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import type { LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { isBusy } from '../open.ts'
import { describeObject, readObjects, type SchemaObject } from '../schema-objects.ts'
import { tablePrefixOf } from './write-guard.ts'

/**
 * Brings the tables of all plugins to their present version, each step in its own transaction.
 * @throws FatalError (exit code 78) with the plugin and the cause; SQLITE_BUSY
 */
export function migratePlugins (db: Database.Database, plugins: readonly LoadedPlugin[]): void {
  for (const { plugin: { name, consumer } } of plugins) {
    const migrations = consumer?.migrations ?? []
    const version = readVersion(db, name)
    if (version > migrations.length) {
      throw new FatalError(`plugin ${name}: its tables in ${db.name} have version ${version} and this one knows ` +
        `${migrations.length}: they were written by a newer one. Load that one`, exitCode.config)
    }
    for (let next = version; next < migrations.length; next++) migrate(db, name, migrations[next]!, next)
  }
}

/** The version of a plugin's tables; 0: it has none yet. */
export function readVersion (db: Database.Database, name: string): number {
  const version = db.prepare<[string], unknown>('SELECT value FROM meta WHERE name = ?').pluck().get(`plugin:${name}`)
  return Number(version ?? 0)
}

/** Runs one step, unless another process was faster. @param from the version that it begins from */
function migrate (db: Database.Database, name: string, sql: string, from: number): void {
  try {
    db.transaction(() => {
      if (readVersion(db, name) !== from) return
      const before = readObjects(db)
      db.exec(sql)
      if (!db.inTransaction) throw new Error('it ends the transaction')
      checkObjects(name, before, readObjects(db))
      db.prepare(`
        INSERT INTO meta(name, value) VALUES (?, CAST(? AS INTEGER))
        ON CONFLICT(name) DO UPDATE SET value = excluded.value`).run(`plugin:${name}`, from + 1)
    }).immediate()
  } catch (error) {
    if (isBusy(error)) throw error
    throw new FatalError(`plugin ${name}: migration ${from + 1} failed: ${reasonOf(error)}`, exitCode.config)
  }
}

/** @throws Error if anything but the plugin's own objects was made, changed or removed */
function checkObjects (name: string, before: readonly SchemaObject[], after: readonly SchemaObject[]): void {
  const prefix = tablePrefixOf(name)
  const isOwn = (object: SchemaObject): boolean =>
    [object.name, object.table].every((text) => text.toLowerCase().startsWith(prefix))
  const isAmong = (objects: readonly SchemaObject[], wanted: SchemaObject): boolean =>
    objects.some(({ type, name, table, sql }) =>
      type === wanted.type && name === wanted.name && table === wanted.table && sql === wanted.sql)
  const made = after.find((object) => !isOwn(object) && !isAmong(before, object))
  if (made !== undefined) {
    throw new Error(`its ${describeObject(made)} is not its own: names must begin with ${prefix}, also of their table`)
  }
  const gone = before.find((object) => !isOwn(object) && !isAmong(after, object))
  if (gone !== undefined) throw new Error(`it removes ${describeObject(gone)}, which is not its own`)
  // A violation would show at the commit only, and every run with it would fail for ever.
  const deferred = after.find((object) => isOwn(object) && /\bINITIALLY\s+DEFERRED\b/i.test(object.sql ?? ''))
  if (deferred !== undefined) throw new Error(`its ${describeObject(deferred)} has a deferred foreign key`)
}
