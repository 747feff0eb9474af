// Which commit of the database a read sees, for ETags. SQLite's WAL-index (the -shm file) begins with it: the salts of
// the WAL, which are new whenever that is begun again, the number of the last frame, and a checksum over all frames
// (https://sqlite.org/walformat.html). Each commit appends frames, whoever makes it; so the value changes with every
// commit and never comes back, not even after a backup was restored, and it is the same for all processes.
import { openSync, readSync, statSync } from 'node:fs'

/** Of the header, which is there twice: a reader that finds two different ones came in the middle of a commit. */
const headerBytes = 48

/** The fields that are read here, by their offsets: checksum and salts are next to each other. */
const fields = { isInitialized: 12, frames: 16, pages: 20, checksum: 24, end: 40 } as const

/**
 * Files that were opened, by device and inode. They stay open as long as this process lives: to close one would end the
 * locks that SQLite has on the same file in this process. There is one more for each database that replaced another.
 */
const opened = new Map<string, number>()

const buffer = Buffer.alloc(2 * headerBytes)

/** The commits of one database. */
export class CommitIds {
  readonly #file: number | undefined

  /** @param path of the database, which this process has open and has read from */
  constructor (path: string) {
    this.#file = openOnce(`${path}-shm`)
  }

  /**
   * The commit that a read sees at least if it begins after this call; undefined if that can't be known: nothing was
   * written since the WAL was begun, or the WAL-index is not in a file.
   */
  read (): string | undefined {
    if (this.#file === undefined || readSync(this.#file, buffer, 0, buffer.length, 0) < buffer.length) return undefined
    const header = buffer.subarray(0, headerBytes)
    if (!header.equals(buffer.subarray(headerBytes)) || header[fields.isInitialized] === 0) return undefined
    // What is in an empty WAL can't be told from what was in the one before it.
    const frames = header.toString('hex', fields.frames, fields.pages)
    return frames === '00000000' ? undefined : frames + header.toString('hex', fields.checksum, fields.end)
  }
}

function openOnce (path: string): number | undefined {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) return undefined
  const name = `${stat.dev}:${stat.ino}`
  const file = opened.get(name) ?? openSync(path, 'r')
  opened.set(name, file)
  return file
}
