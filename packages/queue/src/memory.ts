// The one test double of the queue: in this process's memory, for whoever tests what pushes to a queue.
import { readHeader } from '@gearbox/protocol/batch.ts'
import type { Origin } from './spool-file.ts'
import type { Progress, ResultRequest } from '@gearbox/protocol/progress.ts'
import { ProducerQueue, QueueUnavailableError, type Polled } from './queue.ts'

/** What happens to a push: it fails before or after the elements were appended, or finds the queue moved. */
type Misfortune = 'fail' | 'fail after' | 'move'

/** A push that was tried, at `at` (performance.now, ms). */
interface Attempt {
  readonly elements: readonly Buffer[]
  readonly incarnation: string
  readonly hurry: boolean
  readonly at: number
}

/**
 * A producer's queue that a test can slow down, fail, move, and make forget.
 *
 * Connected (at first) or not: `disconnect` and `connect` switch. Working (at first) or broken, where every call fails:
 * `break` and `repair` switch. Holding, where pushes wait, from `hold` to `release`. All three are independent.
 * `forget` makes it another incarnation, with an empty list.
 */
export class MemoryQueue extends ProducerQueue {
  readonly pushIsStored = false
  readonly durable = true
  /** How often `readOrigin` was called. */
  origins = 0
  /** Called when it has taken elements, before their push resolves. */
  onPush = (): void => {}
  /** The database that it belongs to. */
  database: string | undefined = 'of the tests'
  /** What the queue has. */
  list: Buffer[] = []
  /** Every push that was tried, in order. */
  readonly attempts: Attempt[] = []
  /** Every request about outcomes that was sent, in order. */
  readonly requests: ResultRequest[] = []
  readonly #stored = new Map<string, Progress>()
  readonly #misfortunes: Misfortune[] = []
  #generation = 1
  #connected = true
  #holding: Array<() => void> | undefined
  #down = false

  get incarnation (): string | undefined {
    return this.#connected ? String(this.#generation) : undefined
  }

  get unreachable (): string | undefined {
    return this.#connected ? undefined : 'cut'
  }

  get origin (): Origin {
    return { queue: 'in memory', generation: String(this.#generation), database: this.database }
  }

  async readOrigin (): Promise<Origin> {
    this.origins++
    if (!this.#connected || this.#down) throw new QueueUnavailableError('cut')
    return this.origin
  }

  async start (): Promise<void> {}

  async push (elements: readonly Buffer[], incarnation: string, hurry = false): Promise<'pushed' | 'moved'> {
    this.attempts.push({ elements, incarnation, hurry, at: performance.now() })
    if (this.#holding !== undefined) await new Promise<void>((resolve) => this.#holding?.push(resolve))
    else await new Promise((resolve) => setImmediate(resolve))
    if (!this.#connected || this.#down) throw new QueueUnavailableError('cut')
    const misfortune = this.#misfortunes.shift()
    if (misfortune === 'fail') throw new QueueUnavailableError('failed')
    if (misfortune === 'move') this.forget()
    if (incarnation !== this.incarnation) return 'moved'
    this.list.push(...elements)
    this.onPush()
    if (misfortune === 'fail after') throw new QueueUnavailableError('failed after')
    return 'pushed'
  }

  async pollProgress (producer: string): Promise<Polled> {
    if (!this.#connected || this.#down) throw new QueueUnavailableError('cut')
    return { stored: this.#stored.get(producer), length: this.list.length }
  }

  async requestResults (request: ResultRequest): Promise<void> {
    if (!this.#connected || this.#down) throw new QueueUnavailableError('cut')
    this.requests.push(request)
  }

  async missing (producer: string, sequences: readonly number[]): Promise<ReadonlySet<number>> {
    if (!this.#connected || this.#down) throw new QueueUnavailableError('cut')
    const headers = this.list.map(readHeader)
    const waiting = new Set(headers.map((header) =>
      typeof header === 'string' || header.producer !== producer ? undefined : header.seq))
    return new Set(sequences.filter((seq) => !waiting.has(seq)))
  }

  async check (): Promise<string | undefined> {
    if (!this.#connected || this.#down) throw new QueueUnavailableError('cut')
    return undefined
  }

  async length (): Promise<number> {
    return this.list.length
  }

  async close (): Promise<void> {}

  /** Loses everything, and is another incarnation from now on. */
  forget (): void {
    this.list = []
    this.#stored.clear()
    this.#generation++
    this.emit('incarnation')
  }

  /** Sets what happens to the next pushes, one each. */
  misfortunes (...list: readonly Misfortune[]): void {
    this.#misfortunes.push(...list)
  }

  /** How many misfortunes have not happened yet. */
  get misfortunesLeft (): number {
    return this.#misfortunes.length
  }

  /** From now on pushes wait until `release`. */
  hold (): void {
    this.#holding ??= []
  }

  /** Ends `hold`: what waits goes on. */
  release (): void {
    const waiting = this.#holding ?? []
    this.#holding = undefined
    for (const resolve of waiting) resolve()
  }

  /** From now on every call fails, although the connection is there. */
  break (): void {
    this.#down = true
  }

  /** Ends `break`. */
  repair (): void {
    this.#down = false
  }

  /** Loses the connection. */
  disconnect (): void {
    this.#connected = false
  }

  /** Has a connection again, to the same incarnation. */
  connect (): void {
    this.#connected = true
    this.emit('incarnation')
  }

  /** Reports what is stored. @param received whether the event reaches anybody; polling does in any case */
  reportProgress (producer: string, stored: Partial<Progress> & { high: number }, { received = true } = {}): void {
    const { results, ...whole } = { gaps: [], rejected: [], omittedRejections: [], ...stored }
    this.#stored.set(producer, whole)
    if (received) this.emit('progress', producer, results === undefined ? whole : { ...whole, results })
  }
}
