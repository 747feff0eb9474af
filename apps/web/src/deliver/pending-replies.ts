// Replies that wait for their ack level: whoever parsed the request makes them, the settlement gives them. They are
// kept in the order of their requests, and all of them wait for the same time at most.
import type { IdempotentRequest } from '@gearbox/protocol/batch.ts'
import type { Rejection } from '@gearbox/protocol/progress.ts'
import { idempotentBytes } from '../accumulate/accumulator.ts'

/**
 * What became of a request. `reached`: its ack level was reached (204). `accepted`: it is kept, at level memory as
 * asked, or with an entry that was promised and is set aside (202). `late`: the level was not reached in time, and it
 * is still being delivered (202). Otherwise the entries that were refused.
 */
export type Outcome = 'reached' | 'accepted' | 'late' | { readonly refused: readonly Rejection[] }

/** A reply that waits. `admit` fills in since when, and for what. */
export interface PendingReply {
  /** When it began to wait (performance.now, ms). */
  pendingSince: number
  /**
   * For `stored`: the keys that its rejections would name, packed. Undefined for any other level or an idempotent
   * request.
   */
  keys: Buffer | undefined
  /** For `stored`: the idempotent request that it answers. */
  once: IdempotentRequest | undefined
  /** Bytes that the reply itself takes while it waits. */
  readonly ownBytes: number
  /** How many increments its request has. */
  increments: number
  /** Called once, with what became of its request. */
  settle (outcome: Outcome): void
}

/** The fields of a reply that does not wait yet. */
export const notPending: Omit<PendingReply, 'ownBytes' | 'settle'> = {
  pendingSince: 0, keys: undefined, once: undefined, increments: 0,
}

/** All pending replies of a worker: one such object is shared by all of its PendingReplies. */
export interface PendingCounts {
  /** How many replies wait. */
  replies: number
  /** Bytes that they take, with their keys and requests. */
  bytes: number
  /** Requests that were answered with 2xx, and the increments in them. */
  readonly answered: { requests: number, increments: number }
}

/** Whether the reply is a 2xx. */
function isAnswered (outcome: Outcome): boolean {
  return typeof outcome === 'string'
}

/** Bytes that a reply takes until it is settled. */
function bytesOf ({ ownBytes, keys, once }: PendingReply): number {
  return ownBytes + (keys === undefined ? 0 : keys.length) + (once === undefined ? 0 : idempotentBytes(once))
}

/**
 * Replies of one level that wait for one flush, first come first. Each is settled exactly once, by whichever of the
 * methods comes first, and is counted in the shared counts until then.
 */
export class PendingReplies {
  readonly #counts: PendingCounts
  #replies: PendingReply[] = []
  #first = 0

  /** @param counts shared with the worker's other PendingReplies, and updated by all of them */
  constructor (counts: PendingCounts) {
    this.#counts = counts
  }

  /** Replies that are not settled yet. */
  get size (): number {
    return this.#replies.length - this.#first
  }

  /** Adds a reply that began to wait no earlier than those before it. */
  add (reply: PendingReply): void {
    this.#replies.push(reply)
    this.#counts.replies++
    this.#counts.bytes += bytesOf(reply)
  }

  /** Settles all of them. */
  settleAll (outcomeOf: (reply: PendingReply) => Outcome): void {
    const [replies, first, counts] = [this.#replies, this.#first, this.#counts]
    counts.replies -= this.size
    // What is settled may be answered at once; nothing that follows from that may meet it here.
    this.#replies = []
    this.#first = 0
    let [bytes, requests, increments] = [0, 0, 0]
    for (let i = first; i < replies.length; i++) {
      const reply = replies[i]!
      const outcome = outcomeOf(reply)
      bytes += bytesOf(reply)
      if (isAnswered(outcome)) {
        requests++
        increments += reply.increments
      }
      reply.settle(outcome)
    }
    counts.bytes -= bytes
    counts.answered.requests += requests
    counts.answered.increments += increments
  }

  /**
   * Settles the oldest of them: those that cost no more than `costMax` together, and one more.
   * @returns what they cost
   */
  settleSome (
    outcomeOf: (reply: PendingReply) => Outcome, costMax: number, costOf: (reply: PendingReply) => number
  ): number {
    let cost = 0
    while (this.#first < this.#replies.length && cost <= costMax) {
      const reply = this.#replies[this.#first++]!
      cost += costOf(reply)
      this.#settle(reply, outcomeOf(reply))
    }
    this.#trim()
    return cost
  }

  /**
   * Settles as late what began to wait before `before` (performance.now, ms).
   * @param onLate called with each of them first
   */
  settleLate (before: number, onLate?: (reply: PendingReply) => void): void {
    for (;;) {
      const reply = this.#replies[this.#first]
      if (reply === undefined || reply.pendingSince > before) break
      this.#first++
      onLate?.(reply)
      this.#settle(reply, 'late')
    }
    this.#trim()
  }

  #settle (reply: PendingReply, outcome: Outcome): void {
    this.#counts.replies--
    this.#counts.bytes -= bytesOf(reply)
    if (isAnswered(outcome)) {
      this.#counts.answered.requests++
      this.#counts.answered.increments += reply.increments
    }
    reply.settle(outcome)
  }

  /**
   * A settled reply keeps its whole request in memory; it must not stay until the flush is stored, which may be hours
   * away.
   */
  #trim (): void {
    if (this.#first * 2 < this.#replies.length) return
    this.#replies.splice(0, this.#first)
    this.#first = 0
  }
}
