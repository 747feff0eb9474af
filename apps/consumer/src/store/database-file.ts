// What is at a database's path: whether SQLite may open it at all, and whether it still is the file that is open.
// Nothing here writes. open.ts asks before it opens anything, the store before and after each transaction.
import {
  accessSync, closeSync, constants, openSync, readSync, realpathSync, statfsSync, statSync, type BigIntStats,
} from 'node:fs'
import { basename, dirname } from 'node:path'
import Database from 'better-sqlite3'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'

/** The database's file is not the one that was opened, or the one in its place is another. A person can put it back. */
export class DatabaseMovedError extends Error {
  readonly code = 'GBX_DATABASE_MOVED'
  override name = 'DatabaseMovedError'
}

/** Waiting for another writer stops the consumer's event loop: it tries again rather than waits long. */
export const busyTimeoutMs = 250

/** How often a database is opened that is replaced right after. */
const openAttempts = 3

/** Every SQLite database begins with this. */
const magic = 'SQLite format 3\0'

/** Bytes of the header up to the file format's read version, which is 2 in WAL mode. */
const headerBytes = 100
const readVersionAt = 19

/**
 * File systems that hold the kernel's own files (statfs(2)): proc, sysfs, devpts, cgroup, cgroup2, debugfs, tracefs,
 * securityfs, configfs.
 */
const kernelFileSystems = new Set([
  0x9fa0, 0x62656572, 0x1cd1, 0x27e0eb, 0x63677270, 0x64626720, 0x74726163, 0x73636673, 0x62656570,
])

/** /dev is a file system in memory like others, so it is known by its path; /dev/shm is an ordinary one. */
const kernelPaths = /^\/(proc|sys|dev(?!\/shm\/))(\/|$)/

/** Distinguishes a file from every other one, also after it was renamed. */
interface FileId {
  readonly dev: bigint
  readonly ino: bigint
}

function idOf (path: string): FileId | undefined {
  try {
    const { dev, ino } = statSync(path, { bigint: true })
    return { dev, ino }
  } catch {
    return undefined
  }
}

function same (one: FileId | undefined, other: FileId | undefined): boolean {
  return one?.dev === other?.dev && one?.ino === other?.ino
}

/** A connection, and the files that it has open. */
export interface OpenDatabase {
  readonly db: Database.Database
  readonly files: OpenFiles
}

/** The three files of an open database, as they were when it was opened: the database, its -wal and its -shm. */
export class OpenFiles {
  readonly #path: string
  /** SQLite keeps the other two next to the file that a symbolic link names, not next to the link. */
  readonly #realPath: string
  readonly #main: FileId | undefined
  readonly #wal: FileId | undefined
  readonly #shm: FileId | undefined

  private constructor (path: string) {
    this.#path = path
    this.#realPath = realpathSync(path)
    this.#main = idOf(path)
    this.#wal = idOf(`${this.#realPath}-wal`)
    this.#shm = idOf(`${this.#realPath}-shm`)
  }

  /**
   * Opens a database whose file may be moved meanwhile, and notes which files were opened.
   * @param open opens it and reads from it: only then SQLite makes the other two files
   * @throws DatabaseMovedError; whatever `open` throws
   */
  static open (path: string, open: () => Database.Database): OpenDatabase {
    for (let attempt = 1; ; attempt++) {
      const before = idOf(path)
      const db = open()
      try {
        const files = new OpenFiles(path)
        // A new one has no inode before; one from a container's image gets another when it is first opened for writing.
        if (before === undefined || same(before, files.#main)) return { db, files }
      } catch {
        // It has just been moved away.
      }
      db.close()
      if (attempt === openAttempts) throw new DatabaseMovedError(`${path} is being replaced`)
    }
  }

  /** Whether the path still leads to the database that was opened. */
  get mainInPlace (): boolean {
    return same(this.#main, idOf(this.#path))
  }

  /** Whether its -wal is still where it was, even if the database itself is not. */
  get walInPlace (): boolean {
    return same(this.#wal, idOf(`${this.#realPath}-wal`))
  }

  /** Whether what is committed now is found at the path by everybody who opens it. Three stats: some µs. */
  get inPlace (): boolean {
    return this.mainInPlace && this.walInPlace && same(this.#shm, idOf(`${this.#realPath}-shm`))
  }
}

function cannotOpen (path: string, why: string, advice = 'Name another file in DATABASE_PATH'): FatalError {
  return new FatalError(`the database ${path} can't be opened: ${why}. ${advice}`)
}

/**
 * Refuses a path where no database can be, before anything is opened or written.
 * @returns whether there is a database; false: one can be made there
 * @throws FatalError
 */
export function checkDatabasePath (path: string): boolean {
  if (basename(path) === ':memory:' || /(^|\/)(file|sqlite3?):/.test(path)) {
    throw cannotOpen(path, 'a plain path is needed, no URI and no database in memory: totals must outlive the process')
  }
  if (isKernelPath(path)) throw cannotOpen(path, "it is among the kernel's own files")
  const stats = statOrMissing(path)
  if (stats === undefined || (stats.isFile() && stats.size === 0n)) {
    const wal = statOrMissing(`${path}-wal`)
    if (wal !== undefined && wal.size > 0n) {
      throw cannotOpen(path, `there is none, but its ${basename(path)}-wal with commits in it`,
        'Put the database back next to it, or move that file away to begin with an empty database')
    }
    return false
  }
  if (!stats.isFile()) throw cannotOpen(path, `it is a ${kindOf(stats)}`)
  if (!readHeader(path).startsWith(magic)) throw cannotOpen(path, 'file is not a database')
  // Root may write everything; a file that nobody may write is meant to stay as it is.
  if ((stats.mode & 0o222n) === 0n || !mayWrite(path)) {
    throw cannotOpen(path, 'it is read-only', 'Let this user write it, or name another file in DATABASE_PATH')
  }
  return true
}

function statOrMissing (path: string): BigIntStats | undefined {
  try {
    return statSync(path, { bigint: true })
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
    throw cannotOpen(path, reasonOf(error))
  }
}

function kindOf (stats: BigIntStats): string {
  if (stats.isDirectory()) return 'directory'
  if (stats.isFIFO()) return 'FIFO'
  if (stats.isSocket()) return 'socket'
  return 'device'
}

function isKernelPath (path: string): boolean {
  if (kernelPaths.test(path)) return true
  const existing = nearestExisting(path)
  if (existing === undefined) return false
  if (kernelPaths.test(existing)) return true
  try {
    return process.platform === 'linux' && kernelFileSystems.has(statfsSync(existing).type)
  } catch {
    return false
  }
}

/**
 * The real path of a file, or of the nearest directory above that exists; undefined if not even that can be read.
 */
function nearestExisting (path: string): string | undefined {
  for (let candidate = path; ; candidate = dirname(candidate)) {
    try {
      return realpathSync(candidate)
    } catch {
      if (candidate === dirname(candidate)) return undefined
    }
  }
}

function mayWrite (path: string): boolean {
  try {
    accessSync(path, constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** The first bytes of a file, as latin1. */
function readHeader (path: string): string {
  let file: number | undefined
  try {
    file = openSync(path, 'r')
    const bytes = Buffer.alloc(headerBytes)
    return bytes.toString('latin1', 0, readSync(file, bytes, 0, headerBytes, 0))
  } catch (error) {
    throw cannotOpen(path, reasonOf(error))
  } finally {
    if (file !== undefined) closeSync(file)
  }
}

/**
 * Opens a database that is only to be read, so that nothing is left behind: a read-only connection to a database in WAL
 * mode makes a -wal and a -shm, and can't remove them. One that may write removes them, even if it writes nothing.
 */
export function openToInspect (path: string): Database.Database {
  const quiet = readHeader(path).charCodeAt(readVersionAt) === 2 && statOrMissing(`${path}-wal`) === undefined
  return new Database(path, { readonly: !quiet, fileMustExist: true, timeout: busyTimeoutMs })
}
