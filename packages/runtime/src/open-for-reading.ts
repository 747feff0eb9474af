// Opens a database for reading only: for totals, counts, checks and copies, in whichever process.
import { statSync } from 'node:fs'
import Database from 'better-sqlite3'

/**
 * A connection that never writes.
 * @param timeoutMs how long a read waits for a lock
 * @throws Error if there is no readable file. One that is no regular file is not opened: with a FIFO that would block
 * this process for ever
 */
export function openForReading (path: string, timeoutMs: number): Database.Database {
  if (!statSync(path).isFile()) throw new Error(`${path} is not a file`)
  return new Database(path, { readonly: true, fileMustExist: true, timeout: timeoutMs })
}
