// What plugins add to `npm run verify`: each checks its own tables, at one moment of the database.
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { openForReading } from '@gearbox/runtime/open-for-reading.ts'
import type { LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { TransactionDatabase } from '../../store/plugins/plugin-database.ts'
import type { Finding } from './judge.ts'

const busyTimeoutMs = 5000

/** The findings of all plugins; one that fails is a finding itself. @throws FatalError if the database can't be read */
export function verifyPlugins (path: string, plugins: readonly LoadedPlugin[]): Finding[] {
  const checking = plugins.filter(({ plugin }) => plugin.verify !== undefined)
  if (checking.length === 0) return []
  try {
    const db = openForReading(path, busyTimeoutMs)
    try {
      return db.transaction(() => checking.flatMap(({ plugin }) => {
        try {
          return plugin.verify?.(new TransactionDatabase(db)) ?? []
        } catch (error) {
          return [{ text: `plugin ${plugin.name} CAN'T BE VERIFIED: ${reasonOf(error)}`, right: false }]
        }
      }))()
    } finally {
      db.close()
    }
  } catch (error) {
    throw new FatalError(`the database ${path} can't be read (${reasonOf(error)}); DATABASE_PATH names it`)
  }
}
