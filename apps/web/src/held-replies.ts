// Replies that wait for their ack level. They are held in the order of their requests and all for the same time at most.
import type { Rejection, Stored } from '@gearbox/queue/queue.ts'

/** reached: the level asked for. late: not within the time; it is still on its way. Otherwise what was refused. */
export type Outcome = 'reached' | 'late' | { readonly refused: readonly Rejection[] }

/** A lane's reply. Whoever holds it says since when, and what for. */
export interface HeldReply {
  /** performance.now(), ms. */
  heldAt: number
  /** For `stored`: what its rejections would name. */
  keys: readonly string[]
  once: string | undefined
  /** Called once, with what became of its request. */
  settle (outcome: Outcome): void
}

/** What a reply starts as. */
export const notHeld: Omit<HeldReply, 'settle'> = { heldAt: 0, keys: [], once: undefined }

/** How many replies a worker holds, over all its HeldReplies. */
export interface Held {
  replies: number
}

export class HeldReplies {
  readonly #held: Held
  #replies: HeldReply[] = []
  #first = 0

  constructor (held: Held) {
    this.#held = held
  }

  get size (): number {
    return this.#replies.length - this.#first
  }

  hold (reply: HeldReply): void {
    this.#replies.push(reply)
    this.#held.replies++
  }

  settleAll (outcomeOf: (reply: HeldReply) => Outcome): void {
    const [replies, first] = [this.#replies, this.#first]
    this.#held.replies -= this.size
    this.#replies = []
    this.#first = 0
    for (let i = first; i < replies.length; i++) replies[i]!.settle(outcomeOf(replies[i]!))
  }

  /** Settles as late what was held before `before` (performance.now ms). */
  settleLate (before: number): void {
    for (let reply = this.#replies[this.#first]; reply !== undefined && reply.heldAt <= before; reply = this.#replies[this.#first]) {
      this.#first++
      this.#held.replies--
      reply.settle('late')
    }
    // What is settled holds its whole request; it must not stay until the round ends, which may be hours away.
    if (this.#first * 2 >= this.#replies.length) {
      this.#replies.splice(0, this.#first)
      this.#first = 0
    }
  }
}

/** What became of a request all of whose batches are stored. */
export function outcomeWhenStored ({ keys, once }: HeldReply, { rejected, untold }: Stored, from: number, to: number): Outcome {
  if (rejected.length === 0 && untold.length === 0) return 'reached'
  const refused = rejected.filter((rejection) => rejection.seq >= from && rejection.seq <= to && (
    (rejection.once === undefined && rejection.key === undefined) ||
    (rejection.once === undefined ? once === undefined && rejection.key !== undefined && keys.includes(rejection.key) : rejection.once === once)))
  if (refused.length > 0) return { refused }
  return untold.some((seq) => seq >= from && seq <= to) ? { refused: [] } : 'reached'
}
