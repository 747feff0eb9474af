// Who works on a database: consumers share this lock, and a rebind, which needs them gone, takes it alone. It is a lock
// of SQLite's on an empty file next to the database: the kernel releases it however its process ends.
import { mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import Database from 'better-sqlite3'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'

/** A lock on a database's consumers, held from `share` or `takeAlone` until `release`. */
export class ConsumerLock {
  readonly #db: Database.Database

  private constructor (databasePath: string, begin: string) {
    try {
      mkdirSync(dirname(databasePath), { recursive: true })
      this.#db = new Database(`${databasePath}.consumer.lock`, { timeout: 0 })
    } catch (error) {
      throw new FatalError(`nothing can be written next to the database ${databasePath} (${reasonOf(error)}). ` +
        "Check DATABASE_PATH and its directory's permissions")
    }
    try {
      this.#db.exec(begin)
    } catch (error) {
      this.#db.close()
      throw error
    }
  }

  /**
   * A consumer's share: several may hold one, as a newer consumer supersedes an older one.
   * @throws SQLITE_BUSY during a rebind
   */
  static share (databasePath: string): ConsumerLock {
    return new ConsumerLock(databasePath, 'BEGIN; SELECT count(*) FROM sqlite_schema')
  }

  /** All of it. @throws SQLITE_BUSY while a consumer runs */
  static takeAlone (databasePath: string): ConsumerLock {
    return new ConsumerLock(databasePath, 'BEGIN EXCLUSIVE')
  }

  /** Ends it; so does the end of the process. */
  release (): void {
    this.#db.close()
  }
}
