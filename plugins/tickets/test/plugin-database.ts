// A real SQLite database as the consumer gives it to a plugin, and as a web worker reads it.
import Database from 'better-sqlite3'
import { onTestFinished } from 'vitest'
import type { PluginDatabase, SqlValue } from '@gearbox/runtime/plugin.ts'
import { migrations } from '../src/tables.ts'

/** A database in memory, with what applies entries to it as the consumer does: each in its own savepoint. */
export interface TestDatabase extends PluginDatabase {
  /** Runs something that is undone if it throws. */
  savepoint<T> (body: () => T): T
}

/** Opens one with the tables of tickets. It is closed with its test. */
export function openDatabase (scripts: readonly string[] = migrations): TestDatabase {
  const db = new Database(':memory:')
  onTestFinished(() => { db.close() })
  for (const script of scripts) db.exec(script)
  const statements = new Map<string, Database.Statement<SqlValue[]>>()
  const prepare = (sql: string): Database.Statement<SqlValue[]> => {
    const statement = statements.get(sql) ?? db.prepare<SqlValue[]>(sql)
    statements.set(sql, statement)
    return statement
  }
  return {
    get: <Row>(sql: string, ...values: SqlValue[]) => prepare(sql).get(...values) as Row | undefined,
    all: <Row>(sql: string, ...values: SqlValue[]) => prepare(sql).all(...values) as Row[],
    run: (sql, ...values) => prepare(sql).run(...values).changes,
    savepoint: (body) => db.transaction(body)(),
  }
}
