// One `npm start` per database. The lock is SQLite's own, on an empty database next to the real one: the kernel
// releases it when its process ends, however it ends. A record next to it names the holder and its child processes.
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import Database from 'better-sqlite3'
import { FatalError, reasonOf } from '../errors.ts'
import { stopDeadlineMs } from './shutdown.ts'

interface Process {
  readonly pid: number
  /** Tells a process from a later one with the same pid. */
  readonly startedAt: string
}

/** The file next to the lock. Its field `parts` is older than the word child process. */
interface LockRecord {
  readonly parent: Process
  readonly address: string
  readonly parts: readonly Process[]
}

/** How often it is checked whether those of an earlier parent have left. */
const leavingCheckMs = 50

/** The lock of one `npm start`, held from its construction until `release` or the end of the process. */
export class DatabaseLock {
  readonly #db: Database.Database
  readonly #recordPath: string

  /**
   * @param advice what to do if another `npm start` holds it
   * @throws FatalError if another `npm start` holds it, or the directory can't be written
   */
  constructor (databasePath: string, advice = 'Stop that one, or name another DATABASE_PATH and PORT') {
    this.#recordPath = `${databasePath}.lock.json`
    const path = `${databasePath}.lock`
    const unwritable = (error: unknown): FatalError => new FatalError(
      `nothing can be written next to the database ${databasePath} (${reasonOf(error)}). ` +
      "Check DATABASE_PATH and its directory's permissions")
    try {
      mkdirSync(dirname(path), { recursive: true })
      this.#db = new Database(path, { timeout: 0 })
    } catch (error) {
      throw unwritable(error)
    }
    try {
      this.#db.exec('BEGIN EXCLUSIVE')
    } catch (error) {
      this.#db.close()
      if (!(error instanceof Error) || !('code' in error) || error.code !== 'SQLITE_BUSY') throw unwritable(error)
      const other = readRecord(this.#recordPath)
      const which = other === undefined ? '' : `(process ${other.parent.pid}, at ${other.address}) `
      throw new FatalError(`another npm start ${which}already works on ${databasePath}. ${advice}`)
    }
  }

  /**
   * Waits for the child processes of an earlier parent that was killed: they flush, and still use port and database.
   * @throws FatalError if they don't leave in time
   */
  async waitForLeaving (): Promise<void> {
    const deadline = performance.now() + stopDeadlineMs
    const parts = readRecord(this.#recordPath)?.parts ?? []
    for (;;) {
      const leaving = parts.filter(({ pid, startedAt }) => startTime(pid) === startedAt)
      if (leaving.length === 0) return
      if (performance.now() > deadline) {
        const pids = leaving.map(({ pid }) => pid).join(', ')
        throw new FatalError(
          `processes of an earlier npm start are still leaving (${pids}). ` +
          'Wait for them, or look at what holds them up')
      }
      await delay(leavingCheckMs)
    }
  }

  /**
   * Writes down which processes run now. Where that fails (a full disk) they run on; a later start only knows less of
   * them.
   */
  record (address: string, parts: readonly number[]): void {
    const processes = [process.pid, ...parts].map((pid): Process => ({ pid, startedAt: startTime(pid) ?? '' }))
    const [parent, ...rest] = processes
    try {
      writeFileSync(`${this.#recordPath}.tmp`, JSON.stringify({ parent, address, parts: rest }))
      renameSync(`${this.#recordPath}.tmp`, this.#recordPath)
    } catch {}
  }

  /** Releases the lock; only after all child processes have left. */
  release (): void {
    rmSync(this.#recordPath, { force: true })
    this.#db.close()
  }
}

function readRecord (path: string): LockRecord | undefined {
  try {
    const record: unknown = JSON.parse(readFileSync(path, 'utf8'))
    return isRecord(record) ? record : undefined
  } catch {
    return undefined
  }
}

function isRecord (value: unknown): value is LockRecord {
  return typeof value === 'object' && value !== null && 'parent' in value && isProcess(value.parent) &&
    'address' in value && typeof value.address === 'string' &&
    'parts' in value && Array.isArray(value.parts) && value.parts.every(isProcess)
}

function isProcess (value: unknown): value is Process {
  return typeof value === 'object' && value !== null && 'pid' in value && typeof value.pid === 'number' &&
    'startedAt' in value && typeof value.startedAt === 'string'
}

/** When a living process started, as the kernel writes it; '' where there is no /proc; undefined for a dead one. */
function startTime (pid: number): string | undefined {
  try {
    process.kill(pid, 0)
  } catch (error) {
    // EPERM: it lives and is somebody else's, so it is none of ours.
    return error instanceof Error && 'code' in error && error.code === 'EPERM' ? 'foreign' : undefined
  }
  try {
    // Field 22 of proc_pid_stat(5), counted from behind the name, which may hold anything; a zombie (field 3) has left.
    const fields = readFileSync(`/proc/${pid}/stat`, 'latin1').replace(/^.*\) /s, '').split(' ')
    return fields[0] === 'Z' ? undefined : fields[19]
  } catch {
    return ''
  }
}
