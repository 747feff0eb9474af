// One `npm start` a database. The lock is SQLite's own, on an empty database beside the real one: the kernel lets go of it
// when its process ends, however it ends. A record beside it says who holds it and which parts may outlive it.
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

interface LockRecord {
  readonly parent: Process
  readonly address: string
  readonly parts: readonly Process[]
}

const leavingCheckMs = 50

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
    try {
      mkdirSync(dirname(path), { recursive: true })
      this.#db = new Database(path, { timeout: 0 })
    } catch (error) {
      throw new FatalError(`nothing can be written beside the database ${databasePath} (${reasonOf(error)}). Check DATABASE_PATH and its directory's permissions`)
    }
    try {
      this.#db.exec('BEGIN EXCLUSIVE')
    } catch (error) {
      this.#db.close()
      if (!(error instanceof Error) || !('code' in error) || error.code !== 'SQLITE_BUSY') {
        throw new FatalError(`nothing can be written beside the database ${databasePath} (${reasonOf(error)}). Check DATABASE_PATH and its directory's permissions`)
      }
      const other = readRecord(this.#recordPath)
      throw new FatalError(`another npm start ${other === undefined ? '' : `(process ${other.parent.pid}, at ${other.address}) `}already works on ${databasePath}. ${advice}`)
    }
  }

  /**
   * Waits for the parts that an earlier parent left behind when it was killed: they are flushing, and still have port and database.
   * @throws FatalError if they don't leave in time
   */
  async waitForLeaving (): Promise<void> {
    const deadline = performance.now() + stopDeadlineMs
    const parts = readRecord(this.#recordPath)?.parts ?? []
    for (;;) {
      const leaving = parts.filter(({ pid, startedAt }) => startTime(pid) === startedAt)
      if (leaving.length === 0) return
      if (performance.now() > deadline) {
        throw new FatalError(`parts of an earlier npm start are still leaving (processes ${leaving.map(({ pid }) => pid).join(', ')}). Wait for them, or look at what holds them up`)
      }
      await delay(leavingCheckMs)
    }
  }

  /** Writes down who is at work now. Where that fails (a full disk) the parts work on; a later start only knows less of them. */
  record (address: string, parts: readonly number[]): void {
    const processes = [process.pid, ...parts].map((pid): Process => ({ pid, startedAt: startTime(pid) ?? '' }))
    const [parent, ...rest] = processes
    try {
      writeFileSync(`${this.#recordPath}.tmp`, JSON.stringify({ parent, address, parts: rest }))
      renameSync(`${this.#recordPath}.tmp`, this.#recordPath)
    } catch {}
  }

  /** Lets go; only after all parts have left. */
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
    'address' in value && typeof value.address === 'string' && 'parts' in value && Array.isArray(value.parts) && value.parts.every(isProcess)
}

function isProcess (value: unknown): value is Process {
  return typeof value === 'object' && value !== null && 'pid' in value && typeof value.pid === 'number' && 'startedAt' in value && typeof value.startedAt === 'string'
}

/** When a living process started, in the kernel's words; '' where there is no /proc to ask; undefined for a dead one. */
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
