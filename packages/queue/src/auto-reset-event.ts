// A hint that can be waited for: one that came while nobody waited ends the next wait at once.

export class AutoResetEvent {
  #due = false
  #resolve: (() => void) | undefined

  up (): void {
    this.#due = true
    this.#resolve?.()
  }

  /** Resolves at the next `up`, after `ms` at the latest, or when `signal` aborts. One waiter at a time. */
  async wait (ms: number, signal: AbortSignal): Promise<void> {
    if (!this.#due && !signal.aborted) {
      await new Promise<void>((resolve) => {
        const done = (): void => {
          clearTimeout(timer)
          signal.removeEventListener('abort', done)
          this.#resolve = undefined
          resolve()
        }
        const timer = setTimeout(done, ms)
        signal.addEventListener('abort', done)
        this.#resolve = done
      })
    }
    this.#due = false
  }
}
