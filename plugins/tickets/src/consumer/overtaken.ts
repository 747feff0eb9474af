// Measures how far requests that overlapped were overtaken: across workers, whoever is pushed first is first. The
// consumer alone sees all entries, so it compares; the worker of each entry shows what comes of it in its metrics.

/** Names whose newest request is remembered: those that were asked for last. */
const namesMax = 1000

/** When the newest request came that has a number, by name; Unix ms. Kept in memory: a restart forgets it. */
const newest = new Map<string, number>()

/**
 * How long the oldest request of an entry was there when one came elsewhere that already has a number; 0: it was not
 * overtaken. Clocks of workers that differ make this wrong by as much.
 * @param came when the entry's first and last request came, Unix ms
 */
export function overtakenMs (name: string, came: readonly [number, number] | undefined): number {
  if (came === undefined) return 0
  const [first, last] = came
  const before = newest.get(name) ?? 0
  newest.delete(name)
  newest.set(name, Math.max(before, last))
  const [oldest] = newest.keys()
  if (newest.size > namesMax && oldest !== undefined) newest.delete(oldest)
  return Math.max(0, before - first)
}
