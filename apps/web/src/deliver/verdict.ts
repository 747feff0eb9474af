// What becomes of replies that wait until all of their batches are stored, when some entries of those batches were
// rejected. The settlement builds a verdict from a progress report, and asks it for the outcome of each reply.
//
// A client must never be refused what may count after all. So an entry is refused only where nobody was promised it,
// and then to everybody who waits for it. Where it was filed, or one of its clients was answered with 202, all of them
// are answered with 202, and what was not filed is sent once more.
import type { IdempotentRequest } from '@gearbox/protocol/batch.ts'
import type { Rejection, Progress } from '@gearbox/protocol/progress.ts'
import { keyCount, RejectedKeys } from './reply-keys.ts'
import type { PendingReply, Outcome } from './pending-replies.ts'

/** All reported rejections of a producer, to be looked up by sequence. */
export class RejectionIndex {
  readonly #rejected: readonly Rejection[]
  readonly #omitted: readonly number[]
  readonly #omittedFiled: ReadonlySet<number>

  constructor ({ rejected, omittedRejections, omittedFiled = [] }: Progress) {
    this.#rejected = rejected.toSorted((one, other) => one.seq - other.seq)
    this.#omitted = omittedRejections.toSorted((one, other) => one - other)
    this.#omittedFiled = new Set(omittedFiled)
  }

  /**
   * What they mean for the replies to a flush whose batches have the sequences `from` to `to`, all of them stored.
   * @param late whether one of these replies was already given, as a 202
   * @returns undefined if nothing of it was rejected
   */
  between (from: number, to: number, late: boolean): Verdict | undefined {
    const first = firstFrom(this.#rejected.length, (i) => this.#rejected[i]!.seq >= from)
    const end = firstFrom(this.#rejected.length, (i) => this.#rejected[i]!.seq > to)
    const { length } = this.#omitted
    const omitted = this.#omitted.slice(
      firstFrom(length, (i) => this.#omitted[i]! >= from), firstFrom(length, (i) => this.#omitted[i]! > to))
    if (first === end && omitted.length === 0) return undefined
    const unfiled = omitted.filter((seq) => !this.#omittedFiled.has(seq)).length
    return new Verdict(this.#rejected.slice(first, end), omitted.length, unfiled, late)
  }
}

/** The lowest number below `length` for which `holds`, if it then holds for all above too; `length` if for none. */
function firstFrom (length: number, holds: (i: number) => boolean): number {
  let [low, high] = [0, length]
  while (low < high) {
    const middle = (low + high) >>> 1
    if (holds(middle)) high = middle
    else low = middle + 1
  }
  return low
}

/** What the rejections of one flush mean for each of its replies. */
export class Verdict {
  readonly #keys: RejectedKeys
  readonly #once = new Map<string, Rejection[]>()
  /** Whether a batch could not be read at all: then all of it was filed. */
  readonly #whole: boolean
  /** How many batches had rejections that are not reported one by one. */
  readonly #omitted: number
  /** Whether no sum is refused any more, as somebody was promised one. */
  readonly #isPromised: boolean
  readonly #late: boolean
  /** Sums that were not filed, but that somebody was promised: they have to be sent once more. */
  readonly promised: readonly Rejection[]
  /** Batches that had such sums, and it is not known which. */
  readonly unknown: number

  /**
   * @param rejections of the flush's batches
   * @param omitted how many of its batches had rejections that are not reported one by one
   * @param omittedUnfiled how many of those had any that was not filed
   * @param late whether a reply to the flush was already given, as a 202
   */
  constructor (rejections: readonly Rejection[], omitted: number, omittedUnfiled: number, late: boolean) {
    const sums = rejections.filter(({ key, once }) => once === undefined && key !== undefined)
    this.#keys = new RejectedKeys(sums)
    for (const rejection of rejections) {
      if (rejection.once === undefined) continue
      const others = this.#once.get(rejection.once)
      if (others === undefined) this.#once.set(rejection.once, [rejection])
      else others.push(rejection)
    }
    this.#whole = rejections.some(({ key, once }) => once === undefined && key === undefined)
    this.#omitted = omitted
    this.#late = late || omittedUnfiled < omitted
    this.unknown = this.#late ? omittedUnfiled : 0
    this.#isPromised = this.#late || sums.some(isFiled)
    this.promised = this.#isPromised ? sums.filter((rejection) => !isFiled(rejection)) : []
  }

  /** @param sendAgain called with an idempotent request that was not filed, but that somebody was promised */
  outcomeOf ({ keys, once }: PendingReply, sendAgain: (once: IdempotentRequest) => void): Outcome {
    if (this.#whole) return 'accepted'
    const refused = once !== undefined
      ? this.#once.get(once.id) ?? []
      : keys === undefined ? [] : this.#keys.among(keys)
    if (refused.length === 0) return this.#omitted === 0 ? 'reached' : this.#late ? 'accepted' : { refused }
    if (once === undefined) return this.#isPromised ? 'accepted' : { refused }
    if (refused.some(isFiled)) return 'accepted'
    if (!this.#late) return { refused }
    sendAgain(once)
    return 'accepted'
  }
}

function isFiled ({ filed = true }: Rejection): boolean {
  return filed
}

/** How many keys are compared to find out what becomes of a reply. */
export function costOf ({ keys }: PendingReply): number {
  return keys === undefined ? 1 : keyCount(keys)
}
