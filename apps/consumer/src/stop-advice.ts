// What to know before stopping while nothing can be stored, with the embedded queue. Part of a log line.
import { statSync } from 'node:fs'
import { dirname } from 'node:path'
import type { Config } from '@gearbox/runtime/config.ts'

/** Only the workers' memory keeps what waits; a stop would write it to a file, perhaps on the same full disk. */
export function stopAdvice ({ databasePath, unsentDir }: Pick<Config, 'databasePath' | 'unsentDir'>): string {
  const onSameDisk = deviceOf(unsentDir) === deviceOf(dirname(databasePath))
  return 'Do so before stopping: what waits is in the memory of the web workers only, and a stop writes it to ' +
    `${unsentDir} (UNSENT_DIR)${onSameDisk ? ', which is on the same disk' : ''}`
}

/** The device of a path, or of the nearest directory above it that exists. */
function deviceOf (path: string): number | undefined {
  try {
    return statSync(path).dev
  } catch {
    return dirname(path) === path ? undefined : deviceOf(dirname(path))
  }
}
