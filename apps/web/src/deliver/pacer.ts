// When a flush may leave: the pacing of the first gear. The flusher waits on it, and wakes it up whenever there is
// something to flush.

/**
 * Waits between two flushes. One loop calls `untilDue`, again and again; everything else may be called at any time.
 *
 * - resting: entered by `untilDue` while the last flush is less than the fixed interval ago, so never with `auto`. Left
 *   when the interval is over, and by `skipInterval` or `finish`.
 * - idle: nothing is due. Left by `wakeUp` or `finish`.
 * - due: `wakeUp` was called since the last flush. Left when `untilDue` returns.
 *
 * After `finish` it neither rests nor idles.
 */
export class Pacer {
  readonly #intervalMs: number | 'auto'
  #flushedAt = -Infinity
  #wake: (() => void) | undefined
  #due = false
  #skipping = false
  #finishing = false

  /** @param intervalMs between two flushes; `auto`: a flush leaves as soon as there is something to flush */
  constructor (intervalMs: number | 'auto') {
    this.#intervalMs = intervalMs
  }

  /** Whether something came since the last flush, so that the next may leave at once. */
  get isDue (): boolean {
    return this.#due && this.#intervalMs === 'auto'
  }

  /** Whether `finish` was called. */
  get finishing (): boolean {
    return this.#finishing
  }

  /** There is something to flush. */
  wakeUp (): void {
    this.#due = true
    this.#wake?.()
  }

  /** From here on no flush waits for its interval. */
  skipInterval (): void {
    this.#skipping = true
    this.#wake?.()
  }

  /** From here on nothing waits. */
  finish (): void {
    this.#finishing = true
    this.wakeUp()
  }

  /**
   * Resolves when a flush may leave and there is something to flush.
   * @param afterPush whether a push has just been waited for
   */
  async untilDue (afterPush: boolean): Promise<void> {
    const intervalMs = this.#intervalMs
    if (intervalMs !== 'auto' && !this.#skipping && !this.#finishing) {
      const restMs = Math.max(0, Math.min(intervalMs, this.#flushedAt + intervalMs - performance.now()))
      if (restMs > 0) await this.#pause(restMs, true)
    }
    while (!this.#due && !this.#finishing) await this.#pause(undefined, false)
    this.#due = false
    this.#flushedAt = performance.now()
    // What else arrives in the same event-loop iteration leaves with it. During a push, all had time to arrive.
    if (intervalMs === 'auto' && !this.#finishing && !afterPush) await new Promise((resolve) => setImmediate(resolve))
  }

  /** Waits for a wake-up or, with `untilFinish`, only for the time or the end. */
  async #pause (ms: number | undefined, untilFinish: boolean): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = ms === undefined ? undefined : setTimeout(() => done(), ms)
      const done = (): void => {
        clearTimeout(timer)
        this.#wake = undefined
        resolve()
      }
      this.#wake = () => { if (!untilFinish || this.#skipping || this.#finishing) done() }
    })
  }
}
