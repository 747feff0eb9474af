// Numbers of a line that do not wait although they were not called: those that were given up, and those that are never
// issued. The consumer skips them when it calls, and both sides leave them out when they count who waits.
import type { PluginReader } from '@gearbox/runtime/plugin.ts'

/** Reads, as web workers and the consumer both have them. */
export type Reads = Pick<PluginReader, 'get' | 'all'>

/** Numbers from `first` to `last`, both included. */
export interface Range {
  readonly first: number
  readonly last: number
}

/** Rows that are read at once. */
const pageRows = 1000

/**
 * Given-up numbers that are counted, at most: that takes some 5 ms. Where more than these were given up, more seem to
 * wait than do.
 */
const countedMax = 100_000

/** All numbers of a line behind `after` that do not wait, in order. */
export function * absentAfter (db: Reads, name: string, after: number): Generator<Range> {
  const gaps = gapsOf(db, name).filter(({ last }) => last > after)
  for (const number of givenUpAfter(db, name, after)) {
    while (gaps.length > 0 && gaps[0]!.first < number) yield gaps.shift()!
    yield { first: number, last: number }
  }
  yield * gaps
}

/** How many numbers of a line behind `after` and up to `last` do not wait. */
export function countAbsent (db: Reads, name: string, after: number, last: number): number {
  if (last <= after) return 0
  const inGaps = gapsOf(db, name).reduce((sum, gap) =>
    sum + Math.max(0, Math.min(last, gap.last) - Math.max(after, gap.first - 1)), 0)
  const { count } = db.get<{ count: number }>(`
    SELECT count(*) AS count FROM (
      SELECT 1 FROM tickets_places INDEXED BY tickets_places_given_up
      WHERE name = ? AND number > ? AND number <= ? AND given_up_at IS NOT NULL LIMIT ${countedMax})`,
  name, after, last) ?? { count: 0 }
  return inGaps + count
}

/** Numbers of a line that are never issued, in order. */
export function gapsOf (db: Reads, name: string): Range[] {
  return db.all<Range>('SELECT first, last FROM tickets_gaps WHERE name = ? ORDER BY first', name)
}

function * givenUpAfter (db: Reads, name: string, after: number): Generator<number> {
  for (let from = after; ;) {
    const rows = db.all<{ number: number }>(`
      SELECT number FROM tickets_places INDEXED BY tickets_places_given_up
      WHERE name = ? AND number > ? AND given_up_at IS NOT NULL ORDER BY number LIMIT ${pageRows}`, name, from)
    for (const { number } of rows) yield number
    if (rows.length < pageRows) return
    from = rows.at(-1)!.number
  }
}
