// Clients that draw numbered tickets while faults befall the product, and what must be true of the numbers in the end:
// the log is 1 to n without gap or repeat, every number that a client saw is in it and nobody else's, repeats got the
// same numbers, and whoever was answered before another one asked has the lower number.
import { Agent } from 'node:http'
import { setTimeout as delay } from 'node:timers/promises'
import type Database from 'better-sqlite3'
import { send, type Reply } from '@gearbox/test-kit/client.ts'
import { findOvertaken, type NumberRequest } from '@gearbox/test-kit/number-order.ts'
import type { Random } from '@gearbox/test-kit/random.ts'

const names = ['lifeboat', 'the other queue'] as const

/** Times a request with an Idempotency-Key is sent while there is load. */
const attemptsMax = 5

const reportedMax = 10

/** Of the requests with a key that were answered, one of so many is repeated at rest. */
const repeatedOf = 20

/**
 * issued: 201. pending: 202. none: refused, or nothing was sent. unknown: no answer, or the client did not wait for it.
 */
type Outcome = 'open' | 'issued' | 'pending' | 'none' | 'unknown'

interface Attempt {
  outcome: Outcome
  /** Of a pending one, where to ask. */
  location: string | undefined
  /** Its worker may have been killed while it was pending, or left before Redis lost its data. */
  killed: boolean
  orphan: boolean
  dataLost: boolean
}

/** What one client wants: numbers of one line, in one or several attempts. */
interface Operation {
  readonly id: number
  readonly name: string
  readonly count: number
  readonly idempotencyKey: string | undefined
  readonly attempts: Attempt[]
  /** performance.now ms, of the first attempt. */
  readonly sentAt: number
  /** What it was given first. */
  issue: NumberRequest | undefined
  receipt: string | undefined
}

/** All operations of all ticket clients of one run. */
export class TicketLedger {
  readonly operations: Operation[] = []
  readonly problems: string[]

  /** @param problems where it puts what is wrong */
  constructor (problems: string[] = []) {
    this.problems = problems
  }

  /** A worker was killed: what it had not stored may be lost. */
  workerKilled (): void {
    this.#mark((attempt) => { attempt.killed = attempt.orphan = true })
  }

  /** A worker has left in order. */
  workerLeft (): void {
    this.#mark((attempt) => { attempt.orphan = true })
  }

  /** Redis has lost its data. */
  dataLost (): void {
    this.#mark((attempt) => { attempt.dataLost = true })
  }

  /** How many requests there were, and what became of them. */
  get summary (): string {
    const { operations } = this
    const issued = operations.filter(({ issue }) => issue !== undefined)
    const repeated = operations.filter(({ attempts }) => attempts.length > 1)
    const pending = operations.filter(({ attempts }) => attempts.some(({ location }) => location !== undefined))
    return `${operations.length} asked for tickets (${issued.length} know theirs, ${repeated.length} asked again ` +
      `with a key, ${pending.length} had to wait)`
  }

  /** What is to be asked for at rest: what was pending or open, and some of what has a key. */
  get unsettled (): Operation[] {
    return this.operations.filter(({ id, idempotencyKey, issue, attempts }) => idempotencyKey === undefined
      ? issue === undefined && attempts.some(({ outcome }) => outcome === 'pending')
      : issue === undefined || id % repeatedOf === 0)
  }

  /** What an attempt was answered with. */
  answered (operation: Operation, attempt: Attempt, { status, text, headers }: Reply): void {
    const { location } = headers
    if (status === 202) {
      attempt.outcome = 'pending'
      attempt.location = location
    } else if (status === 201 || status === 200) {
      attempt.outcome = 'issued'
      this.#issued(operation, text)
    } else {
      attempt.outcome = 'none'
    }
    if (![201, 200, 202, 503].includes(status)) this.#problem(operation, `answered with ${status} ${text}`)
    if (status === 202 && location === undefined) this.#problem(operation, 'answered with 202 without a Location')
  }

  /** Holds the database against what the clients were told. To be called at rest. */
  judge (db: Database.Database): void {
    const { problems } = this
    for (const name of names) {
      const operations = this.operations.filter((operation) => operation.name === name)
      const runs = db.prepare<[string], { first: number, count: number }>(
        'SELECT first, count FROM tickets_runs WHERE name = ? ORDER BY first').all(name)
      let issued = 0
      for (const { first, count } of runs) {
        if (first !== issued + 1) problems.push(`${name}: a run begins at ${first}, after one that ends at ${issued}`)
        issued = first + count - 1
      }
      const line =
        db.prepare<[string], number>('SELECT issued FROM tickets_lines WHERE name = ?').pluck().get(name) ?? 0
      if (line !== issued) problems.push(`${name}: ${line} are said to be issued, and the log has ${issued}`)
      this.#judgeNumbers(name, operations, issued)
      for (const { request, by } of findOvertaken(operations.flatMap(({ issue }) => issue ?? []))) {
        problems.push(`${name}: ${JSON.stringify(by)} was answered before ${JSON.stringify(request)} was sent`)
      }
    }
  }

  #judgeNumbers (name: string, operations: readonly Operation[], issued: number): void {
    const { problems } = this
    const ownerOf = new Map<number, Operation>()
    let [sure, unsure] = [0, 0]
    for (const operation of operations) {
      const { issue, count, attempts } = operation
      if (issue !== undefined) {
        sure += count
        const last = issue.first + issue.count - 1
        if (last > issued) this.#problem(operation, `has number ${last}, and ${issued} were issued`)
        for (let number = issue.first; number <= last; number++) {
          const other = ownerOf.get(number)
          if (other !== undefined) this.#problem(operation, `has number ${number}, and so has operation ${other.id}`)
          ownerOf.set(number, operation)
        }
      }
      // Without a key every attempt may have been given numbers that nobody saw.
      const open = attempts.filter(({ outcome }) => outcome !== 'none' && outcome !== 'issued')
      if (operation.idempotencyKey === undefined) unsure += count * open.length
      else if (issue === undefined && open.length > 0) unsure += count
      const lost = attempts.find((attempt) => attempt.outcome === 'pending' && !isExcused(attempt))
      if (issue === undefined && lost !== undefined) this.#problem(operation, 'was answered with 202 and never issued')
    }
    if (issued < sure || issued > sure + unsure) {
      problems.push(`${name}: ${issued} are issued; clients know of ${sure}, and not of ${unsure} that may be`)
    }
  }

  /** Reads what was issued, and compares it with what was before. */
  #issued (operation: Operation, text: string): void {
    const found = parse(text)
    const { issue, count, name, sentAt, receipt } = operation
    if (found === undefined || found.name !== name || found.count !== count) {
      this.#problem(operation, `the reply is ${text.slice(0, 200)}`)
      return
    }
    operation.issue ??= { sent: sentAt, answered: performance.now(), first: found.first, count: found.count }
    operation.receipt ??= found.receipt
    if (issue === undefined) return
    if (issue.first !== found.first) this.#problem(operation, `had ${issue.first} first, and then ${found.first}`)
    if (found.receipt !== undefined && receipt !== undefined && found.receipt !== receipt) {
      this.#problem(operation, 'had another receipt first')
    }
  }

  #problem (operation: Operation, what: string): void {
    if (this.problems.length < reportedMax) this.problems.push(`${describe(operation)}: ${what}`)
  }

  #mark (mark: (attempt: Attempt) => void): void {
    for (const { issue, attempts } of this.operations) if (issue === undefined) attempts.forEach(mark)
  }
}

function isExcused ({ killed, orphan, dataLost }: Attempt): boolean {
  return killed || (orphan && dataLost)
}

function describe ({ id, name, count, idempotencyKey, attempts }: Operation): string {
  const outcomes = attempts.map(({ outcome, location }) => `${outcome}${location === undefined ? '' : ` ${location}`}`)
  return `ticket operation ${id} (${name}, ${count}${idempotencyKey === undefined ? '' : `, key ${idempotencyKey}`}; ` +
    `${outcomes.join(', ')})`
}

function parse (text: string): { name: string, first: number, count: number, receipt: string | undefined } | undefined {
  const value: unknown = JSON.parse(text)
  if (typeof value !== 'object' || value === null || !('name' in value)) return undefined
  const name = String(value.name)
  const receipt = 'receipt' in value && typeof value.receipt === 'string' ? value.receipt : undefined
  if ('number' in value && typeof value.number === 'number') {
    return { name, first: value.number, count: 1, receipt }
  }
  if (!('first' in value) || !('last' in value)) return undefined
  return { name, first: Number(value.first), count: Number(value.last) - Number(value.first) + 1, receipt }
}

/** What a ticket client works with. */
export interface TicketClientOptions {
  readonly name: string
  readonly random: Random
  readonly ledger: TicketLedger
  readonly url: string
  /** Every request must have ended by then. */
  readonly deadlineMs: number
}

/** Draws tickets one request at a time: single ones, runs, with and without a key; some it does not wait for. */
export class TicketClient {
  static #operations = 0
  readonly #options: TicketClientOptions
  #agent = newAgent()
  readonly #stop = new AbortController()
  #running: Promise<void> = Promise.resolve()

  constructor (options: TicketClientOptions) {
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

  /**
   * At rest: asks where it was told to for what was pending, and sends what has a key once more.
   * @param deadline performance.now ms
   */
  async settle (operation: Operation, deadline: number): Promise<void> {
    const isKeyed = operation.idempotencyKey !== undefined
    while (performance.now() < deadline) {
      const pending = operation.attempts.find(({ location }) => location !== undefined)
      const attempt = isKeyed ? await this.#send(operation) : pending
      if (attempt === undefined || attempt.outcome === 'issued') return
      if (!isKeyed && pending !== undefined) {
        const reply = await this.#exchange('GET', pending.location!, {}).catch(() => undefined)
        if (reply?.status === 404) return
        if (reply !== undefined && reply.status !== 202) this.#options.ledger.answered(operation, pending, reply)
        if (reply?.status === 200) return
      }
      await delay(50)
    }
  }

  async #run (): Promise<void> {
    const { random, name, ledger } = this.#options
    while (!this.#stop.signal.aborted) {
      if (random.chance(0.05)) this.#reconnect()
      const id = ++TicketClient.#operations
      const operation: Operation = {
        id,
        name: random.pick(names),
        count: random.chance(0.2) ? random.int(2, 5) : 1,
        idempotencyKey: random.chance(0.3) ? `${name}-${id}` : undefined,
        attempts: [],
        sentAt: performance.now(),
        issue: undefined,
        receipt: undefined,
      }
      const pauses = random.fork()
      const hangUpMs = random.chance(0.1) ? random.int(0, 30) : undefined
      ledger.operations.push(operation)
      let attempt = await this.#send(operation, hangUpMs)
      for (let attempts = 1; operation.idempotencyKey !== undefined && attempt.outcome !== 'issued' &&
        attempts < attemptsMax && !this.#stop.signal.aborted; attempts++) {
        await this.#pause(pauses.int(10, 300))
        this.#reconnect()
        attempt = await this.#send(operation)
      }
      await this.#pause(attempt.outcome === 'none' ? pauses.int(20, 100) : pauses.int(0, 20))
    }
  }

  async #send (operation: Operation, hangUpMs?: number): Promise<Attempt> {
    const { name, count, idempotencyKey, attempts } = operation
    const attempt: Attempt = {
      outcome: 'open', location: undefined, killed: false, orphan: false, dataLost: false,
    }
    attempts.push(attempt)
    const path = `/tickets/${encodeURIComponent(name)}${count === 1 ? '' : `?count=${count}`}`
    const headers = idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }
    try {
      const reply = await this.#exchange('POST', path, headers, hangUpMs)
      this.#options.ledger.answered(operation, attempt, reply)
    } catch (error) {
      const refused = error instanceof Error && 'code' in error && error.code === 'ECONNREFUSED'
      attempt.outcome = refused ? 'none' : 'unknown'
    }
    return attempt
  }

  async #exchange (
    method: string, path: string, headers: Record<string, string>, hangUpMs?: number
  ): Promise<Reply> {
    const { url, deadlineMs, ledger } = this.#options
    const signal = AbortSignal.timeout(hangUpMs ?? deadlineMs)
    try {
      return await send(`${url}${path}`, {
        agent: this.#agent, method, headers: { 'content-length': '0', ...headers }, signal,
      })
    } catch (error) {
      if (signal.aborted && hangUpMs === undefined) {
        ledger.problems.push(`no answer within ${deadlineMs} ms: ${method} ${path}`)
      }
      throw error
    }
  }

  #reconnect (): void {
    this.#agent.destroy()
    this.#agent = newAgent()
  }

  async #pause (ms: number): Promise<void> {
    await delay(ms, undefined, { signal: this.#stop.signal }).catch(() => {})
  }
}

function newAgent (): Agent {
  return new Agent({ keepAlive: true, maxSockets: 1 })
}
