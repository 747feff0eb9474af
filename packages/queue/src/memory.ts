// A queue in this process's memory that a test can slow down, fail, move, and make forget.
import { readHeader } from '@gearbox/protocol/batch.ts'
import type { Origin } from './spool-file.ts'
import type { Progress } from '@gearbox/protocol/progress.ts'
import { ProducerQueue, QueueUnavailableError, type Polled } from './queue.ts'

/** What becomes of the next push: it fails before or after the elements were appended, or finds the queue moved. */
type Misfortune = 'fail' | 'fail after' | 'move'

export class MemoryQueue extends ProducerQueue {
  readonly pushIsStored = false
  readonly durable = true
  /** How often it was asked what it belongs to. */
  origins = 0
  /** The database that it belongs to. */
  database: string | undefined = 'of the tests'
  /** What the queue has. */
  list: Buffer[] = []
  /** Every push that was tried, with its time (performance.now). */
  readonly attempts: Array<{ readonly elements: readonly Buffer[], readonly incarnation: string, readonly at: number }> = []
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

  async push (elements: readonly Buffer[], incarnation: string): Promise<'pushed' | 'moved'> {
    this.attempts.push({ elements, incarnation, at: performance.now() })
    if (this.#holding !== undefined) await new Promise<void>((resolve) => this.#holding?.push(resolve))
    else await new Promise((resolve) => setImmediate(resolve))
    if (!this.#connected || this.#down) throw new QueueUnavailableError('cut')
    const misfortune = this.#misfortunes.shift()
    if (misfortune === 'fail') throw new QueueUnavailableError('failed')
    if (misfortune === 'move') this.forget()
    if (incarnation !== this.incarnation) return 'moved'
    this.list.push(...elements)
    if (misfortune === 'fail after') throw new QueueUnavailableError('failed after')
    return 'pushed'
  }

  async pollProgress (producer: string): Promise<Polled> {
    if (!this.#connected || this.#down) throw new QueueUnavailableError('cut')
    return { stored: this.#stored.get(producer), length: this.list.length }
  }

  async missing (producer: string, sequences: readonly number[]): Promise<ReadonlySet<number>> {
    if (!this.#connected || this.#down) throw new QueueUnavailableError('cut')
    const headers = this.list.map(readHeader)
    return new Set(sequences.filter((seq) => !headers.some((header) => typeof header !== 'string' && header.producer === producer && header.seq === seq)))
  }

  async check (): Promise<string | undefined> {
    if (!this.#connected || this.#down) throw new QueueUnavailableError('cut')
    return undefined
  }

  async length (): Promise<number> {
    return this.list.length
  }

  async close (): Promise<void> {}

  /** Loses everything it had, and is another one from now on. */
  forget (): void {
    this.list = []
    this.#stored.clear()
    this.#generation++
    this.emit('incarnation')
  }

  misfortunes (...list: readonly Misfortune[]): void {
    this.#misfortunes.push(...list)
  }

  get misfortunesLeft (): number {
    return this.#misfortunes.length
  }

  /** Pushes wait from now on, until `release`. */
  hold (): void {
    this.#holding ??= []
  }

  release (): void {
    const waiting = this.#holding ?? []
    this.#holding = undefined
    for (const resolve of waiting) resolve()
  }

  /** Answers nothing but failures, over a connection that stands. */
  break (): void {
    this.#down = true
  }

  mend (): void {
    this.#down = false
  }

  disconnect (): void {
    this.#connected = false
  }

  connect (): void {
    this.#connected = true
    this.emit('incarnation')
  }

  /** Word of what is stored. @param heard whether the event reaches anybody */
  reportProgress (producer: string, stored: Partial<Progress> & { high: number }, { heard = true } = {}): void {
    const whole = { gaps: [], rejected: [], omittedRejections: [], ...stored }
    this.#stored.set(producer, whole)
    if (heard) this.emit('progress', producer, whole)
  }
}
