// The database's clock. It runs only while a consumer does, so that a wrong wall clock makes nothing old before its
// time. Idempotency rows and reports are dated by it.

/**
 * A clock of the database, in ms; it never goes back. Its time is saved in the same transaction as what is dated by it.
 */
export class DatabaseClock {
  readonly #elapsedMs: number
  readonly #setAt = performance.now()

  /** @param elapsedMs what the clock shows now */
  constructor (elapsedMs: number) {
    this.#elapsedMs = elapsedMs
  }

  /** Milliseconds that consumers of this database have run for, a whole number. */
  now (): number {
    return Math.floor(this.#elapsedMs + performance.now() - this.#setAt)
  }
}
