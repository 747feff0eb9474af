// A claim on one spool file, so that two workers do not push it at the same time. Pushing it twice would be harmless,
// and noisy.
import { rmSync } from 'node:fs'
import Database from 'better-sqlite3'

/**
 * A lock next to the file: SQLite's, as the kernel releases it when the process ends, however it ends. It is claimed
 * from `claim` until `release`. Where no lock file can be made it claims nothing, and its worker goes on.
 */
export class FileClaim {
  readonly #path: string
  /** Its lock; undefined where no file could be made for it. */
  readonly #db: Database.Database | undefined

  private constructor (path: string, db: Database.Database | undefined) {
    this.#path = path
    this.#db = db
  }

  /** Claims a file. @returns undefined if another worker has claimed it */
  static claim (path: string): FileClaim | undefined {
    const lockPath = `${path}.claim`
    let db: Database.Database | undefined
    try {
      db = new Database(lockPath, { timeout: 0 })
      db.exec('BEGIN EXCLUSIVE')
    } catch (error) {
      db?.close()
      if (error instanceof Error && 'code' in error && error.code === 'SQLITE_BUSY') return undefined
      db = undefined
    }
    return new FileClaim(lockPath, db)
  }

  /** Lets other workers claim the file. To be called once. */
  release (): void {
    if (this.#db === undefined) return
    // Whoever is next makes a new file of that name.
    rmSync(this.#path, { force: true })
    this.#db.close()
  }
}
