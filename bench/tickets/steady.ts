// Tickets at a steady rate, whatever the answers do (open-loop): how long each takes, counted from when it was due, so
// that a server that stalls is not asked less meanwhile. A separate process: argv is port, headers as JSON, path,
// requests per second, seconds.
import { connect, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { printResult } from '../child.ts'
import { percentile } from '../statistics.ts'

/** What came of it. */
export interface Steady {
  readonly rate: number
  /** Requests per second that were really answered. */
  readonly answeredPerSecond: number
  /** Milliseconds from when a request was due to its last byte. */
  readonly p50: number
  readonly p99: number
  readonly most: number
  /** Distinct numbers that came back; each answer has one. */
  readonly numbers: number
}

const [port = '', headers = '', path = '', rate = '', seconds = ''] = process.argv.slice(2)
/** More than a server that keeps up ever has to answer at once. */
const sockets = 256
const settleMs = 30_000
const head = `POST ${path} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nContent-Length: 0\r\n${
  Object.entries(JSON.parse(headers) as Record<string, string>).map(([name, value]) => `${name}: ${value}\r\n`).join('')
}\r\n`

const numbers = new Set<number>()
const latencies: number[] = []
const idle: Client[] = []
/** When each was due that has not been sent yet. */
const waiting: number[] = []

class Client {
  readonly #socket: Socket
  #rest = ''
  #dueAt = 0

  private constructor (socket: Socket) {
    this.#socket = socket
    socket.setNoDelay(true)
    socket.on('data', (chunk) => { this.#read(String(chunk)) })
    socket.on('close', () => { throw new Error('the server closed a connection') })
  }

  static async connect (): Promise<Client> {
    const socket = connect(Number(port), '127.0.0.1')
    await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject))
    return new Client(socket)
  }

  ask (dueAt: number): void {
    this.#dueAt = dueAt
    this.#socket.write(head)
  }

  #read (text: string): void {
    this.#rest += text
    const end = this.#rest.indexOf('\r\n\r\n')
    if (end < 0) return
    const body = readBody(this.#rest.slice(0, end), this.#rest.slice(end + 4))
    if (body === undefined) return
    latencies.push(performance.now() - this.#dueAt)
    const status = this.#rest.slice(9, 12)
    if (status !== '200' && status !== '201') throw new Error(`not a number: ${this.#rest}`)
    this.#rest = ''
    const [, number] = /(?:"number":|ticket number 0*)(\d+)/.exec(body) ?? []
    if (number === undefined) throw new Error(`no number in ${body}`)
    if (numbers.has(Number(number))) throw new Error(`number ${number} came twice`)
    numbers.add(Number(number))
    const next = waiting.shift()
    if (next === undefined) idle.push(this)
    else this.ask(next)
  }
}

/** The body, once it is there; it has a length, or is chunked. */
function readBody (head: string, rest: string): string | undefined {
  const [, length] = /\r\ncontent-length: *(\d+)/i.exec(head) ?? []
  if (length === undefined) return rest.endsWith('0\r\n\r\n') ? rest : undefined
  return rest.length >= Number(length) ? rest : undefined
}

idle.push(...await Promise.all(Array.from({ length: sockets }, async () => await Client.connect())))
const count = Number(rate) * Number(seconds)
const startedAt = performance.now()
let sent = 0
while (sent < count || latencies.length < count) {
  const now = performance.now()
  if (now - startedAt > Number(seconds) * 1000 + settleMs) throw new Error(`${count - latencies.length} got no answer`)
  for (; sent < count; sent++) {
    const dueAt = startedAt + sent * 1000 / Number(rate)
    if (dueAt > now) break
    const client = idle.pop()
    if (client === undefined) waiting.push(dueAt)
    else client.ask(dueAt)
  }
  await delay(1)
}
const steady: Steady = {
  rate: Number(rate),
  answeredPerSecond: Math.round(count * 1000 / (performance.now() - startedAt)),
  p50: percentile(latencies, 0.5),
  p99: percentile(latencies, 0.99),
  most: Math.max(...latencies),
  numbers: numbers.size,
}
printResult(steady)
process.exit()
