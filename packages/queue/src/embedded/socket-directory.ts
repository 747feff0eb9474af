// The directory of the embedded queue's socket: only this user may enter it, and nobody else's is trusted. It is among
// the temporary files: once it was tidied away, anybody may make a directory of that name.
import { chmodSync, lstatSync, mkdirSync } from 'node:fs'

const ownerOnly = 0o700

/** Makes the directory if it does not exist. @throws Error if it belongs to another user */
export function makeSocketDirectory (dir: string): void {
  mkdirSync(dir, { recursive: true, mode: ownerOnly })
  requireOwnDirectory(dir)
  if ((lstatSync(dir).mode & 0o777) !== ownerOnly) chmodSync(dir, ownerOnly)
}

/** Checks whose directory it is. @throws Error if it belongs to another user, or is not a directory */
export function requireOwnDirectory (dir: string): void {
  const stats = lstatSync(dir)
  if (!stats.isDirectory()) throw new Error(`${dir} is not a directory`)
  if (process.getuid !== undefined && stats.uid !== process.getuid()) throw new Error(`${dir} belongs to another user`)
}
