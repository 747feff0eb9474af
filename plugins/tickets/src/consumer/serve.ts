// Calls numbers: moves a line's `serving` forward over those that wait and those that no longer do.
import { refuse, type PluginDatabase } from '@gearbox/runtime/plugin.ts'
import type { Served, ServeEntry } from '../entry.ts'
import { nextCalled, wasIssued } from '../lines.ts'
import type { Context } from '../settings.ts'
import { openLine, saveLine } from './line-rows.ts'

/** Steps that a result has room for: the 4 KiB of one hold twice as many characters. */
const stepsBytesMax = 3 * 1024

/** Calls are remembered for an estimate, and for as long as a place is held. */
const keptMs = 86_400_000

/** Old calls that one request forgets. */
const forgottenAtOnce = 10

/** Applies an entry. @throws EntryRefusedError (404) if no number of this name was ever issued */
export function serve (entry: ServeEntry, { database, now, settings }: Context): Served {
  const { serve: name } = entry
  if (!wasIssued(database, name)) throw refuse(404, 'GBX_NO_TICKETS', 'no number of this name was ever issued')
  const line = openLine(database, name)
  const [by, to] = 'by' in entry ? [entry.by, line.issued] : [Infinity, entry.to]
  const { serving, called, steps } = nextCalled(database, name, line, by, to)
  if (serving > line.serving) {
    saveLine(database, name, { ...line, serving })
    database.run('INSERT INTO tickets_calls(name, last, called, at) VALUES (?, ?, ?, ?)', name, serving, called, now)
    forget(database, name, now - Math.max(keptMs, settings.ticketsHoldS * 1000))
  }
  return { from: line.serving, serving, called, steps: cut(steps) }
}

function forget (database: PluginDatabase, name: string, before: number): void {
  database.run(`
    DELETE FROM tickets_calls WHERE name = ? AND last IN (
      SELECT last FROM tickets_calls WHERE name = ? AND at < ? ORDER BY last LIMIT ${forgottenAtOnce})`,
  name, name, before)
}

/** As many steps as a result has room for. */
function cut (steps: readonly number[]): readonly number[] {
  let bytes = 0
  const end = steps.findIndex((step) => (bytes += String(step).length + 1) > stepsBytesMax)
  return end < 0 ? steps : steps.slice(0, end - end % 2)
}
