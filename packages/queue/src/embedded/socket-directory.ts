// The directory of the embedded queue's socket: only this user may enter it, and nobody else's is trusted. It is among the temporary
// files, where anybody may make a directory of that name once somebody has tidied it away.
import { chmodSync, lstatSync, mkdirSync } from 'node:fs'

const ownerOnly = 0o700

/** Makes the directory where there is none. @throws Error if it is another user's */
export function makeSocketDirectory (dir: string): void {
  mkdirSync(dir, { recursive: true, mode: ownerOnly })
  requireOwnDirectory(dir)
  if ((lstatSync(dir).mode & 0o777) !== ownerOnly) chmodSync(dir, ownerOnly)
}

/** @throws Error if it is another user's, or none */
export function requireOwnDirectory (dir: string): void {
  const stats = lstatSync(dir)
  if (!stats.isDirectory()) throw new Error(`${dir} is not a directory`)
  if (process.getuid !== undefined && stats.uid !== process.getuid()) throw new Error(`${dir} belongs to another user`)
}
