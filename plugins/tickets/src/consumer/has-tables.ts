// Whether a database has the tables of tickets: one in which no consumer with this plugin has worked yet has none.
import type { Reads } from '../absent.ts'

/** Whether all tables are there. */
export function hasTables (db: Reads): boolean {
  // The last one that the script makes.
  return db.get("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'tickets_secrets'") !== undefined
}
