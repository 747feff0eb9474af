// Rows of `tickets_lines`, as the consumer writes them.
import type { PluginDatabase } from '@gearbox/runtime/plugin.ts'
import { gapsOf } from '../absent.ts'
import { readLine, type Line } from '../lines.ts'

/** The name under which the gap is kept that every new line begins above. No line can have it. */
export const everyName = ''

/** The line of a name. A new one begins at 1, or above the numbers that a lost database may have issued. */
export function openLine (db: PluginDatabase, name: string): Line {
  const line = readLine(db, name)
  if (line !== undefined) return line
  const last = gapsOf(db, everyName).at(-1)?.last ?? 0
  if (last > 0) skip(db, name, 1, last)
  return { issued: last, serving: 0, limit: null }
}

/** Writes a line. */
export function saveLine (db: PluginDatabase, name: string, { issued, serving, limit }: Line): void {
  db.run(`
    INSERT INTO tickets_lines(name, issued, serving, "limit") VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET issued = excluded.issued, serving = excluded.serving, "limit" = excluded."limit"`,
  name, issued, serving, limit)
}

/** Records that numbers of a name are never issued. */
export function skip (db: PluginDatabase, name: string, first: number, last: number): void {
  db.run('INSERT INTO tickets_gaps(name, first, last) VALUES (?, ?, ?)', name, first, last)
}
