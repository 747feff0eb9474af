// Where reading a connection ends on the standard path (Node and Fastify): which request is the last that is read, and how the reply
// to what can't be read is written. Whoever gets a 400 for unreadable bytes, 408, 413, 417 or 431 sends again, so nothing that
// arrives behind such a reply may ever be read as a request: it would count twice. Node itself goes on parsing a connection whose
// writable side has ended, and parses all of a chunk in one go, also what follows a request that is refused meanwhile.
//
// | when the input is refused                        | the client gets, before the connection is closed              |
// |--------------------------------------------------|---------------------------------------------------------------|
// | between requests, or within a head; nothing due  | the refusal, written by hand                                  |
// | the same, while replies are due                  | those replies only: a refusal would be taken for one of them  |
// | within a body that its handler still waits for   | the replies due before it, then the refusal as its reply      |
// | within a body whose request is answered already  | that reply only: a second one would answer nothing            |
// | by Fastify or by an Expect (413, 417)            | the replies due before it, then the refusal                   |
//
// In every row the parser is taken off the connection at once. What was parsed of the same chunk by then is given to nobody.
import {
  STATUS_CODES, type IncomingMessage, type RequestListener, type Server, type ServerResponse,
} from 'node:http'
import type { Socket } from 'node:net'
import { RequestError } from './errors.ts'

/**
 * How long what still arrives behind the last reply is thrown away. Closing a socket that has unread bytes resets the connection, and
 * a reset can overtake the reply: so the client gets time to read it and to close.
 */
const lingerMs = 2000

/** Of that, at most so much: the longest body that any BODY_BYTES_MAX allows, sent whole before its sender reads. */
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

/** Decides what is read of each connection of one server, and refuses what can't be. */
export class Refusals {
  readonly #inputs = new WeakMap<Socket, Input>()
  readonly #numbers = new WeakMap<IncomingMessage, number>()
  readonly #replied: (statusCode: number) => void

  /** @param replied counts the replies that are written here, past the server's request listener */
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
   * Takes over what Node would answer, or close, outside of its request listener.
   * @param check why a request is refused in any case
   */
  listen (server: Server, check: (request: IncomingMessage) => RequestError | undefined): void {
    // An Expect other than 100-continue, which Node meets by itself. Whether a body follows is known to the client alone.
    server.on('checkExpectation', (request: IncomingMessage, response: ServerResponse) => {
      if (!this.#admit(request, response)) return
      this.stopBehind(request)
      const refusal = check(request) ?? new RequestError('GBX_EXPECTATION_FAILED', 'only "Expect: 100-continue" can be met')
      const headers = { connection: 'close', 'content-type': 'application/json; charset=utf-8' }
      response.writeHead(refusal.statusCode, headers).end(JSON.stringify(refusal))
      this.#replied(refusal.statusCode)
    })
    // Nobody offers a tunnel, and Node would close at once, replies due or not. It has taken its own listeners off.
    server.on('connect', (_request: IncomingMessage, socket: Socket) => {
      socket.on('error', () => {})
      this.#stop(socket)
      this.#closeAfterReplies(socket)
    })
  }

  /** Whether a request is read at all; false if what came before it on its connection was refused after Node had parsed both. */
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

  /** Answers what Node's parser refuses or has waited for too long, which never becomes a request. For `clientError`. */
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
      const body = JSON.stringify(refusal)
      socket.write(`HTTP/1.1 ${refusal.statusCode} ${STATUS_CODES[refusal.statusCode]}\r\n` +
        `Content-Type: application/json; charset=utf-8\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`)
      socket.destroySoon()
      this.#replied(refusal.statusCode)
    }
  }

  /** Takes in a request that Node has parsed. @returns false if its connection's input had ended before it */
  #admit (request: IncomingMessage, response: ServerResponse): boolean {
    const input = this.#inputOf(request.socket)
    const number = ++input.parsed
    this.#numbers.set(request, number)
    if (number > input.last) {
      this.#stop(request.socket)
      return false
    }
    input.reply = response
    // HTTP wants nothing read behind these. Node also drops what came together with an Upgrade and goes on behind it: later replies
    // would seem to answer what was dropped.
    if (!response.shouldKeepAlive || request.headers.upgrade !== undefined) input.last = number
    return true
  }

  /** Takes the parser off a connection. From here on Node, too, closes it by way of `linger`. */
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
    // Until no reply is due any more, what arrives stays in the kernel.
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
  if (code === 'HPE_HEADER_OVERFLOW') return new RequestError('GBX_HEADERS_TOO_LARGE', 'the headers are larger than 16 KiB')
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') return new RequestError('GBX_REQUEST_TIMEOUT', 'the request did not arrive in time')
  return new RequestError('GBX_BAD_REQUEST', 'this is not an HTTP/1.1 request')
}

/**
 * Gives a refusal to whoever reads a request's body: its reply then comes in its turn, behind those that are due before it.
 * With API_KEYS the head may still be looked at, and nobody reads yet.
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

/** Closes a socket so that what was written arrives: ends it, and throws away what still comes until the client ends it too. */
function linger (socket: Socket): void {
  socket.end()
  const timer = setTimeout(() => socket.destroy(), lingerMs).unref()
  socket.once('close', () => clearTimeout(timer))
  socket.resume()
  // While the parser read the handle, the stream was left believing that it does so itself, and would not begin.
  socket._read(0)
}
