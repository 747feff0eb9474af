// One connection in the fast lane: matches requests in what it reads, has them admitted, and writes their replies in
// order. Fed by socket.ts; server.ts owns it.
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import type { Config } from '@gearbox/runtime/config.ts'
import type { RequestError } from '@gearbox/runtime/http/errors.ts'
import type { Outcome } from '../deliver/pending-replies.ts'
import { admit, type AdmitOptions, type CountRequest } from '../increment/admit.ts'
import { PartialRequest } from './partial-request.ts'
import type { FastPosts } from './posts.ts'
import {
  DueReply, PostReply, type Due, type PostReplyOwner, type ReplyOwner, type ReplyTexts, type WritePass,
} from './replies.ts'
import type { RequestMatcher } from './request-matcher.ts'
import { readInto } from './socket.ts'

/**
 * How often `checkIdle` is called. A connection that is silent or within a request at two checks goes to the standard
 * path, which has the timeouts for slow clients. They begin later by at most this long, twice.
 */
export const idleCheckMs = 500

/**
 * While so many replies are due on one connection no more of it is read: a client that pipelines without end must wait
 * for some.
 */
const dueMax = 64

/** A head in more pieces than this goes to the standard path. With each piece the matcher begins again. */
const headPiecesMax = 4

/** What a connection needs to know of the worker. */
export interface ServeOptions extends AdmitOptions {
  readonly limits: AdmitOptions['limits'] & Pick<Config, 'keepAliveTimeoutMs' | 'requestTimeoutMs'>
  /** The error that a client gets for any error. Logs those that are no RequestError. */
  readonly toRequestError: (error: unknown) => RequestError
}

/** A request as it is admitted: one object for all requests, as `admit` keeps none of it. */
interface ReusedRequest extends CountRequest {
  ack: unknown
  idempotencyKey: unknown
  authorization: string | undefined
  bytes: Buffer
  start: number
  end: number
}

/**
 * What all connections of a server share. Made once, so that neither a connection nor a request allocates any of it.
 */
export interface Lane {
  readonly server: Server
  readonly options: ServeOptions
  readonly matcher: RequestMatcher
  /** Plugins' requests. */
  readonly posts: FastPosts
  readonly texts: ReplyTexts
  readonly pass: WritePass
  readonly request: ReusedRequest
  /** Whether new requests are for the standard path, which refuses them as the worker stops. */
  stopping: boolean
  /**
   * The connection goes to the standard path: its unread bytes are in its socket, no reply is due, and it no longer
   * uses it.
   */
  readonly onLeave: (connection: Connection) => void
  /** The client has ended its side within a request; all replies before that are written. */
  readonly onTruncated: (socket: Socket) => void
  readonly onClose: (connection: Connection) => void
}

/** A request for a lane to reuse. */
export function reusedRequest (): ReusedRequest {
  return {
    ack: undefined,
    form: undefined,
    idempotencyKey: undefined,
    authorization: undefined,
    bytes: Buffer.alloc(0),
    start: 0,
    end: 0,
  }
}

/**
 * A connection in the fast lane. Only its own methods change its state:
 * - *reading*, the initial state: requests are matched as their bytes arrive. With the beginning of one it holds a
 *   partial request until the rest has come. With dueMax replies due, or replies that the client does not read, its
 *   socket is paused; it is resumed when there are fewer again.
 * - *leaving*: input is put back into the socket. Entered from *reading* by bytes that are of neither shape,
 *   by a new request while the worker stops, and by a silent or partial request at two checks. Left as soon as no reply
 *   is due: then `onLeave` gives the socket to the standard path, and this object is done.
 * - *given up*: input is not read any more. Entered from *reading* when dueMax replies are due while those of all
 *   clients take more than PENDING_BYTES_MAX. Left when all due replies are written: then the socket is closed.
 *
 * In addition the client may have *ended* its side (the socket's `end`). As soon as no reply is due then, the socket is
 * ended as well; or, if there is a partial request, `onTruncated` answers that.
 *
 * Any state is left when the socket closes (`onClose`): by the client; by `checkIdle`, if it has been idle for
 * KEEP_ALIVE_TIMEOUT_MS or its client reads no replies; by `closeIfIdle` and `destroy` when the worker stops. Replies
 * that become known later are dropped.
 */
export class Connection implements ReplyOwner, PostReplyOwner {
  readonly socket: Socket
  readonly #lane: Lane
  #state: 'reading' | 'leaving' | 'given up' = 'reading'
  #ended = false
  /** Replies to admitted and refused requests, in the order of those. */
  #due: Due[] = []
  readonly #partial = new PartialRequest()
  /** Pieces of heads since the last whole request. */
  #headPieces = 0
  /** Whether `write` is going to be called: then a reply that becomes known need not ask for it. */
  #writeComes = false
  /** Whether it ever had a whole request. */
  #served = false
  /** Calls of `checkIdle` since it last began or finished a request, or got a reply. */
  #idleChecks = 0

  /** @param accepted a paused connection, as `interceptConnections` gives it */
  constructor (lane: Lane, accepted: Socket) {
    this.#lane = lane
    this.socket = readInto(accepted, lane.server, (bytes, length) => this.#onRead(bytes, length))
    this.socket.on('end', this.#onEnd).on('drain', this.#onDrain).on('error', onError).on('close', this.#onClose)
  }

  /**
   * To be called every idleCheckMs: sends slow connections to the standard path, closes idle ones and those that are
   * not read.
   */
  checkIdle (): void {
    this.#idleChecks++
    const sinceMs = this.#idleChecks * idleCheckMs
    const { keepAliveTimeoutMs, ackTimeoutMs, requestTimeoutMs } = this.#lane.options.limits
    if (this.socket.writableNeedDrain) {
      if (sinceMs > ackTimeoutMs + requestTimeoutMs) this.socket.destroy()
    } else if (this.#state === 'leaving' || this.#ended || this.#due.length > 0) {
      this.#idleChecks = 0
    } else if (this.#partial.bytes > 0 || !this.#served) {
      if (this.#idleChecks > 1) this.#leave(this.#partial.release())
    } else if (sinceMs > keepAliveTimeoutMs) {
      this.socket.destroy()
    }
  }

  closeIfIdle (): void {
    if (this.#due.length === 0 && this.#partial.bytes === 0 && this.socket.writableLength === 0) this.socket.destroy()
  }

  destroy (): void {
    this.socket.destroy()
  }

  /**
   * Writes the replies that are known, up to the first that is not, and goes on as the state says if none is due any
   * more.
   */
  write (): void {
    this.#writeComes = false
    const text = this.#shiftKnown()
    const { socket } = this
    if (text === '' || socket.destroyed) return
    this.#idleChecks = 0
    socket.write(text, 'latin1')
    if (this.#due.length > 0) return
    if (this.#state === 'given up') socket.destroySoon()
    else if (this.#state === 'leaving') this.#goOver()
    else if (this.#ended) this.#end()
    else this.#readOn()
  }

  /** Gets the outcome of one of its requests. */
  answer (reply: DueReply, outcome: Outcome | RequestError): void {
    reply.text = this.#lane.texts.textOf(outcome)
    // The usual replies share one text. Refusals that wait for others do not, and a client can cause many.
    if (typeof outcome !== 'string') this.#countWaiting(reply)
    this.#askForWrite()
  }

  answerPost (reply: PostReply, text: string): void {
    reply.text = text
    this.#countWaiting(reply)
    this.#askForWrite()
  }

  get isGone (): boolean {
    return this.#ended || this.socket.destroyed
  }

  #countWaiting (reply: Due): void {
    if (this.#due[0] === reply) return
    reply.waitingBytes = reply.ownBytes + reply.text.length
    this.#lane.options.flusher.addReplies(0, reply.waitingBytes)
  }

  #askForWrite (): void {
    if (this.#writeComes) return
    this.#writeComes = true
    this.#lane.pass.add(this)
  }

  /** @returns the texts that are known, up to the first that is not; '' if there are none */
  #shiftKnown (): string {
    const due = this.#due
    let known = 0
    let text = ''
    let waitingBytes = 0
    for (; known < due.length && due[known]!.text !== ''; known++) {
      text += due[known]!.text
      waitingBytes += due[known]!.waitingBytes
    }
    if (known === 0) return ''
    if (waitingBytes > 0) this.#lane.options.flusher.addReplies(0, -waitingBytes)
    if (known === due.length) due.length = 0
    else due.splice(0, known)
    return text
  }

  #onRead (bytes: Buffer, length: number): void {
    // What is answered at once is written below, not in a separate pass.
    this.#writeComes = true
    this.#receive(bytes, length)
    this.write()
  }

  #receive (bytes: Buffer, length: number): void {
    if (this.#state === 'given up') return
    if (this.#state === 'leaving') this.socket.push(Buffer.copyBytesFrom(bytes, 0, length))
    else if (this.#partial.bytes === 0) this.#read(bytes, length)
    else this.#readMore(Buffer.copyBytesFrom(bytes, 0, length))
  }

  #readMore (bytes: Buffer): void {
    if (!this.#partial.add(bytes)) return
    const { hasHead } = this.#partial
    const all = this.#partial.release()
    this.#read(all, all.length, hasHead)
  }

  /** @param isInProgress whether the first request's head was complete before: a stop waits for such a request */
  #read (bytes: Buffer, end: number, isInProgress = false): void {
    const lane = this.#lane
    const { matcher } = lane
    for (let at = 0; at < end;) {
      if (this.#due.length >= dueMax && this.#isOverLimit()) return this.#giveUp()
      const isForStandardPath = lane.stopping && !(isInProgress && at === 0)
      const match = isForStandardPath ? 'other' : matcher.read(bytes, at, end)
      if (match === 'whole') {
        this.#serve(bytes)
        at = matcher.bodyEnd
        continue
      }
      const post = match === 'other' && !isForStandardPath ? lane.posts.read(bytes, at, end) : 'other'
      if (post === 'whole') {
        this.#servePost()
        at = lane.posts.end
        continue
      }
      const isPartial = match === 'partial' || post === 'partial'
      if (isPartial && this.#hold(Buffer.copyBytesFrom(bytes, at, end - at), Math.max(0, matcher.bodyEnd - at))) break
      return this.#leave(Buffer.copyBytesFrom(bytes, at, end - at))
    }
    if (this.#due.length >= dueMax || this.socket.writableNeedDrain) this.socket.pause()
  }

  /** @returns false if the head comes in too many pieces */
  #hold (bytes: Buffer, wholeBytes: number): boolean {
    if (this.#headPieces++ === 0) this.#idleChecks = 0
    if (wholeBytes === 0 && this.#headPieces > headPiecesMax) return false
    this.#partial.begin(bytes, wholeBytes)
    return true
  }

  /** Has the request admitted that the matcher has just found whole. */
  #serve (bytes: Buffer): void {
    this.#idleChecks = this.#headPieces = 0
    this.#served = true
    const { options, matcher, request } = this.#lane
    request.ack = matcher.ack
    request.authorization = matcher.authorization
    request.idempotencyKey = matcher.idempotencyKey
    request.bytes = bytes
    request.start = matcher.bodyStart
    request.end = matcher.bodyEnd
    const reply = new DueReply(this)
    this.#due.push(reply)
    try {
      if (admit(options, request, reply) === 'accepted') this.answer(reply, 'accepted')
    } catch (error) {
      this.answer(reply, options.toRequestError(error))
    }
  }

  /** Has the plugin answer the request that was just found whole. */
  #servePost (): void {
    this.#idleChecks = this.#headPieces = 0
    this.#served = true
    const reply = new PostReply(this, this.#lane.texts)
    this.#due.push(reply)
    try {
      this.#lane.posts.handle(reply)
    } catch (error) {
      reply.fail(error)
    }
  }

  #isOverLimit (): boolean {
    const { flusher, limits } = this.#lane.options
    return flusher.replyBytes > limits.pendingBytesMax
  }

  /** No room is left for replies to a client that sends on without waiting for any: the rest of its input gets none. */
  #giveUp (): void {
    this.#state = 'given up'
    this.socket.pause()
    if (this.#due.length === 0) this.socket.destroySoon()
  }

  /** These bytes and all behind them are for the standard path. */
  #leave (unread: Buffer): void {
    const { socket } = this
    this.#state = 'leaving'
    socket.removeAllListeners('data')
    // Put back at once: so an `end` behind them is not emitted before they are read.
    socket.pause()
    if (unread.length > 0) socket.unshift(unread)
    if (this.#due.length === 0) this.#goOver()
  }

  #goOver (): void {
    this.socket.off('end', this.#onEnd).off('drain', this.#onDrain).off('error', onError).off('close', this.#onClose)
    this.#lane.onLeave(this)
  }

  #readOn (): void {
    if (!this.socket.isPaused() || this.#state !== 'reading') return
    if (this.#due.length < dueMax && !this.socket.writableNeedDrain) this.socket.resume()
  }

  /** The client has ended its side, and has all replies. */
  #end (): void {
    if (this.#partial.bytes > 0) this.#lane.onTruncated(this.socket)
    else this.socket.end()
  }

  readonly #onEnd = (): void => {
    this.#ended = true
    if (this.#due.length === 0) this.#end()
  }

  readonly #onDrain = (): void => this.#readOn()

  readonly #onClose = (): void => this.#lane.onClose(this)
}

/** An error closes the socket by itself, and there is no reply to send. */
function onError (): void {}
