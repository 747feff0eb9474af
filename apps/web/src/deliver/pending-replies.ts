// Replies that wait for their ack level. They are held in the order of their requests and all for the same time at
// most.
import type { IdempotentRequest } from '@gearbox/protocol/batch.ts'
import type { Rejection } from '@gearbox/protocol/progress.ts'
import { idempotentBytes } from '../accumulate/accumulator.ts'

/**
 * What became of a request. reached: the level asked for (204). accepted: it is kept, at level memory or because an entry that was
 * promised is set aside (202). late: the level was not reached in time, and it is still being delivered (202). Otherwise what was refused.
 */
export type Outcome = 'reached' | 'accepted' | 'late' | { readonly refused: readonly Rejection[] }

/** A lane's reply. Whoever holds it says since when, and what for. */
export interface PendingReply {
  /** performance.now(), ms. */
  heldAt: number
  /**
   * For `stored`: the keys that its rejections would name, packed. Undefined for any other level or an idempotent
   * request.
   */
  keys: Buffer | undefined
  /** For `stored`: the idempotent request that it answers. */
  once: IdempotentRequest | undefined
  /** Bytes that the reply itself takes while it is held. */
  readonly ownBytes: number
  /** How many increments its request has. */
  increments: number
  /** Called once, with what became of its request. */
  settle (outcome: Outcome): void
}

/** What a reply starts as. */
export const notPending: Omit<PendingReply, 'ownBytes' | 'settle'> = { heldAt: 0, keys: undefined, once: undefined, increments: 0 }

/** What a worker holds, over all its PendingReplies: how many replies, and how many bytes with all that they hold. */
export interface PendingCounts {
  replies: number
  bytes: number
  /** Requests that were answered with 2xx, and the increments in them. */
  readonly answered: { requests: number, increments: number }
}

/** Whether the reply is a 2xx. */
function isAnswered (outcome: Outcome): boolean {
  return typeof outcome === 'string'
}

/** Bytes that a reply holds until it is settled. */
function bytesOf ({ ownBytes, keys, once }: PendingReply): number {
  return ownBytes + (keys === undefined ? 0 : keys.length) + (once === undefined ? 0 : idempotentBytes(once))
}

/** Replies that wait for one flush, first come first. */
export class PendingReplies {
  readonly #held: PendingCounts
  #replies: PendingReply[] = []
  #first = 0

  constructor (held: PendingCounts) {
    this.#held = held
  }

  get size (): number {
    return this.#replies.length - this.#first
  }

  hold (reply: PendingReply): void {
    this.#replies.push(reply)
    this.#held.replies++
    this.#held.bytes += bytesOf(reply)
  }

  /** Settles all of them. */
  settleAll (outcomeOf: (reply: PendingReply) => Outcome): void {
    const [replies, first, held] = [this.#replies, this.#first, this.#held]
    held.replies -= this.size
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
    held.bytes -= bytes
    held.answered.requests += requests
    held.answered.increments += increments
  }

  /**
   * Settles the oldest of them, those that cost no more than `costMax` together and one more. @returns what they cost
   */
  settleSome (outcomeOf: (reply: PendingReply) => Outcome, costMax: number, costOf: (reply: PendingReply) => number): number {
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
   * Settles as late what was held before `before` (performance.now ms). @param onLate called with each of them first
   */
  settleLate (before: number, onLate?: (reply: PendingReply) => void): void {
    for (;;) {
      const reply = this.#replies[this.#first]
      if (reply === undefined || reply.heldAt > before) break
      this.#first++
      onLate?.(reply)
      this.#settle(reply, 'late')
    }
    this.#trim()
  }

  #settle (reply: PendingReply, outcome: Outcome): void {
    this.#held.replies--
    this.#held.bytes -= bytesOf(reply)
    if (isAnswered(outcome)) {
      this.#held.answered.requests++
      this.#held.answered.increments += reply.increments
    }
    reply.settle(outcome)
  }

  /** What is settled holds its whole request; it must not stay until the flush is stored, which may be hours away. */
  #trim (): void {
    if (this.#first * 2 < this.#replies.length) return
    this.#replies.splice(0, this.#first)
    this.#first = 0
  }
}
