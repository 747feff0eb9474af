// Lets the consumer sleep until something may have been pushed.

/**
 * An event that one waiter at a time can wait for, and that resets itself when the wait ends.
 *
 * Unset (at first, and after every wait and `reset`). `up` sets it, and ends a wait. Set: the next wait ends at once,
 * so that an event that came while nobody waited is not lost; several before one wait are one.
 */
export class AutoResetEvent {
  #due = false
  #resolve: (() => void) | undefined

  /** Sets the event. */
  up (): void {
    this.#due = true
    this.#resolve?.()
  }

  /** Unsets the event. @returns whether it was set */
  reset (): boolean {
    const due = this.#due
    this.#due = false
    return due
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
