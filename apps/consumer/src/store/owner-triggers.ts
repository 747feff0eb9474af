// Triggers on `numbers`, and indexes, that the database's owner made. They may refuse a row: by an error, by leaving it
// out, or by ending the transaction. What they refuse is set aside, and everything else counts.
import Database from 'better-sqlite3'
import type { Statements } from './statements.ts'

/** A trigger has left a row out. */
export class LeftOutByTriggerError extends Error {}

/** A trigger has ended the transaction (RAISE(ROLLBACK)): whatever was executed next would be committed by itself. */
export class TransactionLostError extends Error {
  /** The entry at which it was ended. */
  readonly entry: string

  constructor (entry: string) {
    super(`a trigger has ended the transaction at ${entry}`)
    this.entry = entry
  }
}

/** Whether an error is about the row and not about the disk or the connection. */
export function isConstraint (error: unknown): boolean {
  return error instanceof LeftOutByTriggerError ||
    (error instanceof Database.SqliteError && error.code.startsWith('SQLITE_CONSTRAINT'))
}

/** What the triggers and indexes of the database's owner do to the entries of a run. */
export class OwnerTriggers {
  readonly #db: Database.Database
  readonly #statements: Statements
  /** SQLite's number of the schema, and whether there were any in it then. */
  #schema: { readonly version: unknown, readonly hasAny: boolean } | undefined

  constructor (db: Database.Database, statements: Statements) {
    this.#db = db
    this.#statements = statements
  }

  /** Whether there are any now. Within a transaction this can't change. */
  exist (): boolean {
    const version = this.#db.pragma('schema_version', { simple: true })
    if (this.#schema === undefined || this.#schema.version !== version) {
      this.#schema = { version, hasAny: this.#statements.countGuards.get() !== 0 }
    }
    return this.#schema.hasAny
  }

  /**
   * Applies one entry in a savepoint: if it is refused, it is undone, and nothing else.
   * @returns 'trigger' if it was refused
   * @throws TransactionLostError if a trigger has ended the transaction: nothing may be executed in it then
   */
  attempt<T> (entry: string, apply: () => T): T | 'trigger' {
    this.#statements.savepoint.run()
    try {
      const result = apply()
      if (!this.#db.inTransaction) throw new TransactionLostError(entry)
      this.#statements.release.run()
      return result
    } catch (error) {
      if (!isConstraint(error)) throw error
      if (!this.#db.inTransaction) throw new TransactionLostError(entry)
      this.#statements.rollbackToSavepoint.run()
      this.#statements.release.run()
      return 'trigger'
    }
  }

  /**
   * Whether a trigger ends the transaction in which `write` is run. To be called outside of one; nothing is written.
   */
  wouldEndTransaction (write: () => void): boolean {
    this.#db.exec('BEGIN IMMEDIATE')
    try {
      write()
      return false
    } catch (error) {
      if (!isConstraint(error)) throw error
      return !this.#db.inTransaction
    } finally {
      if (this.#db.inTransaction) this.#db.exec('ROLLBACK')
    }
  }
}
