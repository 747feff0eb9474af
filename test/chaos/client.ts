// A client: counts one request at a time at all ack levels, writes down what it is about to send, and what it was told.
import { Agent, request } from 'node:http'
import type { Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import {
  describe, edges, isRefusedWhole, pairsOf, type Attempt, type Ledger, type Level, type Operation, type Pair,
} from './ledger.ts'
import type { Random } from '@gearbox/test-kit/random.ts'

/** Times an idempotent request is sent while there is load; what is left open then is asked for again at rest. */
const attemptsMax = 5

/** A pause between requests keeps one machine from measuring its own load only. */
const pauseMsMax = 20

const sharedKeys = 4

/** Of all operations, how many also try to leave 64 bits. */
const edgeShare = 0.04

/** Sums of some of these tell fairly well which ones were summed. */
const sharedDeltas = [1n, -1n, 3n, -9n, 27n, -81n, 243n, 1009n] as const

/** Brings the edge keys' totals to where anything more would leave 64 bits. */
export async function goToTheEdges (url: string): Promise<void> {
  for (const { key, delta } of edges) {
    const headers = {
      'content-type': 'application/x-www-form-urlencoded',
      'idempotency-key': encodeURIComponent(key),
      connection: 'close',
    }
    for (let status = 202; status !== 204;) {
      status = (await fetch(`${url}/increment?ack=stored`,
        { method: 'POST', headers, body: `${encodeURIComponent(key)}=${delta}` })).status
      if (![202, 204, 503].includes(status)) throw new Error(`the first request was answered with ${status}`)
    }
  }
}

export interface ClientOptions {
  readonly name: string
  readonly random: Random
  readonly ledger: Ledger
  readonly url: string
  /** Every request must have ended by then. */
  readonly deadlineMs: number
  /** With the embedded queue `queued` is answered when it is stored. */
  readonly queuedIsStored: boolean
  /** Local ports of connections that are open. */
  readonly openPorts: Set<number>
}

export class Client {
  static #operations = 0
  readonly #options: ClientOptions
  #agent = new Agent({ keepAlive: true, maxSockets: 1 })
  readonly #known = new WeakSet<Socket>()
  readonly statuses = new Map<number, number>()
  readonly #stop = new AbortController()
  #running: Promise<void> = Promise.resolve()

  constructor (options: ClientOptions) {
    this.#options = options
  }

  start (): void {
    this.#running = this.#run()
  }

  async stop (): Promise<void> {
    this.#stop.abort()
    await this.#running
  }

  close (): void {
    this.#agent.destroy()
  }

  /** A request with an idempotency key, and a key that nobody else uses. */
  makeIdempotent (level: Level): Operation {
    return this.#make(level, true)
  }

  /**
   * Sends an idempotent request at level `stored` until it is told as stored.
   * @returns whether it was before `deadline` (performance.now ms)
   */
  async settle (operation: Operation, deadline: number): Promise<boolean> {
    while (performance.now() < deadline) {
      const attempt = await this.#send(operation, 'stored')
      if (attempt.outcome === 'counted') return true
      await delay(50)
    }
    return false
  }

  async #run (): Promise<void> {
    const { random } = this.#options
    while (!this.#stop.signal.aborted) {
      // Another connection may lead to another worker.
      if (random.chance(0.02)) this.#reconnect()
      const operation = this.#make(random.pick(['memory', 'queued', 'stored']), random.chance(0.3))
      const pauses = random.fork()
      let attempt = await this.#send(operation)
      if (operation.idempotencyKey !== undefined) {
        for (let attempts = 1; !isDefinite(attempt) && attempts < attemptsMax &&
          !this.#stop.signal.aborted; attempts++) {
          await this.#pause(pauses.int(10, 300))
          this.#reconnect()
          attempt = await this.#send(operation)
        }
        if (pauses.chance(0.1)) {
          this.#reconnect()
          await this.#send(operation)
        }
      }
      await this.#pause(attempt.outcome === 'notCounted' ? pauses.int(20, 100) : pauses.int(0, pauseMsMax))
    }
  }

  #make (level: Level, idempotent: boolean): Operation {
    const { random, name } = this.#options
    const id = ++Client.#operations
    const own: Pair[] = Array.from({ length: random.chance(0.7) ? 1 : random.int(2, 4) }, (_, i) => ({
      key: `${name}-${id}-${i}`,
      delta: random.chance(0.05)
        ? 0n
        : BigInt(random.int(1, 1_000_000)) * (random.chance(0.3) ? -1n : 1n),
    }))
    const shared = random.chance(0.3)
      ? { key: `shared ${random.int(1, sharedKeys)}`, delta: random.pick(sharedDeltas) }
      : undefined
    const { key, delta } = random.pick([edges[0]!, edges[1]!])
    const edge = random.chance(edgeShare) ? { key, delta: delta > 0n ? 1n : -1n } : undefined
    return { id, own, shared, edge, level, idempotencyKey: idempotent ? `${name}-${id}` : undefined, attempts: [] }
  }

  async #send (operation: Operation, level = operation.level): Promise<Attempt> {
    const { ledger, url, deadlineMs, queuedIsStored, openPorts } = this.#options
    const body = pairsOf(operation).map(({ key, delta }) => `${encodeURIComponent(key)}=${delta}`).join('&')
    const headers = {
      'content-type': 'application/x-www-form-urlencoded',
      'content-length': Buffer.byteLength(body),
      ...operation.idempotencyKey === undefined ? {} : { 'idempotency-key': operation.idempotencyKey },
    }
    const attempt = ledger.begin(operation)
    const outgoing = request(`${url}/increment?ack=${level}`, { agent: this.#agent, method: 'POST', headers })
    outgoing.on('socket', (socket) => {
      const connected = (): void => {
        attempt.port = socket.localPort
        if (socket.localPort === undefined || this.#known.has(socket)) return
        const port = socket.localPort
        this.#known.add(socket)
        openPorts.add(port)
        socket.once('close', () => openPorts.delete(port))
      }
      if (socket.connecting) socket.once('connect', connected)
      else connected()
    })
    let timer: NodeJS.Timeout | undefined
    try {
      const status = await new Promise<number>((resolve, reject) => {
        timer = setTimeout(() => {
          ledger.problems.push(`no answer within ${deadlineMs} ms: ${describe(operation)}`)
          outgoing.destroy(new Error('deadline'))
        }, deadlineMs)
        outgoing.on('error', reject)
        outgoing.on('response', (response) => {
          // A status is an answer, whatever becomes of the rest.
          response.on('error', () => {})
          response.resume()
          response.once('close', () => resolve(response.statusCode ?? 0))
        })
        outgoing.end(body)
      })
      this.statuses.set(status, (this.statuses.get(status) ?? 0) + 1)
      // Only where the reply comes after the commit can it tell of what the commit refused.
      const told = level === 'stored' || (level === 'queued' && queuedIsStored)
      const expected = told && operation.edge !== undefined ? [202, 422, 503] : [202, 204, 503]
      if (!expected.includes(status)) {
        ledger.problems.push(`answered with ${status} at level ${level}: ${describe(operation)}`)
      }
      // Of a refused one all other pairs have counted, unless it counts whole or not at all.
      const reached = status === 204 || (status === 422 && !isRefusedWhole(operation))
      const outcome = reached ? 'counted' : status === 202 ? 'memory' : 'notCounted'
      ledger.end(attempt, outcome, String(status), reached && told)
    } catch (error) {
      const code = error instanceof Error && 'code' in error ? String(error.code) : String(error)
      ledger.end(attempt, code === 'ECONNREFUSED' ? 'notCounted' : 'unknown', code, false)
    } finally {
      clearTimeout(timer)
    }
    return attempt
  }

  #reconnect (): void {
    this.#agent.destroy()
    this.#agent = new Agent({ keepAlive: true, maxSockets: 1 })
  }

  async #pause (ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#stop.signal }).catch(() => {})
  }
}

/** Whether there is nothing more to be told of it at the level that was asked for. */
function isDefinite ({ outcome, operation }: Attempt): boolean {
  return outcome === 'counted' || (outcome === 'memory' && operation.level === 'memory')
}
