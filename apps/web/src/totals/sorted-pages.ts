// Pages by total. Each scans the table, so a thread makes them, one after the other, and this waits for its replies.
import { Worker } from 'node:worker_threads'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import type { Page, Total } from './reader.ts'

/**
 * Pages that wait for the thread at once. Each may take a second over ten million keys, and a connection without any
 * progress is closed after ACK_TIMEOUT_MS + REQUEST_TIMEOUT_MS, by default 15 s: all of them are answered before that.
 */
const waitingMax = 12

interface Waiting {
  readonly resolve: (totals: Total[] | undefined) => void
}

/** The thread, which is started with the first page and again if it ended. It does not keep the process alive. */
export class SortedPages {
  readonly #path: string
  #thread: Worker | undefined
  readonly #waiting = new Map<number, Waiting>()
  #id = 0

  /** @param path of the database */
  constructor (path: string) {
    this.#path = path
  }

  /**
   * @returns the page's totals; undefined if there is no readable database @throws RequestError if too many pages wait
   */
  async list (page: Page): Promise<Total[] | undefined> {
    if (this.#waiting.size >= waitingMax) {
      throw new RequestError('GBX_OVERLOADED', 'too many pages ordered by total are being made; try again')
    }
    const thread = this.#thread ??= this.#start()
    const id = ++this.#id
    return await new Promise((resolve) => {
      this.#waiting.set(id, { resolve })
      thread.postMessage({ id, page })
    })
  }

  close (): void {
    this.#thread?.terminate().catch(() => {})
  }

  #start (): Worker {
    const thread = new Worker(new URL('thread.ts', import.meta.url), { workerData: this.#path })
    const fail = (): void => {
      this.#thread = undefined
      for (const { resolve } of this.#waiting.values()) resolve(undefined)
      this.#waiting.clear()
    }
    thread.on('message', ({ id, totals }: { id: number, totals: Total[] | undefined }) => {
      this.#waiting.get(id)?.resolve(totals)
      this.#waiting.delete(id)
    })
    thread.on('error', fail)
    thread.on('exit', fail)
    thread.unref()
    return thread
  }
}
