// gearbox_keys: how many keys the database has. SQLite keeps no such number, so they are counted, in a separate
// thread and only when somebody scrapes.
import { Worker } from 'node:worker_threads'
import type { Logger } from '@gearbox/runtime/log/logger.ts'

/** From the start of one count to the next, at least. */
const intervalMs = 60_000

/**
 * How long the first scrape waits for the first count: enough for 100,000 keys, and less than the second of a parent.
 */
const firstCountMs = 300

/**
 * Counts at most once a minute, and only when `refresh` asks for it. States: idle; counting, from a `refresh` whose
 * last count is old until the thread ends; closed, after `close`, which ends a count in progress. Only these two
 * methods change it.
 */
export class KeyCounter {
  readonly #path: string
  readonly #logger: Logger
  #keys: number | undefined
  #thread: Worker | undefined
  #counting: Promise<void> | undefined
  #startedAt = -Infinity

  constructor (path: string, logger: Logger) {
    this.#path = path
    this.#logger = logger
  }

  /** The last count; undefined until there is one. */
  get keys (): number | undefined {
    return this.#keys
  }

  /**
   * For a scrape: begins a count where the last one is old. Resolves without waiting for it, except for the first one.
   */
  async refresh (): Promise<void> {
    if (this.#counting === undefined && performance.now() - this.#startedAt >= intervalMs) {
      this.#startedAt = performance.now()
      this.#counting = this.#count().finally(() => { this.#counting = undefined })
    }
    if (this.#keys === undefined && this.#counting !== undefined) await settledWithin(this.#counting, firstCountMs)
  }

  /** Ends a count in progress, so that the database can be closed. */
  async close (): Promise<void> {
    this.#startedAt = Infinity
    await this.#thread?.terminate()
    await this.#counting
  }

  async #count (): Promise<void> {
    const thread = new Worker(new URL('key-counter-thread.ts', import.meta.url), { workerData: this.#path })
    thread.unref()
    this.#thread = thread
    await new Promise<void>((resolve) => {
      thread.once('message', (keys: number) => { this.#keys = keys })
      thread.once('error', (error) => {
        // A locked or damaged database; an old number would hide it.
        this.#keys = undefined
        this.#logger.debug({ err: error }, 'the keys could not be counted')
      })
      thread.once('exit', () => resolve())
    })
    this.#thread = undefined
  }
}

async function settledWithin (promise: Promise<void>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  await Promise.race([promise, new Promise<void>((resolve) => { timer = setTimeout(resolve, ms) })])
  clearTimeout(timer)
}
