// The replies of the fast lane: the place of one among those that are due on its connection, its text, and when texts
// are written.
import { STATUS_CODES } from 'node:http'
import { errorReply, errorText } from '@gearbox/runtime/http/error-reply.ts'
import type { RequestError } from '@gearbox/runtime/http/errors.ts'
import type { FastReply } from '@gearbox/runtime/plugin.ts'
import { notPending, type Outcome, type PendingReply } from '../deliver/pending-replies.ts'
import { refusal } from '../increment/admit.ts'

/** About as many bytes as a pending reply takes. */
const replyBytes = 256

/** Gets the outcome of each of its replies. */
export interface ReplyOwner {
  /** Called once for each reply. */
  answer (reply: DueReply, outcome: Outcome): void
}

/** What a connection knows of a reply that is due on it. */
export interface Due {
  /** '' until it is known. */
  text: string
  /** Bytes that its connection has counted as waiting, as its text waits for others. */
  waitingBytes: number
  /** Bytes that it takes besides its text. */
  readonly ownBytes: number
}

/**
 * A reply to an increment that is due on a connection. It waits until its own text is known, and then until those
 * before it are.
 */
export class DueReply implements PendingReply, Due {
  readonly #owner: ReplyOwner
  pendingSince = notPending.pendingSince
  keys = notPending.keys
  once = notPending.once
  increments = notPending.increments
  readonly ownBytes = replyBytes
  text = ''
  waitingBytes = 0

  constructor (owner: ReplyOwner) {
    this.#owner = owner
  }

  settle (outcome: Outcome): void {
    this.#owner.answer(this, outcome)
  }
}

/** Whom a reply to one of a plugin's requests belongs to. */
export interface PostReplyOwner {
  /** Whether its client has closed the connection, or ended its side of it. */
  readonly isGone: boolean
  /** Called once for each reply. */
  answerPost (reply: PostReply, text: string): void
}

/** What makes the texts of plugins' replies. */
export interface PostTexts {
  textOfJson (statusCode: number, headers: Readonly<Record<string, string>>, json: string): string
  textOfError (error: unknown, headers: Readonly<Record<string, string>>): string
}

/** A reply to one of a plugin's requests that is due on a connection. Its handler gets it; the first answer counts. */
export class PostReply implements FastReply, Due {
  readonly #owner: PostReplyOwner
  readonly #texts: PostTexts
  readonly ownBytes = replyBytes
  text = ''
  waitingBytes = 0

  constructor (owner: PostReplyOwner, texts: PostTexts) {
    this.#owner = owner
    this.#texts = texts
  }

  isGone (): boolean {
    return this.#owner.isGone
  }

  send (statusCode: number, headers: Readonly<Record<string, string>>, json: string): void {
    this.#answer(() => this.#texts.textOfJson(statusCode, headers, json))
  }

  fail (error: unknown, headers: Readonly<Record<string, string>> = {}): void {
    this.#answer(() => this.#texts.textOfError(error, headers))
  }

  /** What a plugin answers with may be impossible, but an answer its client gets. */
  #answer (write: () => string): void {
    if (this.text !== '') return
    let text: string
    try {
      text = write()
    } catch (error) {
      text = this.#texts.textOfError(error, {})
    }
    this.#owner.answerPost(this, text)
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
  /** The error that a client gets for any error. Logs those that are no RequestError. */
  readonly toRequestError: (error: unknown) => RequestError
}

/** What a header's value may have: what Node lets pass. */
const headerValue = /^[\t\x20-\x7e\x80-\xff]*$/

const jsonHeaders = { 'content-type': 'application/json; charset=utf-8' } as const

/** Makes replies as the standard path would write them, byte for byte. */
export class ReplyTexts implements PostTexts {
  readonly #options: ReplyTextOptions
  readonly #vary: string
  /** The headers of every reply. */
  readonly #first: Readonly<Record<string, string>>
  #cached: CachedTexts | undefined

  constructor (options: ReplyTextOptions) {
    this.#options = options
    this.#vary = options.varyByOrigin ? 'vary: Origin\r\n' : ''
    this.#first = options.varyByOrigin ? { vary: 'Origin' } : {}
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

  /**
   * The same for a reply of a plugin.
   * @throws Error for headers or a status that Node would refuse
   */
  textOfJson (statusCode: number, headers: Readonly<Record<string, string>>, json: string): string {
    return this.#textOf(statusCode, { ...this.#first, ...headers, ...jsonHeaders }, json)
  }

  textOfError (error: unknown, headers: Readonly<Record<string, string>>): string {
    const { statusCode, headers: own, body } = errorReply(this.#options.toRequestError(error))
    return this.#textOf(statusCode, { ...this.#first, ...headers, ...own }, body)
  }

  #textOf (statusCode: number, headers: Readonly<Record<string, string>>, body: string): string {
    // Behind one of the others no client would expect the body.
    if (!(statusCode >= 200 && statusCode < 600) || statusCode === 204 || statusCode === 304) {
      throw new Error(`a plugin answered with a body and the status ${statusCode}`)
    }
    let head = `HTTP/1.1 ${statusCode} ${STATUS_CODES[statusCode] ?? 'unknown'}\r\n`
    for (const header in headers) {
      const value = headers[header]!
      if (!headerValue.test(value)) throw new Error(`a plugin answered with a ${header} that is no header's value`)
      head += `${header}: ${value}\r\n`
    }
    const bytes = Buffer.byteLength(body)
    const { headers: last } = this.#cached ??= this.#makeCached()
    this.#options.replied(statusCode)
    const written = bytes === body.length ? body : Buffer.from(body).toString('latin1')
    return `${head}content-length: ${bytes}\r\n${last}${written}`
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
