// Lag from POST to visible in SQLite: a steady open-loop load at a rate, plus a request with its own key every 5
// ms, which another connection to the database looks for every millisecond. A separate process: argv is port,
// database, requests per second, seconds.
import { connect, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import Database from 'better-sqlite3'
import { printResult } from './child.ts'
import { percentile } from './statistics.ts'

export interface Lag {
  readonly rate: number
  /** Requests a second that were really answered. */
  readonly answeredPerSecond: number
  readonly probes: number
  /** Milliseconds from just before the request is written. */
  readonly p50: number
  readonly p99: number
  readonly most: number
  /** Between two looks, 99th percentile of the ms: nothing shorter can be told apart. */
  readonly resolution: number
}

const [port = '', databasePath = '', rate = '', seconds = ''] = process.argv.slice(2)
const sockets = 64
const probeMs = 5
const settleMs = 30_000

class Client {
  readonly #socket: Socket
  #rest = ''
  asked = 0
  answered = 0

  constructor (socket: Socket) {
    this.#socket = socket
    socket.setNoDelay(true)
    socket.on('data', (chunk) => {
      const answers = (this.#rest + chunk.toString('latin1')).split('\r\n\r\n')
      this.#rest = answers.pop() ?? ''
      this.answered += answers.length
      const other = answers.find((answer) => !answer.startsWith('HTTP/1.1 204'))
      if (other !== undefined) throw new Error(`not a 204: ${other}`)
    })
    socket.on('close', () => { throw new Error('the server closed a connection') })
  }

  static async connect (): Promise<Client> {
    const socket = connect(Number(port), '127.0.0.1')
    await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject))
    return new Client(socket)
  }

  post (body: string): void {
    this.asked++
    this.#socket.write(`POST /increment HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nContent-Type: ` +
      `application/x-www-form-urlencoded\r\nContent-Length: ${body.length}\r\n\r\n${body}`)
  }
}

const db = new Database(databasePath, { readonly: true })
const prefix = `lag-${process.pid}-`
const look = db.prepare<[string, string], string>('SELECT key FROM numbers WHERE key > ? AND key < ?').pluck()
const clients = await Promise.all(Array.from({ length: sockets }, async () => await Client.connect()))
const prober = await Client.connect()
const sentAt = new Map<string, number>()
const lags: number[] = []
const looks: number[] = []
/** All keys up to here were seen: one worker's increments are stored in the order in which it took them. */
let seen = prefix

const startedAt = performance.now()
let lookedAt = startedAt
let [sent, probes] = [0, 0]
while (performance.now() - startedAt < Number(seconds) * 1000 + settleMs) {
  const now = performance.now()
  const elapsed = now - startedAt
  if (elapsed < Number(seconds) * 1000) {
    for (const due = Math.floor(elapsed * Number(rate) / 1000); sent < due; sent++) {
      clients[sent % sockets]!.post('foo=1')
    }
    if (probes < Math.floor(elapsed / probeMs)) {
      probes = Math.floor(elapsed / probeMs)
      const key = `${prefix}${String(probes).padStart(8, '0')}`
      sentAt.set(key, performance.now())
      prober.post(`${key}=1`)
    }
  } else if (sentAt.size === 0 && [...clients, prober].every(({ asked, answered }) => asked === answered)) break
  const found = look.all(seen, `${prefix}~`)
  const visibleAt = performance.now()
  for (const key of found) {
    lags.push(visibleAt - sentAt.get(key)!)
    sentAt.delete(key)
    if (key > seen) seen = key
  }
  looks.push(visibleAt - lookedAt)
  lookedAt = visibleAt
  await delay(1)
}
if (sentAt.size > 0) throw new Error(`${sentAt.size} probes were never seen`)
const [asked, answered] = (['asked',
  'answered'] as const).map((count) => [...clients, prober].reduce((sum, client) => sum + client[count],
  0)) as [number, number]
if (asked !== answered) throw new Error(`${asked} requests were sent, ${answered} answered`)
const lag: Lag = {
  rate: Number(rate),
  answeredPerSecond: Math.round(answered / Number(seconds)),
  probes: lags.length,
  p50: percentile(lags, 0.5),
  p99: percentile(lags, 0.99),
  most: Math.max(...lags),
  resolution: percentile(looks, 0.99),
}
printResult(lag)
process.exit()
