// What becomes of replies that wait until all of their batches are stored, when some entries of those batches were
// rejected.
//
// A client must never be refused what may count after all. So an entry is refused only where nobody was promised it,
// and then to everybody who waits for it. Where it was filed, or one of its clients has been told that it is on its
// way (202), all of them are told that, and what was not filed is sent on its way again.
import type { IdempotentRequest } from '@gearbox/protocol/batch.ts'
import type { Rejection, Progress } from '@gearbox/protocol/progress.ts'
import { keyCount, RejectedKeys } from './reply-keys.ts'
import type { PendingReply, Outcome } from './pending-replies.ts'

/** What has been rejected of a producer, to be looked up by sequence. */
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
   * What it means for the replies to a flush whose batches have the sequences `from` to `to`, all of them stored.
   * @param late whether one of them was told already that it is on its way
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

/** What of a flush was rejected, for each of its replies. */
export class Verdict {
  readonly #keys: RejectedKeys
  readonly #once = new Map<string, Rejection[]>()
  /** Whether a batch could not be read at all: then all of it was filed. */
  readonly #whole: boolean
  /** How many batches had rejections that are not reported one by one. */
  readonly #omitted: number
  /** Nothing is refused any more: somebody was promised it. */
  readonly #promised: boolean
  readonly #late: boolean
  /** Sums that were not filed, but that somebody was promised. */
  readonly kept: readonly Rejection[]
  /** Batches that had such, and it is not known which. */
  readonly unknown: number

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
    this.#promised = this.#late || sums.some(isFiled)
    this.kept = this.#promised ? sums.filter((rejection) => !isFiled(rejection)) : []
  }

  /** @param sendOnceAgain called with an idempotent request that was not filed, but that somebody was promised */
  outcomeOf ({ keys, once }: PendingReply, sendOnceAgain: (once: IdempotentRequest) => void): Outcome {
    if (this.#whole) return 'accepted'
    const refused = once !== undefined
      ? this.#once.get(once.id) ?? []
      : keys === undefined ? [] : this.#keys.among(keys)
    if (refused.length === 0) return this.#omitted === 0 ? 'reached' : this.#late ? 'accepted' : { refused }
    if (once === undefined) return this.#promised ? 'accepted' : { refused }
    if (refused.some(isFiled)) return 'accepted'
    if (!this.#late) return { refused }
    sendOnceAgain(once)
    return 'accepted'
  }
}

function isFiled ({ filed = true }: Rejection): boolean {
  return filed
}

/** What it takes to find out what becomes of a reply, in keys that are compared. */
export function costOf ({ keys }: PendingReply): number {
  return keys === undefined ? 1 : keyCount(keys)
}
