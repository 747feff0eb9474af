// The way most increments come in: a lane in front of Node's HTTP parser that serves one shape of request (matcher.ts) straight
// from the socket. Whatever is not of that shape goes, with all bytes unread, to Node's parser and Fastify behind it, and its
// connection stays there. What a request comes to is decided in count.ts for both lanes.
import { Server, STATUS_CODES, type RequestListener, type ServerOptions } from 'node:http'
import { Socket } from 'node:net'
import type { ApiKeys } from '@gearbox/runtime/access/api-keys.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import type { Hosts } from '@gearbox/runtime/access/hosts.ts'
import { admit, refusal, type AdmitOptions, type CountRequest } from '../increment/admit.ts'
import type { RequestError } from '@gearbox/runtime/http/errors.ts'
import { notPending, type PendingReply, type Outcome } from '../deliver/pending-replies.ts'
import { RequestMatcher } from './request-matcher.ts'

export interface FastLaneOptions extends AdmitOptions {
  readonly limits: AdmitOptions['limits'] & Pick<Config, 'basePath' | 'bodyBytesMax' | 'corsOrigins' | 'keepAliveTimeoutMs' | 'requestTimeoutMs'>
  readonly hosts: Hosts
  readonly apiKeys: ApiKeys
  /** Counts a reply. */
  readonly replied: (statusCode: number) => void
  /** What a client is told of any error; logs those that are no RequestError. */
  readonly toRequestError: (error: unknown) => RequestError
}

/**
 * How often connections are looked at. One that is silent or in the middle of a request at two looks is for the other lane, which has
 * the timeouts for slow clients: they begin at most this much later, twice.
 */
const idleCheckMs = 500

/** Beyond so many replies due on one connection no more of it is read: a client that pipelines without end must wait for some. */
const dueMax = 64

/** A head that comes in more pieces than this is split oddly. Each piece is looked at from its start again. */
const headPiecesMax = 4

/** An HTTP server with a fast lane for the connections it accepts. */
export class FastLaneServer extends Server {
  readonly #lane: FastLane

  constructor (options: ServerOptions, listener: RequestListener, laneOptions: FastLaneOptions) {
    super(options, listener)
    const [slow] = this.listeners('connection')
    if (slow === undefined) throw new Error('an HTTP server without a listener for connections')
    this.#lane = new FastLane(this, (socket) => slow.call(this, socket), laneOptions)
    this.removeAllListeners('connection')
    // See readInto.
    Object.assign(this, { pauseOnConnect: true })
    this.on('connection', (socket: Socket) => this.#lane.enter(socket))
    this.once('close', () => this.#lane.close())
  }

  /** From here on requests are for the other lane, which refuses them. */
  stop (): void {
    this.#lane.stop()
  }

  override closeIdleConnections (): void {
    super.closeIdleConnections()
    this.#lane.closeIdle()
  }

  override closeAllConnections (): void {
    super.closeAllConnections()
    this.#lane.closeAll()
  }
}

/** About what a pending reply takes. */
const replyBytes = 256

/** A reply in its place among those that are due on its connection. */
class Reply implements PendingReply {
  readonly #connection: Connection
  pendingSince = notPending.pendingSince
  keys = notPending.keys
  once = notPending.once
  increments = notPending.increments
  readonly ownBytes = replyBytes
  /** '' until it is known. */
  text = ''
  /** Bytes that are counted as held since it is known, as others are due before it. */
  waitingBytes = 0

  constructor (connection: Connection) {
    this.#connection = connection
  }

  settle (outcome: Outcome): void {
    this.#connection.answer(this, outcome)
  }
}

/** A request as it is handed on: one for all, as nobody keeps it. */
interface ReusedRequest extends CountRequest {
  ack: unknown
  idempotencyKey: unknown
  authorization: string | undefined
  bytes: Buffer
  start: number
  end: number
}

/** What is the same in all replies of one second: the end of their heads, and the two whole ones that have no body. */
interface CachedHeaders {
  readonly headers: string
  readonly reached: string
  readonly accepted: string
}

class FastLane {
  readonly #server: Server
  readonly #handOver: (socket: Socket) => void
  readonly #connections = new Set<Connection>()
  readonly #checking: NodeJS.Timeout
  /** Connections whose next reply is known and not written. */
  #answered: Connection[] = []
  #cached: CachedHeaders | undefined
  readonly #vary: string
  readonly matcher: RequestMatcher
  readonly options: FastLaneOptions
  readonly request: ReusedRequest = { ack: undefined, form: undefined, idempotencyKey: undefined, authorization: undefined, bytes: readBuffer, start: 0, end: 0 }
  stopping = false

  constructor (server: Server, handOver: (socket: Socket) => void, options: FastLaneOptions) {
    this.#server = server
    this.#handOver = handOver
    this.options = options
    this.matcher = new RequestMatcher({
      basePath: options.limits.basePath,
      bodyBytesMax: options.limits.bodyBytesMax,
      isHostAllowed: (host) => options.hosts.allows(host),
      isCallerAllowed: options.apiKeys.any ? (authorization) => options.apiKeys.allows(authorization, 'count') : undefined,
    })
    this.#vary = options.limits.corsOrigins.length > 0 ? 'vary: Origin\r\n' : ''
    this.#checking = setInterval(() => { for (const connection of this.#connections) connection.checkIdle() }, idleCheckMs).unref()
  }

  enter (socket: Socket): void {
    this.#connections.add(new Connection(this, this.#server, socket))
  }

  stop (): void {
    this.stopping = true
  }

  close (): void {
    clearInterval(this.#checking)
  }

  closeIdle (): void {
    for (const connection of this.#connections) connection.closeIfIdle()
  }

  closeAll (): void {
    for (const connection of this.#connections) connection.socket.destroy()
  }

  forget (connection: Connection): void {
    this.#connections.delete(connection)
  }

  /** Gives a connection with all its unread bytes to Node's parser. */
  release (connection: Connection): void {
    const { socket } = connection
    this.forget(connection)
    connection.leaveSocket()
    this.#handOver(socket)
    socket.resume()
  }

  /** A connection that ended within a request: what the other lane says of it. */
  refuseTruncated (socket: Socket): void {
    this.#server.emit('clientError', Object.assign(new Error('the connection ended within a request'), { code: 'HPE_INVALID_EOF_STATE' }), socket)
  }

  /** Replies are written when all that are due now are known: in one pass, and with one write a connection. */
  answer (connection: Connection): void {
    this.#answered.push(connection)
    if (this.#answered.length === 1) queueMicrotask(this.#writeAnswers)
  }

  readonly #writeAnswers = (): void => {
    const answered = this.#answered
    this.#answered = []
    for (const connection of answered) connection.write()
  }

  /** A reply as the other lane would write it. */
  replyTo (outcome: Outcome | RequestError): string {
    const cached = this.#cached ??= this.#makeCached()
    if (typeof outcome === 'string') {
      this.options.replied(outcome === 'reached' ? 204 : 202)
      return outcome === 'reached' ? cached.reached : cached.accepted
    }
    const error = 'refused' in outcome ? refusal(outcome.refused) : outcome
    this.options.replied(error.statusCode)
    const body = Buffer.from(JSON.stringify(error))
    const retry = error.statusCode === 503 ? 'retry-after: 1\r\n' : ''
    return this.#head(error.statusCode, `${retry}content-type: application/json; charset=utf-8\r\ncontent-length: ${body.length}\r\n${cached.headers}`) + body.toString('latin1')
  }

  #head (statusCode: number, headers: string): string {
    return `HTTP/1.1 ${statusCode} ${STATUS_CODES[statusCode]}\r\n${this.#vary}${headers}`
  }

  #makeCached (): CachedHeaders {
    const now = new Date()
    const headers = `Date: ${now.toUTCString()}\r\nConnection: keep-alive\r\nKeep-Alive: timeout=${Math.floor(this.#server.keepAliveTimeout / 1000)}\r\n\r\n`
    setTimeout(() => { this.#cached = undefined }, 1000 - now.getMilliseconds()).unref()
    return { headers, reached: this.#head(204, headers), accepted: this.#head(202, `content-length: 0\r\n${headers}`) }
  }
}

/** What all connections are read into, one at a time: what is to be kept of it must be copied. */
const readBuffer = Buffer.allocUnsafeSlow(65_536)

/**
 * Reads a socket that was just accepted, and is still paused, into readBuffer. Node gives each read 64 KiB of its own and a way through
 * a Readable, which together cost a fifth of a request; only for a socket of its own making it takes a buffer instead, and makes one of
 * another's handle for those who know that option. Where a Node knows none of this, chunks come as everywhere.
 */
function readInto (accepted: Socket, server: Server, onRead: (bytes: Buffer, length: number) => void): Socket {
  const handle: unknown = Reflect.get(accepted, '_handle')
  if (typeof handle !== 'object' || handle === null || !('useUserBuffer' in handle) || Reflect.get(accepted, '_server') !== server) {
    return accepted.on('data', (chunk: Buffer) => onRead(chunk, chunk.length)).resume()
  }
  const callback = (length: number): boolean => {
    onRead(readBuffer, length)
    return true
  }
  Object.assign(accepted, { _handle: null, _server: null })
  const socket: Socket = Reflect.construct(Socket, [{ handle, allowHalfOpen: true, onread: { buffer: readBuffer, callback } }])
  return Object.assign(socket, { server, _server: server })
}

/** A connection in the fast lane. */
class Connection {
  readonly socket: Socket
  readonly #lane: FastLane
  /** Replies to requests that were taken in, in their order. */
  #due: Reply[] = []
  /** A request's beginning, of which `#partialBytes` are there and `#wholeBytes` will be; that is 0 while its head is not whole. */
  #partial: Buffer[] = []
  #partialBytes = 0
  #wholeBytes = 0
  #headPieces = 0
  /** Whether it will be written to when what is being read or settled now has been. */
  #answered = false
  #served = false
  /** What it sends from here on is for the other lane, once no reply is due. */
  #leaving = false
  /** The client will send nothing more. */
  #ended = false
  /** Nothing more is read from it, and it is closed when all that is due is written. */
  #givenUp = false
  /** Looks at it since it last finished a request or got a reply. */
  #idleChecks = 0

  constructor (lane: FastLane, server: Server, accepted: Socket) {
    this.#lane = lane
    this.socket = readInto(accepted, server, (bytes, length) => this.#onRead(bytes, length))
    this.socket.on('end', this.#onEnd).on('drain', this.#onDrain).on('error', onError).on('close', this.#onClose)
  }

  /** Sends away what is slow, and closes what is idle for KEEP_ALIVE_TIMEOUT_MS or does not read its replies. */
  checkIdle (): void {
    this.#idleChecks++
    const sinceMs = this.#idleChecks * idleCheckMs
    const { keepAliveTimeoutMs, ackTimeoutMs, requestTimeoutMs } = this.#lane.options.limits
    if (this.socket.writableNeedDrain) {
      if (sinceMs > ackTimeoutMs + requestTimeoutMs) this.socket.destroy()
    } else if (this.#leaving || this.#ended || this.#due.length > 0) {
      this.#idleChecks = 0
    } else if (this.#partialBytes > 0 || !this.#served) {
      if (this.#idleChecks > 1) this.#leave(this.#takePartial())
    } else if (sinceMs > keepAliveTimeoutMs) {
      this.socket.destroy()
    }
  }

  closeIfIdle (): void {
    if (this.#due.length === 0 && this.#partialBytes === 0 && this.socket.writableLength === 0) this.socket.destroy()
  }

  /** Writes what is known, up to the first reply that is not. */
  write (): void {
    this.#answered = false
    let known = 0
    let text = ''
    let waitingBytes = 0
    for (; known < this.#due.length && this.#due[known]!.text !== ''; known++) {
      text += this.#due[known]!.text
      waitingBytes += this.#due[known]!.waitingBytes
    }
    if (known === 0) return
    if (waitingBytes > 0) this.#lane.options.flusher.addReplyBytes(-waitingBytes)
    if (known === this.#due.length) this.#due.length = 0
    else this.#due.splice(0, known)
    const { socket } = this
    if (socket.destroyed) return
    this.#idleChecks = 0
    socket.write(text, 'latin1')
    if (this.#due.length > 0) return
    if (this.#givenUp) socket.destroySoon()
    else if (this.#leaving) this.#lane.release(this)
    else if (this.#ended) this.#end()
    else this.#readOn()
  }

  #onRead (bytes: Buffer, length: number): void {
    // What is answered at once is written below, not in a pass of its own.
    this.#answered = true
    this.#take(bytes, length)
    this.write()
  }

  #take (bytes: Buffer, length: number): void {
    if (this.#givenUp) return
    if (this.#leaving) this.socket.push(Buffer.copyBytesFrom(bytes, 0, length))
    else if (this.#partialBytes === 0) this.#read(bytes, length)
    else this.#readMore(Buffer.copyBytesFrom(bytes, 0, length))
  }

  #readMore (bytes: Buffer): void {
    this.#partial.push(bytes)
    this.#partialBytes += bytes.length
    if (this.#partialBytes < this.#wholeBytes) return
    const headWasWhole = this.#wholeBytes > 0
    const partial = this.#takePartial()
    this.#read(partial, partial.length, headWasWhole)
  }

  readonly #onEnd = (): void => {
    this.#ended = true
    if (this.#due.length === 0) this.#end()
  }

  readonly #onDrain = (): void => this.#readOn()

  readonly #onClose = (): void => this.#lane.forget(this)

  /** @param inHand whether the first request's head was there before: then a stop, too, waits for it */
  #read (bytes: Buffer, end: number, inHand = false): void {
    const lane = this.#lane
    const { matcher } = lane
    for (let at = 0; at < end; at = matcher.bodyEnd) {
      if (this.#due.length >= dueMax && this.#isOverLimit()) return this.#giveUp()
      const matched = lane.stopping && !(inHand && at === 0) ? 'other' : matcher.read(bytes, at, end)
      if (matched === 'partial' && this.#keep(Buffer.copyBytesFrom(bytes, at, end - at), Math.max(0, matcher.bodyEnd - at))) break
      if (matched !== 'whole') return this.#leave(Buffer.copyBytesFrom(bytes, at, end - at))
      this.#serve(bytes)
    }
    if (this.#due.length >= dueMax || this.socket.writableNeedDrain) this.socket.pause()
  }

  /** @returns false if it is split too oddly to be kept */
  #keep (bytes: Buffer, wholeBytes: number): boolean {
    if (this.#headPieces++ === 0) this.#idleChecks = 0
    if (wholeBytes === 0 && this.#headPieces > headPiecesMax) return false
    this.#partial = [bytes]
    this.#partialBytes = bytes.length
    this.#wholeBytes = wholeBytes
    return true
  }

  #takePartial (): Buffer {
    const [first, ...others] = this.#partial
    const bytes = first === undefined || others.length > 0 ? Buffer.concat(this.#partial) : first
    this.#partial = []
    this.#partialBytes = this.#wholeBytes = 0
    return bytes
  }

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
    const reply = new Reply(this)
    this.#due.push(reply)
    try {
      if (admit(options, request, reply) === 'accepted') this.answer(reply, 'accepted')
    } catch (error) {
      this.answer(reply, options.toRequestError(error))
    }
  }

  /** Takes in what became of a request. */
  answer (reply: Reply, outcome: Outcome | RequestError): void {
    reply.text = this.#lane.replyTo(outcome)
    // The usual replies are the same text for all. Refusals that wait for others' are not, and a client can cause many.
    if (typeof outcome !== 'string' && this.#due[0] !== reply) {
      reply.waitingBytes = reply.ownBytes + reply.text.length
      this.#lane.options.flusher.addReplyBytes(reply.waitingBytes)
    }
    if (this.#answered) return
    this.#answered = true
    this.#lane.answer(this)
  }

  #isOverLimit (): boolean {
    const { flusher, limits } = this.#lane.options
    return flusher.replyBytes > limits.pendingBytesMax
  }

  /** There is no room for more replies to a client that sends on without waiting for any: what it sent beyond is not read, and gets none. */
  #giveUp (): void {
    this.#givenUp = true
    this.socket.pause()
    if (this.#due.length === 0) this.socket.destroySoon()
  }

  /** Nothing from these bytes on is read here. */
  #leave (unread: Buffer): void {
    const { socket } = this
    this.#leaving = true
    socket.removeAllListeners('data')
    // Back in the socket at once: an end that comes behind them then waits for whoever reads them.
    socket.pause()
    if (unread.length > 0) socket.unshift(unread)
    if (this.#due.length === 0) this.#lane.release(this)
  }

  /** The client has sent all it ever will, and has all replies. */
  #end (): void {
    if (this.#partialBytes > 0) this.#lane.refuseTruncated(this.socket)
    else this.socket.end()
  }

  #readOn (): void {
    if (!this.#leaving && !this.#givenUp && this.socket.isPaused() && this.#due.length < dueMax && !this.socket.writableNeedDrain) this.socket.resume()
  }

  /** Takes its listeners off the socket, which goes on without it. */
  leaveSocket (): void {
    this.socket.off('end', this.#onEnd).off('drain', this.#onDrain).off('error', onError).off('close', this.#onClose)
  }
}

/** An error closes the socket by itself, and there is nobody left to tell. */
function onError (): void {}
