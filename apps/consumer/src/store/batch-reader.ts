// Reads batches with SQLite's JSON functions, which keep all 64 bits of a number; JavaScript's would round them.
// Used where a run is applied entry by entry, and where a rejected one is tried again.
import type { Entry, RawIdempotentRequest, Statements } from './statements.ts'

/** A run can't be applied as a whole: one of its entries has to be found and set aside. */
export class NeedsCheckingError extends Error {}

/** An idempotent request of a batch. */
export interface IdempotentRequest {
  readonly id: string
  /** When its worker accepted it, Unix ms by that worker's clock. */
  readonly at: number
  /** Its sums as JSON: key → 64-bit integer. */
  readonly sums: string
  /** How long its reply waits to be stored, in ms; undefined if it was promised already. */
  readonly storedWithinMs: number | undefined
}

/** Reads the JSON of batches. What it returns is exact; what a batch claims to be is never believed. */
export class BatchReader {
  readonly #statements: Statements

  constructor (statements: Statements) {
    this.#statements = statements
  }

  /** Whether it is one JSON value by RFC 8259. json_each takes JSON5 too, and all of SQLite's JSON ends at a NUL. */
  isJson (json: string): boolean {
    return !json.includes('\0') && this.#statements.isJson.get(json) === 1
  }

  /** Whether it is JSON, all values in it are 64-bit integers, and its idempotent requests can be read. */
  isReadable (json: string): boolean {
    return this.isJson(json) && this.#statements.unsoundSums.get({ json }) === 0 && this.#canReadIdempotent(json)
  }

  /** The sums of a batch, in its order. */
  sums (json: string): Entry[] {
    return this.#statements.readSums.all(json)
  }

  /** The sums of a batch as JSON. */
  sumsJson (json: string): string {
    return this.#statements.sumsJson.get(json) ?? '{}'
  }

  /** The sums of an idempotent request, in its order. */
  entries (sums: string): Entry[] {
    return this.#statements.readEntries.all(sums)
  }

  /** The idempotent requests of a batch. @throws NeedsCheckingError if any can't be read */
  idempotent (json: string): IdempotentRequest[] {
    if (this.#statements.onceType.get(json) !== 'array') throw new NeedsCheckingError()
    return this.#statements.readIdempotent.all(json).map((row) => this.#parseIdempotent(row))
  }

  #parseIdempotent ({ id, at, sums, ack, timeout }: RawIdempotentRequest): IdempotentRequest {
    if (typeof id !== 'string' || typeof sums !== 'string') throw new NeedsCheckingError()
    if (typeof at !== 'number' || !Number.isSafeInteger(at) || at < 0) throw new NeedsCheckingError()
    if (this.#statements.unsoundEntries.get(sums) !== 0) throw new NeedsCheckingError()
    return { id, at, sums, storedWithinMs: ack === 'stored' && typeof timeout === 'number' ? timeout : undefined }
  }

  #canReadIdempotent (json: string): boolean {
    try {
      this.idempotent(json)
      return true
    } catch (error) {
      if (error instanceof NeedsCheckingError) return false
      throw error
    }
  }
}
