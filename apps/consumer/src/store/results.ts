// The table `results`: what became of each entry of a plugin, kept until its worker has it. A batch that comes again
// gets its outcomes from here, so that no entry is ever applied twice.
import type Database from 'better-sqlite3'
import { isOutcome, type EntryOutcome, type EntryResult } from '@gearbox/protocol/plugin-entry.ts'

/** An outcome is kept for this long after its batch was stored, in ms, unless its worker reports that it has it. */
export const resultsKeptMs = 600_000

/** Rows that one transaction deletes at most: some 10 ms of work. */
const deletedMax = 5000

/** Batches that were received and whose rows are still to be deleted, at most. Rows of others go when they are old. */
const receivedMax = 50_000

/** In the transactions of runs, old rows are deleted at most this often. */
const pruneIntervalMs = 1000

/** An outcome with where it goes. */
export interface StoredResult extends EntryResult {
  readonly producer: string
  /** About its length as JSON. */
  readonly bytes: number
}

/**
 * Makes the tables `results` and `corrections`, and the column of an idempotent entry's result. A program of the
 * version before does without them, so the schema's version stays.
 */
export function createResults (db: Database.Database): void {
  const columns = db.prepare<[], string>("SELECT name FROM pragma_table_info('once')").pluck().all()
  db.exec(`
    ${columns.includes('result') ? '' : 'ALTER TABLE once ADD COLUMN result TEXT;'}
    CREATE TABLE IF NOT EXISTS corrections(key TEXT, before INTEGER, after INTEGER, at INTEGER, by TEXT) STRICT;
    CREATE TABLE IF NOT EXISTS results(producer TEXT, seq INTEGER, entry INTEGER, result TEXT, elapsed_ms INTEGER,
      PRIMARY KEY(producer, seq, entry)) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS results_elapsed ON results(elapsed_ms);
  `)
}

/** Whether a database has all of that. */
export function hasResults (db: Database.Database): boolean {
  return db.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = 'results_elapsed'").get() !== undefined
}

/** The table `results`. Writes only within the transaction of its caller. */
export class Results {
  readonly #statements: ReturnType<typeof prepare>
  /** Batches whose rows are no longer needed, oldest first. */
  readonly #received: Array<readonly [producer: string, seq: number]> = []
  /** How many of them the present transaction has deleted. */
  #deleted = 0
  #mayHaveRows: boolean
  /** performance.now ms */
  #prunedAt = -Infinity

  constructor (db: Database.Database) {
    this.#statements = prepare(db)
    this.#mayHaveRows = this.#statements.any.get() === 1
  }

  /** Whether there may be rows, so that it is worth the while to prune. */
  get mayHaveRows (): boolean {
    return this.#mayHaveRows
  }

  /** Keeps an outcome, which was not there yet. @param elapsedMs the database's clock */
  write (producer: string, seq: number, entry: number, outcome: string, elapsedMs: number): void {
    this.#mayHaveRows = true
    this.#statements.write.run(producer, seq, entry, outcome, elapsedMs)
  }

  /** The outcomes of a batch, in the order of its entries, as far as they are kept. */
  read (producer: string, seq: number): StoredResult[] {
    return this.#statements.read.all(producer, seq).flatMap(({ entry, result }) => {
      const outcome = parse(result)
      return outcome === undefined ? [] : [{ producer, seq, entry, outcome, bytes: result.length }]
    })
  }

  /** Notes that a worker has all outcomes of batches: the next transaction deletes them. */
  noteReceived (producer: string, sequences: readonly number[]): void {
    if (!this.#mayHaveRows) return
    for (const seq of sequences) {
      if (this.#received.length >= receivedMax) return
      this.#received.push([producer, seq])
    }
  }

  /**
   * Deletes what was received, and what is so old that no worker asks for it any more.
   * @returns whether there is more
   */
  prune (elapsedMs: number): boolean {
    if (!this.#mayHaveRows) return false
    this.#deleteReceived()
    const { changes } = this.#statements.prune.run({ before: elapsedMs - resultsKeptMs, rows: deletedMax })
    // Where there is more the next transaction goes on: however fast rows come, they go as fast.
    if (changes < deletedMax) this.#prunedAt = performance.now()
    return changes === deletedMax || this.#received.length > this.#deleted
  }

  /** The same in the transaction of a run: what was received at once, what is old at most once a second. */
  pruneIfDue (elapsedMs: number): void {
    if (!this.#mayHaveRows) return
    if (performance.now() - this.#prunedAt > pruneIntervalMs) this.prune(elapsedMs)
    else this.#deleteReceived()
  }

  /** To be called when a transaction was committed: what it deleted is gone. */
  committed (): void {
    if (this.#deleted > 0) this.#received.splice(0, this.#deleted)
    this.#deleted = 0
  }

  /** To be called when a transaction was rolled back: what it deleted is there again. */
  rolledBack (): void {
    this.#deleted = 0
  }

  /** To be called while no transaction is open, and nothing is left to be received. */
  lookForRows (): void {
    if (this.#received.length === 0) this.#mayHaveRows = this.#statements.any.get() === 1
  }

  #deleteReceived (): void {
    this.#deleted = 0
    for (let rows = 0; rows < deletedMax && this.#deleted < Math.min(this.#received.length, deletedMax);) {
      const [producer, seq] = this.#received[this.#deleted]!
      rows += this.#statements.delete.run(producer, seq).changes
      this.#deleted++
    }
  }
}

function parse (result: string): EntryOutcome | undefined {
  const outcome: unknown = JSON.parse(result)
  return isOutcome(outcome) ? outcome : undefined
}

function prepare (db: Database.Database) {
  return {
    any: db.prepare<[], number>('SELECT EXISTS (SELECT 1 FROM results)').pluck(),
    write: db.prepare<[string, number, number, string, number]>(
      'INSERT OR REPLACE INTO results(producer, seq, entry, result, elapsed_ms) VALUES (?, ?, ?, ?, ?)'),
    read: db.prepare<[string, number], { entry: number, result: string }>(
      'SELECT entry, result FROM results WHERE producer = ? AND seq = ? ORDER BY entry'),
    delete: db.prepare<[string, number]>('DELETE FROM results WHERE producer = ? AND seq = ?'),
    prune: db.prepare<{ before: number, rows: number }>(`
      DELETE FROM results WHERE (producer, seq, entry) IN
        (SELECT producer, seq, entry FROM results WHERE elapsed_ms < @before ORDER BY elapsed_ms LIMIT @rows)`),
  }
}
