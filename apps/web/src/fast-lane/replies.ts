// The replies of the fast lane: the place of one among those that are due on its connection, its text, and when texts
// are written.
import { STATUS_CODES } from 'node:http'
import { errorText } from '@gearbox/runtime/http/error-reply.ts'
import type { RequestError } from '@gearbox/runtime/http/errors.ts'
import { notPending, type Outcome, type PendingReply } from '../deliver/pending-replies.ts'
import { refusal } from '../increment/admit.ts'

/** About as many bytes as a pending reply takes. */
const replyBytes = 256

/** Gets the outcome of each of its replies. */
export interface ReplyOwner {
  /** Called once for each reply. */
  answer (reply: DueReply, outcome: Outcome): void
}

/** A reply that is due on a connection. It waits until its own text is known, and then until those before it are. */
export class DueReply implements PendingReply {
  readonly #owner: ReplyOwner
  pendingSince = notPending.pendingSince
  keys = notPending.keys
  once = notPending.once
  increments = notPending.increments
  readonly ownBytes = replyBytes
  /** '' until it is known. */
  text = ''
  /** Bytes that its owner has counted as waiting, as its text waits for others. */
  waitingBytes = 0

  constructor (owner: ReplyOwner) {
    this.#owner = owner
  }

  settle (outcome: Outcome): void {
    this.#owner.answer(this, outcome)
  }
}

/** What is equal in all replies of one second: the end of their heads, and the two whole ones that have no body. */
interface CachedTexts {
  readonly headers: string
  readonly reached: string
  readonly accepted: string
}

/** What the texts depend on. */
export interface ReplyTextOptions {
  readonly keepAliveTimeoutMs: number
  /** Whether replies depend on the request's Origin. */
  readonly varyByOrigin: boolean
  /** Counts a reply. */
  readonly replied: (statusCode: number) => void
}

/** Makes replies as the standard path would write them, byte for byte. */
export class ReplyTexts {
  readonly #options: ReplyTextOptions
  readonly #vary: string
  #cached: CachedTexts | undefined

  constructor (options: ReplyTextOptions) {
    this.#options = options
    this.#vary = options.varyByOrigin ? 'vary: Origin\r\n' : ''
  }

  /** A whole reply, to be written in latin1, which is counted as replied. */
  textOf (outcome: Outcome | RequestError): string {
    const cached = this.#cached ??= this.#makeCached()
    if (typeof outcome === 'string') {
      this.#options.replied(outcome === 'reached' ? 204 : 202)
      return outcome === 'reached' ? cached.reached : cached.accepted
    }
    const error = 'refused' in outcome ? refusal(outcome.refused) : outcome
    this.#options.replied(error.statusCode)
    return errorText(error, this.#vary, cached.headers)
  }

  #makeCached (): CachedTexts {
    const now = new Date()
    const timeoutSeconds = Math.floor(this.#options.keepAliveTimeoutMs / 1000)
    const headers = `Date: ${now.toUTCString()}\r\n` +
      `Connection: keep-alive\r\nKeep-Alive: timeout=${timeoutSeconds}\r\n\r\n`
    setTimeout(() => { this.#cached = undefined }, 1000 - now.getMilliseconds()).unref()
    const head = (statusCode: number): string => `HTTP/1.1 ${statusCode} ${STATUS_CODES[statusCode]}\r\n${this.#vary}`
    return { headers, reached: `${head(204)}${headers}`, accepted: `${head(202)}content-length: 0\r\n${headers}` }
  }
}

/**
 * Writes when all replies that become known in one event-loop iteration are: in one pass, and with one write per
 * connection.
 */
export class WritePass {
  #waiting: Array<{ write (): void }> = []

  /** Has `write` called in the next pass. To be added once per pass. */
  add (connection: { write (): void }): void {
    this.#waiting.push(connection)
    if (this.#waiting.length === 1) queueMicrotask(this.#run)
  }

  readonly #run = (): void => {
    const waiting = this.#waiting
    this.#waiting = []
    for (const connection of waiting) connection.write()
  }
}
