// What the hostility tests and the measuring program share: connections that dawdle, and replies read byte for byte.
import { connect, type Socket } from 'node:net'

/** Where a worker listens. */
export interface Address {
  readonly host: string
  readonly port: number
}

export function addressOf (url: string): Address {
  const { hostname, port } = new URL(url)
  return { host: hostname, port: Number(port) }
}

export interface PlainReply {
  /** Such as `HTTP/1.1 204 No Content`. */
  readonly statusLine: string
  readonly body: string
}

/**
 * Every whole reply in what was received on one connection, in order, `100 Continue` included.
 * @throws Error if something else stands between them
 */
export function readReplies (received: string): PlainReply[] {
  const replies: PlainReply[] = []
  for (let rest = received; rest !== '';) {
    const [head, statusLine,
      fields] = /^(HTTP\/1\.1 \d{3} [^\r]*)\r\n(.*?)\r\n\r\n/s.exec(rest.replace(/^([^\r]*\r\n)\r\n/, '$1\r\n\r\n')) ??
        []
    if (head === undefined || statusLine === undefined || fields === undefined) {
      if (/^(HTTP\/|[HTP/1.]{0,5}$)/.test(rest)) break
      throw new Error(`no reply begins with ${JSON.stringify(rest.slice(0, 64))}`)
    }
    const bare = fields === ''
    rest = rest.slice(bare ? statusLine.length + 4 : head.length)
    const length = Number(/^content-length: *(\d+)$/im.exec(fields)?.[1] ?? 0)
    let body = rest.slice(0, length)
    let end = length
    if (/^transfer-encoding: *chunked$/im.test(fields)) {
      body = ''
      end = 0
      for (;;) {
        const size = /^([0-9a-f]+)\r\n/i.exec(rest.slice(end))
        if (size === null) return replies
        const bytes = parseInt(size[1]!, 16)
        body += rest.slice(end + size[0].length, end + size[0].length + bytes)
        end += size[0].length + bytes + 2
        if (bytes === 0) break
      }
    }
    if (rest.length < end) break
    replies.push({ statusLine, body })
    rest = rest.slice(end)
  }
  return replies
}

const head = 'POST /increment?ack=memory HTTP/1.1\r\nHost: slow\r\nContent-Type: application/x-www-form-urlencoded\r\n'

/** How a slow client dawdles: it sends nothing, half a header, a header a byte a second, or a body a byte a second. */
export const dawdles = ['nothing', 'half a header', 'a header a byte a second', 'a body a byte a second'] as const

/** So many at once are opened, as a listener's backlog is short. */
const openingAtOnce = 100

const byteIntervalMs = 1000

/** Clients that open a connection, dawdle on it, and, if asked to, open another one whenever it is closed. */
export class SlowClients {
  readonly #address: Address
  readonly #again: boolean
  readonly #sockets = new Map<Socket, { readonly openedAt: number, rest: string }>()
  readonly #timer: NodeJS.Timeout
  #ended = false
  /** Connections that the other side has closed, and how long the longest of them was open, in ms. */
  closed = 0
  openMsMost = 0
  /** First lines of what was received, counted. */
  readonly received = new Map<string, number>()

  private constructor (address: Address, again: boolean) {
    this.#address = address
    this.#again = again
    this.#timer = setInterval(() => this.#sendBytes(), byteIntervalMs)
  }

  /** Resolves when all are connected. */
  static async open (address: Address, count: number, again = false): Promise<SlowClients> {
    const clients = new SlowClients(address, again)
    for (let first = 0; first < count; first += openingAtOnce) {
      await Promise.all(Array.from({ length: Math.min(openingAtOnce, count - first) },
        async (_, i) => { await clients.#openOne(first + i) }))
    }
    return clients
  }

  get open (): number {
    return this.#sockets.size
  }

  end (): void {
    this.#ended = true
    clearInterval(this.#timer)
    for (const socket of this.#sockets.keys()) socket.destroy()
  }

  async #openOne (index: number): Promise<void> {
    const dawdle = dawdles[index % dawdles.length]!
    const socket = connect({ ...this.#address })
    await new Promise<void>((resolve) => {
      socket.once('connect', () => {
        this.#sockets.set(socket,
          { openedAt: performance.now(), rest: dawdle.includes('byte') ? `slow${index}=1` : '' })
        if (dawdle === 'half a header') socket.write(head)
        else if (dawdle === 'a header a byte a second') socket.write(`${head}X-Slow: `)
        else if (dawdle === 'a body a byte a second') socket.write(`${head}Content-Length: 1000\r\n\r\n`)
        resolve()
      })
      socket.on('data', (chunk) => this.#count(String(chunk).split('\r\n', 1)[0]!))
      socket.on('error', () => {})
      socket.once('close', () => {
        resolve()
        const slow = this.#sockets.get(socket)
        this.#sockets.delete(socket)
        if (this.#ended) return
        this.closed++
        if (slow !== undefined) this.openMsMost = Math.max(this.openMsMost, performance.now() - slow.openedAt)
        if (this.#again) setTimeout(() => { if (!this.#ended) this.#openOne(index).catch(() => {}) }, 100).unref()
      })
    })
  }

  #count (line: string): void {
    this.received.set(line, (this.received.get(line) ?? 0) + 1)
  }

  #sendBytes (): void {
    for (const [socket, slow] of this.#sockets) {
      const [next] = slow.rest
      if (next === undefined || !socket.writable) continue
      slow.rest = slow.rest.slice(1) + next
      socket.write(next)
    }
  }
}
