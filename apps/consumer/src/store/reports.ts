// The table `reports`: what was rejected of each batch, kept for as long as a reply may wait for it. What is refused to
// a client is in no other table, and a consumer that dies between its commit and its report must not forget it.
import type Database from 'better-sqlite3'
import { rejectReasons, type Rejection } from '@gearbox/protocol/progress.ts'

/** A rejection is reported for this long, in ms: its `stored` requests wait at most 30 s for it. */
export const reportedMs = 60_000

/**
 * Rejections of one producer that are listed, the newest; of older ones it is only reported which batches they were in.
 */
export const reportedMax = 1000

/** In the transactions of runs, old reports are deleted at most this often. */
const pruneIntervalMs = 1000

/** The rejections of one batch: all of them, or that they are too many to be listed. */
export interface Report {
  readonly seq: number
  readonly rejections: readonly Rejection[]
  /** Whether there were more; undefined if not. filed: at least one of those was. */
  readonly omitted: 'filed' | 'refused' | undefined
}

/** Makes the table. A program of the version before does without it, so the schema's version stays. */
export function createReports (db: Database.Database): void {
  db.exec(`
    CREATE TABLE IF NOT EXISTS reports(producer TEXT NOT NULL, seq INTEGER NOT NULL, rejections TEXT NOT NULL,
      entries INTEGER NOT NULL, omitted TEXT, elapsed_ms INTEGER NOT NULL, PRIMARY KEY(producer, seq)
    ) STRICT, WITHOUT ROWID;
  `)
}

/** Whether a database has the table. */
export function hasReports (db: Database.Database): boolean {
  return db.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'reports'").get() !== undefined
}

/** What was rejected of one batch, as far as it is listed. */
export function reportOf (seq: number, rejections: readonly Rejection[]): Report {
  return { seq, rejections: rejections.slice(0, reportedMax), omitted: omittedOf(rejections.slice(reportedMax)) }
}

/** Whether any of rejections that are no longer listed was filed; undefined if there are none. */
export function omittedOf (rejections: readonly Rejection[]): Report['omitted'] {
  if (rejections.length === 0) return undefined
  return rejections.some(({ filed = true }) => filed) ? 'filed' : 'refused'
}

interface Row { readonly seq: number, readonly rejections: string, readonly omitted: Report['omitted'] | null }

interface NewRow extends Row {
  readonly producer: string
  readonly entries: number
  readonly elapsedMs: number
}

/** The table `reports`. Writes only within the transaction of its caller. */
export class Reports {
  readonly #statements: ReturnType<typeof prepare>
  /** performance.now ms */
  #prunedAt = -Infinity

  constructor (db: Database.Database) {
    this.#statements = prepare(db)
  }

  /** Writes the report of one batch, in the place of an earlier one. @param elapsedMs the database's clock */
  write (producer: string, { seq, rejections, omitted }: Report, elapsedMs: number): void {
    const write = (seq: number, rejections: readonly Rejection[], omitted: Report['omitted']): void => {
      const row = { producer, seq, rejections: JSON.stringify(rejections), entries: rejections.length, elapsedMs }
      this.#statements.write.run({ ...row, omitted: omitted ?? null })
    }
    write(seq, rejections, omitted)
    // Of one producer only so many are listed, the newest.
    for (const row of this.#statements.overMost.all({ producer, seq, most: reportedMax })) {
      const older = parse(row)
      write(row.seq, [], older.omitted === 'filed' ? 'filed' : omittedOf(older.rejections) ?? older.omitted)
    }
  }

  /** The report of one batch, if any of it was rejected and that is not long ago. */
  read (producer: string, seq: number): Report | undefined {
    const row = this.#statements.read.get(producer, seq)
    return row === undefined ? undefined : parse(row)
  }

  /** All reports to a producer, oldest first. */
  readAll (producer: string): Report[] {
    return this.#statements.readAll.all(producer).map(parse)
  }

  /** Deletes what no reply waits for any more. @param elapsedMs the database's clock */
  prune (elapsedMs: number): void {
    this.#statements.prune.run(elapsedMs - reportedMs)
  }

  /** The same, at most once a second. */
  pruneIfDue (elapsedMs: number): void {
    if (performance.now() - this.#prunedAt <= pruneIntervalMs) return
    this.prune(elapsedMs)
    this.#prunedAt = performance.now()
  }
}

function parse ({ seq, rejections, omitted }: Row): Report {
  const value: unknown = JSON.parse(rejections)
  const isRejection = (item: Rejection | null): item is Rejection =>
    rejectReasons.some((reason) => reason === item?.reason)
  const list = Array.isArray(value) ? value.filter(isRejection) : []
  return { seq, rejections: list, omitted: omitted ?? undefined }
}

function prepare (db: Database.Database) {
  return {
    write: db.prepare<NewRow>(`
      INSERT INTO reports(producer, seq, rejections, entries, omitted, elapsed_ms)
      VALUES (@producer, @seq, @rejections, @entries, @omitted, @elapsedMs)
      ON CONFLICT(producer, seq) DO UPDATE
      SET rejections = excluded.rejections, entries = excluded.entries, omitted = excluded.omitted`),
    overMost: db.prepare<{ producer: string, seq: number, most: number }, Row>(`
      SELECT seq, rejections, omitted FROM (
        SELECT seq, rejections, omitted, sum(entries) OVER (ORDER BY seq DESC) AS newer
        FROM reports WHERE producer = @producer AND entries > 0)
      WHERE newer > @most AND seq <> @seq`),
    read: db.prepare<[string, number], Row>(
      'SELECT seq, rejections, omitted FROM reports WHERE producer = ? AND seq = ?'),
    readAll: db.prepare<[string], Row>('SELECT seq, rejections, omitted FROM reports WHERE producer = ? ORDER BY seq'),
    prune: db.prepare<[number]>('DELETE FROM reports WHERE elapsed_ms < ?'),
  }
}
