// What becomes of tickets where paths are compared: a consumer without a database, which numbers and refuses by a
// line's name alone. So two workers, each with one of their own, get the same for the same requests.
import { readEntries } from '@gearbox/protocol/batch.ts'
import type { EntryOutcome, EntryResult, Json } from '@gearbox/protocol/plugin-entry.ts'

/** As requests.ts draws them, for each case its own. What has another name may be of several cases: it is refused. */
const ownName = /^[a-z]{8}(?![a-z])/

/** Numbers that a line has whose name begins with a to d. */
const fewNumbers = 1

/** One worker's. */
export class TicketConsumer {
  readonly #issued = new Map<string, number>()
  readonly #known = new Map<string, EntryOutcome>()

  /** What became of the entries of a batch. */
  apply (seq: number, element: Buffer): EntryResult[] {
    const entries = readEntries(element)
    if (typeof entries === 'string') throw new Error(entries)
    return entries.map(({ data, id }, entry) => {
      const outcome = (id === undefined ? undefined : this.#known.get(id)) ?? this.#outcomeOf(data)
      if (id !== undefined && 'result' in outcome) this.#known.set(id, outcome)
      return { seq, entry, outcome }
    })
  }

  #outcomeOf (data: Json): EntryOutcome {
    const { issue: name, requests = 0, counts = [] }: {
      issue?: string, requests?: number, counts?: Array<[number, number]>
    } = JSON.parse(JSON.stringify(data))
    if (name === undefined || !ownName.test(name) || name.startsWith('e')) {
      return { error: { statusCode: 422, code: 'GBX_FUZZ', message: 'nicht f\u00fcr dich', details: { left: 7 } } }
    }
    const before = this.#issued.get(name) ?? 0
    const left = (/^[a-d]/.test(name) ? fewNumbers : 1e9) - before
    const wanted = [requests, ...counts.map(([, count]) => count - 1)].reduce((sum, count) => sum + count, 0)
    this.#issued.set(name, before + Math.min(left, wanted))
    return { result: { first: before + 1, left, key: 'the same', overtakenMs: 0 } }
  }
}
