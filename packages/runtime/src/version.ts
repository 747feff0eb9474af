// The version of Gearbox, which is written in one place: the package.json at the root.
import { readFileSync } from 'node:fs'

/** As in package.json, such as `1.2.3`. */
export const version: string = readVersion(new URL('../../../package.json', import.meta.url))

function readVersion (file: URL): string {
  const value: unknown = JSON.parse(readFileSync(file, 'utf8'))
  const found = typeof value === 'object' && value !== null && 'version' in value ? value.version : undefined
  if (typeof found !== 'string') throw new Error(`${file.pathname} has no version`)
  return found
}
