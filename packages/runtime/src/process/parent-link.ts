// A child process's link to the `npm start` that runs it: ready, stop, metrics. A process that runs alone has none.

/** A message from the parent. */
export type ToChild =
  | { readonly type: 'stop', readonly atOnce: boolean }
  | { readonly type: 'consumerExited', readonly reason: string }
  | { readonly type: 'collect', readonly id: number, readonly scraping: boolean }
  | { readonly type: 'scraped', readonly id: number, readonly text: string }

/** A message to the parent. */
export type ToParent =
  | { readonly type: 'ready', readonly restartArgs: readonly string[] }
  | { readonly type: 'collected', readonly id: number, readonly metrics: object[] }
  | { readonly type: 'scrape', readonly id: number }

/**
 * The child's end of the channel to its parent.
 *
 * Connected (at first): messages go both ways. Orphaned: the parent is gone, which happens once; from then on nothing
 * is sent, and scrapes in progress and later ones return an empty text.
 */
export class ParentLink {
  #collect: ((scraping: boolean) => Promise<object[]>) | undefined
  #scrapes = new Map<number, (text: string) => void>()
  #scrapeId = 0
  #onStop: ((atOnce: boolean) => void) | undefined
  #onOrphaned: (() => void) | undefined
  #consumerExited: string | undefined

  /** The link of this process; undefined if nobody forked it. Made once. */
  static ofThisProcess (): ParentLink | undefined {
    return process.connected ? new ParentLink() : undefined
  }

  private constructor () {
    process.on('message', (message: ToChild) => this.#received(message))
    process.on('disconnect', () => {
      this.#onOrphaned?.()
      for (const resolve of this.#scrapes.values()) resolve('')
    })
  }

  /** Whether the parent is gone. */
  get orphaned (): boolean {
    return !process.connected
  }

  /** Sets what to do when the parent asks for a stop (`atOnce`: without DRAIN_MS), and when it is gone. */
  onStop (stop: (atOnce: boolean) => void, orphaned: () => void): void {
    this.#onStop = stop
    this.#onOrphaned = orphaned
  }

  /** Sets where this process's metrics come from. The parent also collects them for the log, not `scraping` then. */
  onCollect (collect: (scraping: boolean) => Promise<object[]>): void {
    this.#collect = collect
  }

  /** Why the consumer exited and will not be started again; undefined while there is one, or will be. */
  get consumerExited (): string | undefined {
    return this.#consumerExited
  }

  /** Reports that this process works. @param restartArgs arguments for its successor, should it die */
  ready (restartArgs: readonly string[] = []): void {
    this.#send({ type: 'ready', restartArgs })
  }

  /** The metrics of the parent and all of its children as Prometheus text; empty if the parent is gone or dies. */
  scrape (): Promise<string> {
    if (!process.connected) return Promise.resolve('')
    const id = ++this.#scrapeId
    return new Promise((resolve) => {
      this.#scrapes.set(id, (text) => {
        this.#scrapes.delete(id)
        resolve(text)
      })
      this.#send({ type: 'scrape', id })
    })
  }

  #received (message: ToChild): void {
    if (message.type === 'stop') this.#onStop?.(message.atOnce)
    else if (message.type === 'consumerExited') this.#consumerExited = message.reason
    else if (message.type === 'scraped') this.#scrapes.get(message.id)?.(message.text)
    else {
      const send = (metrics: object[]): void => this.#send({ type: 'collected', id: message.id, metrics })
      this.#collect?.(message.scraping).then(send, () => {})
    }
  }

  #send (message: ToParent): void {
    // A parent that has just died closes the channel under the message; 'disconnect' follows.
    if (process.connected) process.send?.(message, undefined, undefined, () => {})
  }
}
