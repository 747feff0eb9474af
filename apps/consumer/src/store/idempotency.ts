// Requests and entries of plugins with an idempotency key: the rows of `once` that mark what was counted or applied,
// and the time before which they are pruned. A row is written in the transaction that applies what it marks.
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

/** What is remembered of an entry with an id, or why its entry can't be applied. */
export type Remembered = { readonly result: string } | { readonly reason: 'other body' | 'too late' }

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
    return this.#statements.readOnce.get(id) !== undefined
  }

  /**
   * Applies a request whole, or not at all.
   * @param at when it was accepted, not in the future, Unix ms
   * @param now Unix ms
   * @returns why it was not applied; or whether it was now, or before
   */
  apply (id: string, at: number, sums: string, now: number): NotApplied | 'applied' | 'repeated' {
    const entries = this.#reader.entries(sums)
    const seen = this.#statements.readOnce.get(id)
    if (seen !== undefined) return seen.hash === hashOf(entries) ? 'repeated' : { reason: 'other body', key: undefined }
    if (this.#isTooLate(at, now)) return { reason: 'too late', key: undefined }
    const totals = this.#totals.plus(entries)
    if (typeof totals === 'string') return { reason: 'overflow', key: totals }
    this.#totals.write(totals)
    this.record(id, entries, at)
    this.#keepLimit()
    return 'applied'
  }

  /** Marks a request as counted. */
  record (id: string, entries: readonly Entry[], at: number): void {
    this.#write(id, hashOf(entries), at, null)
  }

  /**
   * What is remembered of an entry of a plugin; undefined if it is to be applied.
   * @param hash of the plugin and the entry's data
   * @param at when it was accepted, not in the future, Unix ms
   * @param now Unix ms
   */
  find (id: string, hash: string, at: number, now: number): Remembered | undefined {
    const seen = this.#statements.readOnce.get(id)
    if (seen?.hash === hash && seen.result !== null) return { result: seen.result }
    if (seen !== undefined) return { reason: 'other body' }
    return this.#isTooLate(at, now) ? { reason: 'too late' } : undefined
  }

  /** Remembers the result of an entry of a plugin, as JSON. */
  recordEntry (id: string, hash: string, at: number, result: string): void {
    this.#write(id, hash, at, result)
    this.#keepLimit()
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

  /** Whether its row may have been pruned: it could be a repeat. */
  #isTooLate (at: number, now: number): boolean {
    // A clock was set back: from the future, the mark would refuse everything.
    if (this.#state.mark > now) this.#moveMark(now)
    return at <= this.#state.mark
  }

  #write (id: string, hash: string, at: number, result: string | null): void {
    this.#statements.writeOnce.run(id, hash, at, this.#clock.now(), result)
    this.#state = { ...this.#state, rows: this.#state.rows + 1 }
  }

  #keepLimit (): void {
    if (this.#state.rows > this.#rowsMax) this.prune(Number.MAX_SAFE_INTEGER, 1)
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
