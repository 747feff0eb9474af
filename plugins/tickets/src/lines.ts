// What the database says of a line and of one number in it. For replies of web workers, and for the consumer, which
// decides by it.
import { absentAfter, countAbsent, type Reads } from './absent.ts'
import type { LineState } from './entry.ts'

/** A row of `tickets_lines`. */
export interface Line {
  readonly issued: number
  readonly serving: number
  readonly limit: number | null
}

/** The run that issued a number. */
export interface Run {
  readonly first: number
  readonly count: number
  readonly at: number
  readonly producer: string
  readonly seq: number
  readonly entry: number
}

/** Where a number is in its line. */
export interface Place {
  readonly number: number
  /** When it was issued, Unix ms. */
  readonly at: number
  readonly state: 'waiting' | 'called' | 'given_up'
  /** How many that wait are called before it. */
  readonly ahead: number
  /** About how long until it is called; null: nothing says. */
  readonly waitSeconds: number | null
}

/** The line of a name; undefined if there is none. */
export function readLine (db: Reads, name: string): Line | undefined {
  return db.get<Line>('SELECT issued, serving, "limit" FROM tickets_lines WHERE name = ?', name)
}

/** Whether a number of this name was ever issued. */
export function wasIssued (db: Reads, name: string): boolean {
  return db.get('SELECT 1 FROM tickets_runs WHERE name = ? LIMIT 1', name) !== undefined
}

/** A line with how many wait. */
export function lineState (db: Reads, name: string, { issued, serving, limit }: Line): LineState {
  const waiting = Math.max(0, issued - serving - countAbsent(db, name, serving, issued))
  return { name, issued, serving, waiting, limit }
}

/** The run that issued a number; undefined if it was never issued. */
export function runOf (db: Reads, name: string, number: number): Run | undefined {
  const run = db.get<Run>(`
    SELECT first, count, at, producer, seq, entry FROM tickets_runs
    WHERE name = ? AND first <= ? ORDER BY first DESC LIMIT 1`, name, number)
  return run !== undefined && number < run.first + run.count ? run : undefined
}

/**
 * Whether a number was given up: by whoever had it, or because it was called and nobody asked for it for so long.
 * @param holdMs TICKETS_HOLD_S; 0: for ever
 */
export function isGivenUp (db: Reads, name: string, number: number, now: number, holdMs: number): boolean {
  const place = db.get<{ givenUpAt: number | null, askedAt: number | null }>(`
    SELECT given_up_at AS givenUpAt, asked_at AS askedAt FROM tickets_places WHERE name = ? AND number = ?`,
  name, number)
  if (typeof place?.givenUpAt === 'number') return true
  const { serving } = readLine(db, name) ?? { serving: 0 }
  if (holdMs === 0 || number > serving) return false
  // Calls are forgotten once they are older than any hold (see `serve`).
  return Math.max(calledAt(db, name, number) ?? 0, place?.askedAt ?? 0) + holdMs <= now
}

/** When a number that was called was; undefined if that is too long ago to be known. */
function calledAt (db: Reads, name: string, number: number): number | undefined {
  const call = db.get<{ at: number }>(`
    SELECT at FROM tickets_calls WHERE name = ? AND last >= ? ORDER BY last LIMIT 1`, name, number)
  return call?.at
}

/** Where an issued number is. @param at when it was issued */
export function placeOf (
  db: Reads, name: string, number: number, at: number, now: number, holdMs: number
): Place {
  const { serving } = readLine(db, name) ?? { serving: 0 }
  if (isGivenUp(db, name, number, now, holdMs)) return { number, at, state: 'given_up', ahead: 0, waitSeconds: null }
  if (number <= serving) return { number, at, state: 'called', ahead: 0, waitSeconds: 0 }
  const ahead = Math.max(0, number - 1 - serving - countAbsent(db, name, serving, number - 1))
  const rate = callsPerSecond(db, name, now)
  return { number, at, state: 'waiting', ahead, waitSeconds: rate === 0 ? null : Math.ceil((ahead + 1) / rate) }
}

/** The text that was kept with a number; undefined if there is none. */
export function holderOf (db: Reads, name: string, number: number): string | undefined {
  const [row] = holdersBetween(db, name, number, number)
  return row?.holder
}

/** Numbers of one holder. */
export interface Held {
  readonly number: number
  readonly count: number
  readonly holder: string
}

/** The holders of the numbers from `first` to `last`, in order. */
export function holdersBetween (db: Reads, name: string, first: number, last: number): Held[] {
  // A request has at most 1,000 numbers, so what began earlier ends earlier.
  return db.all<Held>(`
    SELECT number, count, holder FROM tickets_places
    WHERE name = ? AND number > ? AND number <= ? AND number + count > ? AND holder IS NOT NULL ORDER BY number`,
  name, first - 1000, last, first)
}

/** An estimate looks back over so many calls, and so long. */
const estimate = { calls: 20, ms: 3_600_000 } as const

/**
 * How many numbers are called per second: those of the last 20 calls within the last hour but the first of them, by the
 * time from that first one until now. So it falls when nobody is called. 0: fewer than two calls say nothing.
 */
function callsPerSecond (db: Reads, name: string, now: number): number {
  const calls = db.all<{ called: number, at: number }>(`
    SELECT called, at FROM tickets_calls WHERE name = ? ORDER BY last DESC LIMIT ${estimate.calls}`, name)
    .filter(({ at }) => at > now - estimate.ms)
  const oldest = calls.at(-1)
  if (oldest === undefined || calls.length < 2) return 0
  const called = calls.slice(0, -1).reduce((sum, { called }) => sum + called, 0)
  return called / Math.max(1, (now - oldest.at) / 1000)
}

/** What calling numbers comes to. */
export interface Calling {
  readonly serving: number
  readonly called: number
  /** As in the result: skipped, called, skipped, called … */
  readonly steps: number[]
}

/**
 * Which numbers are called next.
 * @param by how many of those that wait; Infinity: all up to `to`
 */
export function nextCalled (
  db: Reads, name: string, { issued, serving }: Line, by: number, to: number
): Calling {
  const end = Math.min(issued, to)
  const steps: number[] = []
  let [cursor, called] = [serving, 0]
  let skipped = 0
  const call = (count: number): void => {
    if (count === 0) return
    steps.push(skipped, count)
    skipped = 0
    called += count
    cursor += count
  }
  for (const { first, last } of absentAfter(db, name, serving)) {
    if (cursor >= end || called === by) break
    const before = Math.max(0, Math.min(first - 1, end) - cursor)
    if (before > by - called) break
    call(before)
    if (called === by || cursor >= end) break
    skipped += Math.min(last, end) - cursor
    cursor = Math.min(last, end)
  }
  call(Math.max(0, Math.min(by - called, end - cursor)))
  return { serving: Math.max(cursor, serving), called, steps }
}
