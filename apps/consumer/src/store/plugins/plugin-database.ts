// The database as plugins may use it: single statements, and only while a transaction is open. After SQLite has ended a
// transaction by itself, whatever was executed next would be committed at once.
import Database from 'better-sqlite3'
import type { PluginDatabase, SqlValue } from '@gearbox/runtime/plugin.ts'
import { checkWrites, tablePrefixOf } from './write-guard.ts'

/** Prepared statements that are kept: one that writes values into its SQL must not fill the memory. */
const statementsMax = 500

/** What a statement may begin with, behind blanks and comments. */
const permitted = /^(?:\s|--[^\n]*(?:\n|$)|\/\*[\s\S]*?\*\/)*(?:SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH)\b/i

/** SQLite's errors that say nothing about the statement: of the disk, the memory, or somebody else's lock. */
const ofConnection =
  /^SQLITE_(FULL|IOERR|NOMEM|BUSY|INTERRUPT|CORRUPT|NOTADB|CANTOPEN|READONLY|PROTOCOL|LOCKED)(_|$)/

/** Whether an error is one of the disk or the connection, and not of what was executed. */
export function isOfConnection (error: unknown): boolean {
  return error instanceof Database.SqliteError && ofConnection.test(error.code)
}

/** The database within a transaction of its caller: all of it, or as one plugin may use it. */
export class TransactionDatabase implements PluginDatabase {
  readonly #db: Database.Database
  /** What the tables that it may write begin with; undefined: any. */
  readonly #prefix: string | undefined
  /** By their text. */
  readonly #statements = new Map<string, Database.Statement<SqlValue[]>>()
  /** Shared with those that were made from it. */
  readonly #failed: { failure: unknown }

  constructor (db: Database.Database, prefix?: string, failed: { failure: unknown } = { failure: undefined }) {
    this.#db = db
    this.#prefix = prefix
    this.#failed = failed
  }

  /** The same for a plugin, which reads everything and writes its own tables. */
  ofPlugin (name: string): TransactionDatabase {
    return new TransactionDatabase(this.#db, tablePrefixOf(name), this.#failed)
  }

  get<Row> (sql: string, ...values: SqlValue[]): Row | undefined {
    return this.#execute(sql, values, (statement) => statement.get(...values)) as Row | undefined
  }

  all<Row> (sql: string, ...values: SqlValue[]): Row[] {
    return this.#execute(sql, values, (statement) => statement.all(...values)) as Row[]
  }

  run (sql: string, ...values: SqlValue[]): number {
    return this.#execute(sql, values, (statement) => statement.run(...values)).changes
  }

  /**
   * The first error of the disk or the connection since the last call, whether or not the plugin let it pass, and
   * whichever plugin it was. The transaction must be given up then, even if it is still open.
   */
  takeFailure (): unknown {
    const { failure } = this.#failed
    this.#failed.failure = undefined
    return failure
  }

  #execute<T> (
    sql: string, values: readonly SqlValue[], execute: (statement: Database.Statement<SqlValue[]>) => T
  ): T {
    if (!this.#db.inTransaction) throw new Error('no transaction is open: nothing can be executed')
    // What has failed once is given up: the disk may be full for one statement and not for the next.
    if (this.#failed.failure !== undefined) throw this.#failed.failure
    try {
      return execute(this.#prepare(sql, values))
    } catch (error) {
      if (isOfConnection(error)) this.#failed.failure = error
      throw error
    }
  }

  #prepare (sql: string, values: readonly SqlValue[]): Database.Statement<SqlValue[]> {
    const known = this.#statements.get(sql)
    if (known !== undefined) return known
    if (!permitted.test(sql)) {
      throw new TypeError('only SELECT, INSERT, UPDATE, DELETE, REPLACE and WITH can be executed, one at a time')
    }
    const statement = this.#db.prepare<SqlValue[]>(sql)
    if (this.#prefix !== undefined) checkWrites(this.#db, statement, values, this.#prefix)
    if (this.#statements.size >= statementsMax) this.#statements.clear()
    this.#statements.set(sql, statement)
    return statement
  }
}
