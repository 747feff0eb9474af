// The one transaction that writes totals: skip what was applied before, apply, record. Called by the store with a run
// that the consumer took from the queue.
import { readHeader, withoutEntries, type Header } from '@gearbox/protocol/batch.ts'
import { NeedsCheckingError } from './batch-reader.ts'
import type { Connection } from './connection.ts'
import { insertSums } from './insert-sums.ts'
import { TransactionLostError } from './owner-triggers.ts'
import { applyEntries } from './plugins/apply-entries.ts'
import { sumsJson, sumsOf } from './plugins/applied-sums.ts'
import { Run, type Applied, type FreshBatch, type Refused } from './run.ts'
import type { Entry } from './statements.ts'

/** Applies one entry, named within its run; 'trigger' if one of the database's owner refuses it. */
type Attempt = <T>(entry: string, apply: () => T) => T | 'trigger'

const applyDirectly: Attempt = (_entry, apply) => apply()

/**
 * Applies a run in one transaction, each batch once whatever came before. When it returns, all of it is on the disk.
 * @param queuedMs the longest that any of the elements can have waited in the queue
 * @param endingEntries entries of plugins that have ended a transaction; they are not tried
 * @throws SupersededError if a newer consumer has opened the database; RunAbandonedError if the connection must be made
 * again; any SQLite error; with nothing changed
 */
export function applyRun (
  connection: Connection, elements: readonly Buffer[], queuedMs: number, endingEntries: ReadonlySet<string> = new Set()
): Applied {
  try {
    return applyTogether(connection, elements, queuedMs, endingEntries)
  } catch (error) {
    if (!(error instanceof NeedsCheckingError)) throw error
  }
  const ending = new Set<string>()
  for (;;) {
    try {
      return applyChecked(connection, elements, queuedMs, ending, endingEntries)
    } catch (error) {
      if (!(error instanceof TransactionLostError)) throw error
      ending.add(error.entry)
      findEnding(connection, elements, ending)
    }
  }
}

/**
 * All sums of the run in one statement.
 * @throws NeedsCheckingError if any entry can't be applied; nothing is changed then
 */
function applyTogether (
  connection: Connection, elements: readonly Buffer[], queuedMs: number, endingEntries: ReadonlySet<string>
): Applied {
  const run = new Run(connection, queuedMs)
  return connection.write(() => {
    const guarded = connection.triggers.exist()
    const batches = run.skipApplied(elements, () => true)
    if (batches.length > 0) insertSums(connection, batches, guarded)
    // Each needs its own entry: whatever a trigger does to one of them must not affect the others.
    if (guarded && batches.some(({ header }) => header.once)) throw new NeedsCheckingError()
    const { followSums } = connection.plugins
    for (const batch of batches) {
      const { header } = batch
      if (followSums) {
        run.ofPlugins.addSums([{ at: Math.min(header.at, run.now), json: sumsJson(batch.json, connection.reader) }])
      }
      if (header.once) run.reject(header.producer, header.seq, applyIdempotent(connection, run, batch, applyDirectly))
    }
    callPlugins(connection, run, batches, endingEntries)
    return run.record(batches.length)
  })
}

/**
 * The same entry by entry, with a check before each: what can't be applied is set aside, and everything else counts.
 * @param ending entries at which a trigger ends the transaction; they are not tried
 * @throws TransactionLostError at another one of those; nothing is changed then
 */
function applyChecked (
  connection: Connection, elements: readonly Buffer[], queuedMs: number, ending: ReadonlySet<string>,
  endingEntries: ReadonlySet<string>
): Applied {
  const run = new Run(connection, queuedMs)
  return connection.write(() => {
    const { triggers, reader } = connection
    const attempt: Attempt = triggers.exist()
      ? (entry, apply) => ending.has(entry) ? 'trigger' : triggers.attempt(entry, apply)
      : applyDirectly
    const batches = run.skipApplied(elements, (json) => reader.isReadable(json))
    for (const batch of batches) {
      const { header } = batch
      const refused = addSums(connection, run, batch, attempt)
      if (header.once) refused.push(...applyIdempotent(connection, run, batch, attempt))
      run.reject(header.producer, header.seq, refused)
    }
    callPlugins(connection, run, batches, endingEntries)
    return run.record(batches.length)
  })
}

/** What plugins do in the transaction, once all sums and idempotent requests of the run are in it. */
function callPlugins (
  connection: Connection, run: Run, batches: readonly FreshBatch[], endingEntries: ReadonlySet<string>
): void {
  const { sums } = run.ofPlugins
  if (sums.length > 0) connection.plugins.afterSums(sums, run.now)
  for (const batch of batches) if (batch.entries !== undefined) applyEntries(connection, run, batch, endingEntries)
}

/** Adds a batch's sums one by one. @returns those that can't be added */
function addSums (
  { reader, totals, plugins }: Connection, run: Run, { header, json }: FreshBatch, attempt: Attempt
): Refused[] {
  const { producer, seq, at: acceptedAt, storedWithinMs } = header
  const at = Math.min(acceptedAt, run.now)
  const added: Entry[] = []
  const refused = reader.sums(json).flatMap((entry): Refused[] => {
    const reason = attempt(nameOfSum(header, entry), () => totals.add(entry))
    if (reason !== undefined) return [{ producer, seq, ...entry, reason, at, acceptedAt, storedWithinMs }]
    if (plugins.followSums) added.push(entry)
    return []
  })
  if (plugins.followSums) run.ofPlugins.addSums(sumsOf(added, at))
  return refused
}

/** Applies a batch's idempotent requests. @returns those that can't be applied */
function applyIdempotent (
  { reader, idempotency, plugins }: Connection, run: Run, { header, json }: FreshBatch, attempt: Attempt
): Refused[] {
  const { now } = run
  const { producer, seq } = header
  return reader.idempotent(json).flatMap(({ id: once, at: acceptedAt, sums, storedWithinMs }, i): Refused[] => {
    const at = Math.min(acceptedAt, now)
    const result = attempt(nameOfRequest(header, i), () => idempotency.apply(once, at, sums, now))
    if (result === 'applied' && plugins.followSums) run.ofPlugins.addSums([{ at, json: sums }])
    if (result === 'applied' || result === 'repeated') return []
    const { reason, key } = result === 'trigger' ? { reason: result, key: undefined } : result
    return [{ producer, seq, once, sums, key, reason, at, acceptedAt, storedWithinMs }]
  })
}

/**
 * Adds to `ending` all entries at which a trigger ends the transaction, each tried in one that is rolled back: to find
 * them one by one in the run's own would take as many times as there are.
 */
function findEnding ({ reader, totals, triggers }: Connection, elements: readonly Buffer[], ending: Set<string>): void {
  for (const element of elements) {
    const header = readHeader(element)
    if (typeof header === 'string') continue
    const json = header.entries ? withoutEntries(element) : element.toString()
    if (!reader.isReadable(json)) continue
    const requests = header.once ? reader.idempotent(json) : []
    const candidates = [
      ...reader.sums(json).map((entry) => [nameOfSum(header, entry), [entry]] as const),
      ...requests.map(({ sums }, i) => [nameOfRequest(header, i), reader.entries(sums)] as const),
    ]
    for (const [name, entries] of candidates) {
      const newTotals = totals.plus(entries)
      if (typeof newTotals === 'string' || ending.has(name)) continue
      if (triggers.wouldEndTransaction(() => totals.write(newTotals))) ending.add(name)
    }
  }
}

function nameOfSum ({ producer, seq }: Header, { key }: Entry): string {
  return `${producer} ${seq} sums ${key}`
}

function nameOfRequest ({ producer, seq }: Header, i: number): string {
  return `${producer} ${seq} once ${i}`
}
