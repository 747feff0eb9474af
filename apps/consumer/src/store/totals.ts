// The table `numbers`, key by key, with a check before each write. A whole run at once is insert-sums.ts.
import { int64Max, int64Min } from '@gearbox/protocol/int64.ts'
import { LeftOutByTriggerError } from './owner-triggers.ts'
import type { Entry, Statements } from './statements.ts'

/** Totals that are to be written, by key. */
export type NewTotals = ReadonlyMap<string, bigint>

/** Adds to totals, exactly. Writes only within the transaction of its caller. */
export class Totals {
  readonly #statements: Statements

  constructor (statements: Statements) {
    this.#statements = statements
  }

  /** Adds to a total; 'overflow', and nothing done, if that would leave 64 bits. @throws LeftOutByTriggerError */
  add ({ key, value }: Entry): 'overflow' | undefined {
    const totals = this.plus([{ key, value }])
    if (typeof totals === 'string') return 'overflow'
    this.write(totals)
    return undefined
  }

  /** The totals that entries lead to, or the first key whose total would leave 64 bits. Writes nothing. */
  plus (entries: readonly Entry[]): NewTotals | string {
    const totals = new Map<string, bigint>()
    for (const { key, value } of entries) {
      const sum = (totals.get(key) ?? this.#statements.readTotal.get(key) ?? 0n) + value
      if (sum > int64Max || sum < int64Min) return key
      totals.set(key, sum)
    }
    return totals
  }

  /**
   * Writes totals in their order.
   * @throws LeftOutByTriggerError if a trigger leaves one out, any constraint's SQLite error
   */
  write (totals: NewTotals): void {
    for (const [key, total] of totals) {
      const { changes } = this.#statements.writeTotal.run(key, total)
      if (changes === 0) throw new LeftOutByTriggerError(`it leaves out ${JSON.stringify(key)}`)
    }
  }
}
