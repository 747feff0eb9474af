// Reads of plugins from the connection that totals are read from: one SELECT at a time, so that none holds a snapshot
// for longer than it runs.
import type Database from 'better-sqlite3'
import type { SqlValue } from '@gearbox/runtime/plugin.ts'

/** Rows that one read returns at most: they are made in one step of the event loop. */
export const rowsMax = 10_000

/** Texts of statements that are kept prepared: plugins have some dozens. */
const statementsMax = 500

/** Prepared statements of one connection, by their text. */
export class PluginReads {
  readonly #db: Database.Database
  readonly #statements = new Map<string, Database.Statement<SqlValue[]>>()

  constructor (db: Database.Database) {
    this.#db = db
  }

  /** The rows of a SELECT, at most `most`. Integers past 2^53 are bigints. @throws any SQLite error */
  read (sql: string, values: readonly SqlValue[], most = rowsMax): unknown[] {
    const rows: unknown[] = []
    for (const row of this.#prepare(sql).iterate(...values)) {
      rows.push(narrowed(row))
      if (rows.length >= most) break
    }
    return rows
  }

  #prepare (sql: string): Database.Statement<SqlValue[]> {
    const known = this.#statements.get(sql)
    if (known !== undefined) return known
    const statement = this.#db.prepare<SqlValue[]>(sql).safeIntegers()
    if (!statement.reader) throw new Error('only what returns rows can be read here')
    const [oldest] = this.#statements.keys()
    if (oldest !== undefined && this.#statements.size >= statementsMax) this.#statements.delete(oldest)
    this.#statements.set(sql, statement)
    return statement
  }
}

function narrowed (row: unknown): unknown {
  if (typeof row !== 'object' || row === null) return row
  return Object.fromEntries(Object.entries(row).map(([name, value]) => [name, narrowedValue(value)]))
}

function narrowedValue (value: unknown): unknown {
  return typeof value === 'bigint' && value === BigInt(Number(value)) && Number.isSafeInteger(Number(value))
    ? Number(value)
    : value
}
