// Where reading a connection ends on the standard path (Node and Fastify): which request is the last that is read, and
// how the reply to what can't be read is written. A client that gets a 400 for unreadable bytes, 408, 413, 417 or 431
// sends its request again. So nothing that arrives behind such a reply may be read as a request: it would count twice.
// Node by itself goes on parsing a connection whose writable side has ended. It also parses a chunk to its end, with
// what follows a request that is refused meanwhile.
//
// | when the input is refused                        | the client gets, before the connection is closed              |
// |--------------------------------------------------|---------------------------------------------------------------|
// | between requests, or within a head; nothing due  | the refusal, written to the socket                            |
// | the same, while replies are due                  | those replies only: a refusal would be taken for one of them  |
// | within a body that its handler still waits for   | the replies due before it, then the refusal as its reply      |
// | within a body whose request is answered already  | that reply only: a second one would answer nothing            |
// | by Fastify or by an Expect (413, 417)            | the replies due before it, then the refusal                   |
//
// In every row the parser is taken off the connection at once. What it has parsed of the same chunk by then is dropped.
import type { IncomingMessage, RequestListener, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { errorReply, errorText } from '@gearbox/runtime/http/error-reply.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'

/**
 * For how long input is thrown away behind the last reply. Closing a socket that has unread bytes resets the
 * connection, and a reset can overtake the reply. So the client gets time to read it and to close.
 */
const lingerMs = 2000

/**
 * At most so much is thrown away meanwhile: the longest body that any BODY_BYTES_MAX allows, sent whole before its
 * sender reads.
 */
const lingerBytesMax = 2 ** 26

/** One connection's input. */
interface Input {
  /** Requests that Node has parsed on it. */
  parsed: number
  /** The number of the last request that is read; Infinity while all are. */
  last: number
  /** The newest reply, sent or due. */
  reply: ServerResponse | undefined
  /** Whether the parser is off the connection. */
  stopped: boolean
}

/**
 * The input of each connection of one server, and the replies to what never becomes a request.
 *
 * A connection goes through these states, forward only; it may skip any of them.
 * - *reading*: every request is read (`last` is Infinity). The initial state.
 * - *ending*: the request with the number `last` is the last one that is read. Entered by a request that asks to close
 *   or to upgrade (`#admit`), and by `stopBehind`.
 * - *stopped*: the parser is off the connection, which is paused. Entered by input that can't be parsed (`refuse`), by
 *   an Expect or CONNECT (`listen`), by `stopBehind` where the body is incomplete, and by a request that arrives behind
 *   `last`.
 * - *lingering*: the last reply is written, the writable side has ended, and input is thrown away. Entered when Node or
 *   this class calls the socket's `destroySoon`; left when the client closes, or after lingerMs or lingerBytesMax.
 */
export class UnparsedReplies {
  readonly #inputs = new WeakMap<Socket, Input>()
  readonly #numbers = new WeakMap<IncomingMessage, number>()
  readonly #replied: (statusCode: number) => void

  /** @param replied counts the replies that are written here, without the server's request listener */
  constructor (replied: (statusCode: number) => void) {
    this.#replied = replied
  }

  /** A request listener that gets only what is read. */
  guard (listener: RequestListener): RequestListener {
    return (request, response) => {
      if (this.#admit(request, response)) listener(request, response)
    }
  }

  /**
   * Answers what Node would answer, or close, without its request listener.
   * @param check why a request is refused in any case
   */
  listen (server: Server, check: (request: IncomingMessage) => RequestError | undefined): void {
    // An Expect other than 100-continue, which Node meets by itself. Only the client knows whether a body follows.
    server.on('checkExpectation', (request: IncomingMessage, response: ServerResponse) => {
      if (!this.#admit(request, response)) return
      this.stopBehind(request)
      const refusal = check(request) ??
        new RequestError('GBX_EXPECTATION_FAILED', 'only "Expect: 100-continue" can be met')
      const { statusCode, headers, body } = errorReply(refusal)
      response.writeHead(statusCode, { connection: 'close', ...headers }).end(body)
      this.#replied(statusCode)
    })
    // There are no tunnels, and Node would close at once, replies due or not. It has removed its own listeners.
    server.on('connect', (_request: IncomingMessage, socket: Socket) => {
      socket.on('error', () => {})
      this.#stop(socket)
      this.#closeAfterReplies(socket)
    })
  }

  /**
   * Whether a request is read at all; false if what came before it on its connection was refused after Node had parsed
   * both.
   */
  isRead (request: IncomingMessage): boolean {
    const number = this.#numbers.get(request)
    return number === undefined || number <= (this.#inputs.get(request.socket)?.last ?? Infinity)
  }

  /** Ends the input with this request. Its reply must say `Connection: close`, which makes Node close behind it. */
  stopBehind (request: IncomingMessage): void {
    const number = this.#numbers.get(request)
    if (number === undefined) return
    const input = this.#inputOf(request.socket)
    input.last = Math.min(input.last, number)
    if (!request.complete) this.#stop(request.socket)
  }

  /**
   * For `clientError`: answers what Node's parser refuses, or has waited for too long. That never becomes a request.
   */
  refuse (error: NodeJS.ErrnoException, socket: Socket): void {
    const input = this.#inputOf(socket)
    if (error.code === 'ECONNRESET') socket.destroy()
    if (socket.destroyed || input.stopped) return
    this.#stop(socket)
    const { reply } = input
    const answered = reply === undefined || reply.req.complete || reply.writableEnded
    const due = reply?.writableFinished === false && (answered || reply.headersSent)
    if (due || !socket.writable) {
      this.#closeAfterReplies(socket)
    } else if (!answered) {
      refuseBody(reply, refusalOf(error))
    } else if (reply?.req.complete === false) {
      socket.destroySoon()
    } else {
      const refusal = refusalOf(error)
      socket.write(errorText(refusal, '', 'connection: close\r\n\r\n'), 'latin1')
      socket.destroySoon()
      this.#replied(refusal.statusCode)
    }
  }

  /** Numbers a request that Node has parsed. @returns false if its connection's input had ended before it */
  #admit (request: IncomingMessage, response: ServerResponse): boolean {
    const input = this.#inputOf(request.socket)
    const number = ++input.parsed
    this.#numbers.set(request, number)
    if (number > input.last) {
      this.#stop(request.socket)
      return false
    }
    input.reply = response
    // By HTTP nothing is read behind these. Node also drops what came together with an Upgrade and goes on behind it:
    // later replies would seem to answer what was dropped.
    if (!response.shouldKeepAlive || request.headers.upgrade !== undefined) input.last = number
    return true
  }

  /** Takes the parser off a connection. From here on Node's `destroySoon`, too, is `linger`. */
  #stop (socket: Socket): void {
    const input = this.#inputOf(socket)
    if (input.stopped) return
    input.stopped = true
    input.last = Math.min(input.last, input.parsed)
    socket.removeAllListeners('data')
    let bytes = 0
    // Another listener makes Node take the parser off the handle, from which it reads by itself.
    socket.on('data', (chunk: Buffer) => {
      bytes += chunk.length
      if (bytes > lingerBytesMax) socket.destroy()
    })
    // While replies are due, what arrives stays in the kernel.
    socket.pause()
    let lingering = false
    const destroySoon = (): void => {
      if (!lingering) linger(socket)
      lingering = true
    }
    Object.assign(socket, { destroySoon })
  }

  #closeAfterReplies (socket: Socket): void {
    const { reply } = this.#inputOf(socket)
    if (reply === undefined || reply.writableFinished) socket.destroySoon()
    else reply.once('finish', () => socket.destroySoon())
  }

  #inputOf (socket: Socket): Input {
    let input = this.#inputs.get(socket)
    if (input === undefined) {
      input = { parsed: 0, last: Infinity, reply: undefined, stopped: false }
      this.#inputs.set(socket, input)
    }
    return input
  }
}

function refusalOf ({ code }: NodeJS.ErrnoException): RequestError {
  if (code === 'HPE_HEADER_OVERFLOW') {
    return new RequestError('GBX_HEADERS_TOO_LARGE', 'the headers are larger than 16 KiB')
  }
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') {
    return new RequestError('GBX_REQUEST_TIMEOUT', 'the request did not arrive in time')
  }
  return new RequestError('GBX_BAD_REQUEST', 'this is not an HTTP/1.1 request')
}

/**
 * Gives a refusal to the reader of a request's body: the reply then comes in its turn, behind those that are due before
 * it. With API_KEYS the head may still be checked, and there is no reader yet.
 */
function refuseBody (reply: ServerResponse, refusal: RequestError): void {
  const { req } = reply
  reply.setHeader('connection', 'close')
  const refuse = (): void => { req.emit('error', refusal) }
  const refuseReader = (event: string | symbol): void => {
    if (event !== 'error') return
    req.off('newListener', refuseReader)
    process.nextTick(refuse)
  }
  if (req.listenerCount('error') > 0) refuse()
  else req.on('newListener', refuseReader)
}

/**
 * Closes a socket so that what was written arrives: ends it, and throws away what still comes until the client ends it
 * too.
 */
function linger (socket: Socket): void {
  socket.end()
  const timer = setTimeout(() => socket.destroy(), lingerMs).unref()
  socket.once('close', () => clearTimeout(timer))
  socket.resume()
  // While the parser read the handle, the stream's state said that it reads by itself, so it would not begin.
  socket._read(0)
}
