// Flushes of level `stored` that were answered with 202 before they were stored, and that the consumer may still
// refuse, as it does not know of that. What it refuses of them has to be sent once more, for it was promised. The
// settlement adds them, and learns from every progress report what to send. All that is kept of a flush is its range of
// sequences; the rejection says what was rejected. An idempotent request is kept itself, but not for long: the consumer
// files, and does not refuse, a batch that is older than its replies' time. So this is only for what was stored in time
// and reported too late.
import type { IdempotentRequest } from '@gearbox/protocol/batch.ts'
import type { Rejection, Progress } from '@gearbox/protocol/progress.ts'
import { hasAll, missing } from '@gearbox/protocol/sequences.ts'
import { idempotentBytes } from '../accumulate/accumulator.ts'

/** Rejections are reported for so long. */
const keptMs = 60_000

/** Bytes of all kept requests together, at most: the oldest are dropped first. */
const keptBytesMax = 8 * 1024 * 1024

/** A flush, as far as late replies need it: its sequences, and whether a batch of it may be refused. */
export interface LateFlush {
  readonly refusable: boolean
  /** 0 until it is being encoded. */
  readonly firstSeq: number
  /** Infinite until all of it is encoded. */
  readonly lastSeq: number
}

interface Kept {
  readonly once: IdempotentRequest
  readonly flush: LateFlush
  readonly bytes: number
  /** performance.now ms */
  readonly since: number
}

/** What one worker has promised with a 202 before it was stored, and may have to send once more. */
export class LateReplies {
  /** In order. A flush between two of them that was not late itself is in no range. */
  #ranges: Array<[from: number, to: number]> = []
  /** The last sequence that was added. */
  #lastSeq = 0
  #kept: Kept[] = []
  #keptBytes = 0

  /** Whether there is nothing that could have to be sent once more. */
  get isEmpty (): boolean {
    return this.#ranges.length === 0 && this.#kept.length === 0
  }

  /**
   * Adds a flush all of whose replies were given, one of them too early.
   * @param joined whether no other flush that may be refused is between it and the last one that was added
   */
  add ({ refusable, firstSeq, lastSeq }: LateFlush, joined: boolean): void {
    if (!refusable) return
    const last = this.#ranges.at(-1)
    // What was settled meanwhile must not come back into a range: its rejections are reported again and again for a
    // while.
    if (last !== undefined && joined && last[1] === this.#lastSeq) last[1] = lastSeq
    else this.#ranges.push([firstSeq, lastSeq])
    this.#lastSeq = lastSeq
  }

  /** Keeps an idempotent request whose reply was given too early. */
  keepRequest (once: IdempotentRequest, flush: LateFlush): void {
    if (once.storedWithinMs === undefined) return
    const bytes = idempotentBytes(once)
    this.#kept.push({ once, flush, bytes, since: performance.now() })
    this.#keptBytes += bytes
  }

  /** Drops kept requests that are too old or too many. */
  dropOld (): void {
    const before = performance.now() - keptMs
    let first = 0
    for (; first < this.#kept.length; first++) {
      const { bytes, since } = this.#kept[first]!
      if (since > before && this.#keptBytes <= keptBytesMax) break
      this.#keptBytes -= bytes
    }
    if (first > 0) this.#kept.splice(0, first)
  }

  /**
   * Removes what is stored by now. A report can be repeated: what it returned once it does not return again.
   * @returns what was rejected of it without having been filed: sums, requests, and how many batches had entries that
   * are not known any more
   */
  settle (stored: Progress): { rejections: Rejection[], requests: IdempotentRequest[], unknown: number } {
    const { rejected, omittedRejections } = stored
    const omittedFiled = new Set(stored.omittedFiled)
    const unfiled = rejected.filter(({ filed }) => filed === false)
    const isLate = (seq: number): boolean => this.#ranges.some(([from, to]) => seq >= from && seq <= to)
    const rejections = unfiled.filter(({ seq, key, once }) => key !== undefined && once === undefined && isLate(seq))
    const unknown = omittedRejections.filter((seq) => isLate(seq) && !omittedFiled.has(seq)).length
    this.#ranges = this.#ranges.flatMap(([from, to]) =>
      missing(stored, from, to).map(([first, last]): [number, number] => [first, last]))

    const refused = new Map<string, Rejection[]>()
    for (const rejection of unfiled) {
      if (rejection.once === undefined) continue
      const others = refused.get(rejection.once)
      if (others === undefined) refused.set(rejection.once, [rejection])
      else others.push(rejection)
    }
    const requests: IdempotentRequest[] = []
    const kept: Kept[] = []
    this.#keptBytes = 0
    for (const entry of this.#kept) {
      const { flush: { firstSeq, lastSeq } } = entry
      if (!hasAll(stored, firstSeq, lastSeq)) {
        kept.push(entry)
        this.#keptBytes += entry.bytes
      } else if (refused.get(entry.once.id)?.some(({ seq }) => seq >= firstSeq && seq <= lastSeq) === true) {
        requests.push(entry.once)
      }
    }
    this.#kept = kept
    return { rejections, requests, unknown }
  }
}
