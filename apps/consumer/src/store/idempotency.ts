// Requests with an idempotency key: the rows of `once` that mark what was counted, and the time before which they are
// pruned. A row is written in the transaction that counts its request.
import { createHash } from 'node:crypto'
import type { RejectReason } from '@gearbox/protocol/progress.ts'
import type { BatchReader } from './batch-reader.ts'
import type { DatabaseClock } from './clock.ts'
import type { Entry, Statements } from './statements.ts'
import type { Totals } from './totals.ts'

/** Why an idempotent request was not applied, and the key whose total would leave 64 bits if it was that. */
export interface NotApplied {
  readonly reason: RejectReason
  readonly key: string | undefined
}

/** What this object keeps of the table; to be put back when a transaction is rolled back. */
export interface IdempotencyState {
  /** Rows of `once`. */
  readonly rows: number
  /**
   * Unix ms: a request accepted at that time or before may be one whose row was pruned. It never goes past the present.
   */
  readonly mark: number
}

/** The table `once`, with its size and its mark in memory. */
export class IdempotentRequests {
  readonly #statements: Statements
  readonly #reader: BatchReader
  readonly #totals: Totals
  readonly #clock: DatabaseClock
  readonly #rowsMax: number
  #state: IdempotencyState

  constructor (statements: Statements, reader: BatchReader, totals: Totals, clock: DatabaseClock, rowsMax: number) {
    this.#statements = statements
    this.#reader = reader
    this.#totals = totals
    this.#clock = clock
    this.#rowsMax = rowsMax
    this.#state = { mark: Number(statements.readMeta.get('once_mark')), rows: statements.countOnce.get() ?? 0 }
  }

  /** The present state; a snapshot that does not change. */
  get state (): IdempotencyState {
    return this.#state
  }

  /** Goes back to an earlier state, as the transaction in which it changed was rolled back. */
  restore (state: IdempotencyState): void {
    this.#state = state
  }

  /** Whether a request with that id is marked as counted. */
  has (id: string): boolean {
    return this.#statements.readOnceHash.get(id) !== undefined
  }

  /**
   * Applies a request whole, or not at all.
   * @param at when it was accepted, not in the future, Unix ms
   * @param now Unix ms
   * @returns why it was not applied; undefined if it was, or is a repeat of what was applied
   */
  apply (id: string, at: number, sums: string, now: number): NotApplied | undefined {
    const entries = this.#reader.entries(sums)
    const seen = this.#statements.readOnceHash.get(id)
    if (seen !== undefined) return seen === hashOf(entries) ? undefined : { reason: 'other body', key: undefined }
    // A clock was set back: from the future, the mark would refuse everything.
    if (this.#state.mark > now) this.#moveMark(now)
    // Its row may have been pruned: it could be a repeat.
    if (at <= this.#state.mark) return { reason: 'too late', key: undefined }
    const totals = this.#totals.plus(entries)
    if (typeof totals === 'string') return { reason: 'overflow', key: totals }
    this.#totals.write(totals)
    this.record(id, entries, at)
    if (this.#state.rows > this.#rowsMax) this.prune(Number.MAX_SAFE_INTEGER, 1)
    return undefined
  }

  /** Marks a request as counted. */
  record (id: string, entries: readonly Entry[], at: number): void {
    this.#statements.writeOnce.run(id, hashOf(entries), at, this.#clock.now())
    this.#state = { ...this.#state, rows: this.#state.rows + 1 }
  }

  /**
   * Deletes the oldest rows, and moves the mark to the youngest of them. The database's clock says how long ago each
   * was stored at least, so that no wrong `at` can move the mark further.
   * @param before on the database's clock, ms
   * @param rowsMax how many are deleted at most
   * @returns how many were deleted
   */
  prune (before: number, rowsMax: number): number {
    const pruned = this.#statements.pruneOnce.all({ before, rows: rowsMax })
    if (pruned.length === 0) return 0
    const { rows, mark } = this.#state
    this.#state = { rows: rows - pruned.length, mark }
    const [now, elapsedMs] = [Date.now(), this.#clock.now()]
    const times = pruned.map((row) => Math.min(row.at, now - (elapsedMs - row.elapsed_ms)))
    const youngest = times.reduce((one, other) => Math.max(one, other), mark)
    if (youngest > mark) this.#moveMark(youngest)
    return pruned.length
  }

  #moveMark (mark: number): void {
    this.#state = { ...this.#state, mark }
    this.#statements.writeMeta.run({ name: 'once_mark', value: mark })
  }
}

/** The same for the same sums, in whatever order they were written. */
function hashOf (entries: readonly Entry[]): string {
  const sorted = entries.map(({ key, value }) => JSON.stringify([key, String(value)])).sort()
  return createHash('sha256').update(sorted.join('\n')).digest('hex')
}
