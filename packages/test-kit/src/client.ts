// The one HTTP client of all tests: Node's own, with every option, whose replies are whole or an error. Requests that
// come in pieces are in SlowRequest.
import { request as requestHttp, type Agent, type IncomingHttpHeaders } from 'node:http'
import { request as requestHttps, type RequestOptions } from 'node:https'
import { connect, type Socket } from 'node:net'

/** A whole reply. */
export interface Reply {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly text: string
}

/** Node's options, with the body. */
export interface SendOptions extends RequestOptions {
  readonly body?: string | Buffer | undefined
  /** Sends the body in chunks, without a Content-Length. */
  readonly chunked?: boolean
}

/** The Content-Type of a form. */
export const formType = 'application/x-www-form-urlencoded'

/** What says that a body is a form, and how long it is. */
export function formHeaders (body: string | Buffer): Record<string, string> {
  return { 'content-type': formType, 'content-length': String(Buffer.byteLength(body)) }
}

/**
 * One request over HTTP or HTTPS, by default a GET on its own connection. Rejects if there is no whole reply.
 * @param options `path` is sent as it is, in the place of the URL's
 */
export async function send (url: string, { body, chunked = false, ...options }: SendOptions = {}): Promise<Reply> {
  return await new Promise((resolve, reject) => {
    const request = url.startsWith('https:') ? requestHttps : requestHttp
    const outgoing = request(url, { agent: false, ...options }, (response) => {
      const chunks: Buffer[] = []
      response.on('data', (chunk: Buffer) => chunks.push(chunk))
      response.on('end', () => resolve({
        status: response.statusCode ?? 0,
        headers: response.headers,
        text: Buffer.concat(chunks).toString(),
      }))
      response.on('error', reject)
    })
    // A server that refuses a body early may close before all of it is sent; its reply has come by then.
    outgoing.on('error', reject)
    if (chunked) outgoing.setHeader('Transfer-Encoding', 'chunked')
    outgoing.end(body)
  })
}

/**
 * POST of a form, to /increment where the URL names no path of it.
 * @param agent whose connections it uses; false: its own
 */
export async function post (
  url: string, body: string | Buffer, headers: Readonly<Record<string, string>> = {}, agent: Agent | false = false
): Promise<Reply> {
  const path = url.includes('/increment') ? url : `${url}/increment`
  return await send(path, { agent, method: 'POST', headers: { ...formHeaders(body), ...headers }, body })
}

/** A request whose body comes in two parts, the second when the test says so. */
export class SlowRequest {
  readonly #socket: Socket
  readonly #rest: string
  /** The whole reply as it came, empty if the connection was closed without one. */
  readonly reply: Promise<string>

  private constructor (socket: Socket, rest: string) {
    this.#socket = socket
    this.#rest = rest
    let text = ''
    socket.on('data', (chunk) => { text += String(chunk) })
    socket.on('error', () => {})
    this.reply = new Promise((resolve) => socket.once('close', () => resolve(text)))
  }

  /** Resolves when a worker reads the request: it has asked for the body. */
  static async start (url: string, first: string, rest: string): Promise<SlowRequest> {
    const { hostname, port } = new URL(url)
    const socket = connect(Number(port), hostname)
    socket.write(`POST /increment HTTP/1.1\r\nHost: ${hostname}\r\nConnection: close\r\nExpect: 100-continue\r\n` +
      `Content-Type: application/x-www-form-urlencoded\r\nContent-Length: ${first.length + rest.length}\r\n\r\n`)
    const slow = new SlowRequest(socket, rest)
    await new Promise((resolve, reject) => {
      socket.once('data', resolve)
      socket.once('close', () => reject(new Error('the connection was closed')))
    })
    socket.write(first)
    return slow
  }

  finish (): void {
    this.#socket.write(this.#rest)
  }

  abort (): void {
    this.#socket.destroy()
  }
}
