// The correction of a total: an entry of the reserved name `totals`, alone in its batch, which sets a total or removes
// it. Totals pass as decimal text, as a number of JavaScript can't hold all 64 bits.
import type { Json } from '@gearbox/protocol/plugin-entry.ts'
import { parseInt64 } from '@gearbox/protocol/int64.ts'
import { refuse, type Correction, type PluginDatabase } from '@gearbox/runtime/plugin.ts'

/** The name under which corrections travel: no plugin can have it. */
export const correctionsName = 'totals'

/** Characters of who corrected it that are kept, at most. */
const byMax = 256

/** What a correction did: totals as decimal text, or null where there is no row. */
export interface Corrected {
  readonly [name: string]: Json
  readonly key: string
  readonly before: string | null
  readonly after: string | null
}

/** What a correction's entry asks for. */
interface Wanted {
  readonly key: string
  /** Undefined: the row is removed. */
  readonly total: bigint | undefined
  /** The total that it must have before; undefined: whatever it has. */
  readonly if: bigint | undefined
  readonly by: string | null
}

/**
 * Sets or removes a total and writes down that it did. To be called in a transaction.
 * @param corrected called when it is done
 * @returns the total before and after as decimal text; null: no row
 * @throws EntryRefusedError nothing may be kept of it then
 */
export function correctTotal (
  data: Json, database: PluginDatabase, now: number, corrected: (correction: Correction) => void
): Corrected {
  const wanted = parse(data)
  if (wanted === undefined) throw refuse(400, 'GBX_BAD_REQUEST', 'this is not a correction of a total')
  const { key, total: after, by } = wanted
  const before = read(database, key)
  if (wanted.if !== undefined && wanted.if !== before) {
    throw refuse(412, 'GBX_PRECONDITION_FAILED', before === undefined
      ? 'there is no such total; nothing was changed'
      : `the total is ${before}; nothing was changed`, { total: textOf(before) })
  }
  if (before === undefined && after === undefined) {
    throw refuse(404, 'GBX_NOT_FOUND', 'nothing was ever stored under this key; nothing was changed')
  }
  write(database, key, before, after)
  database.run('INSERT INTO corrections(key, before, after, at, by) VALUES (?, ?, ?, ?, ?)',
    key, before ?? null, after ?? null, BigInt(now), by)
  corrected({ key, before, after })
  return { key, before: textOf(before), after: textOf(after) }
}

const upsert = `
  INSERT INTO numbers(key, value) VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value`

function write (database: PluginDatabase, key: string, before: bigint | undefined, after: bigint | undefined): void {
  if (before === after) return
  try {
    if (after === undefined) database.run('DELETE FROM numbers WHERE key = ?', key)
    else database.run(upsert, key, after)
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && String(error.code).startsWith('SQLITE_CONSTRAINT'))) throw error
    throw refusedByTrigger(error.message)
  }
  // A trigger can leave a row out, or write another value.
  if (read(database, key) !== after) throw refusedByTrigger('it is not as it was written')
}

function refusedByTrigger (why: string): Error {
  return refuse(409, 'GBX_REFUSED_BY_DATABASE', `a trigger or an index of this database refuses it (${why})`)
}

function read (database: PluginDatabase, key: string): bigint | undefined {
  const row = database.get<{ value: string }>('SELECT CAST(value AS TEXT) AS value FROM numbers WHERE key = ?', key)
  return row === undefined ? undefined : BigInt(row.value)
}

function textOf (total: bigint | undefined): string | null {
  return total === undefined ? null : String(total)
}

function parse (data: Json): Wanted | undefined {
  if (typeof data !== 'object' || data === null || !('key' in data) || !('total' in data)) return undefined
  const { key } = data
  if (typeof key !== 'string') return undefined
  const total = data.total === null ? undefined : parseTotal(data.total)
  if (total === undefined && data.total !== null) return undefined
  const required = 'if' in data && data.if !== null ? data.if : undefined
  const before = required === undefined ? undefined : parseTotal(required)
  if (before === undefined && required !== undefined) return undefined
  const by = 'by' in data && typeof data.by === 'string' ? data.by.slice(0, byMax) : null
  return { key, total, if: before, by }
}

function parseTotal (value: Json | undefined): bigint | undefined {
  return typeof value === 'string' ? parseInt64(value) : undefined
}
