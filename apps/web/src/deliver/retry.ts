// The one retry loop of a web worker. The outbox and the spool repeat with it whatever an unavailable queue could not
// do.
import { setTimeout as delay } from 'node:timers/promises'
import { QueueUnavailableError } from '@gearbox/queue/queue.ts'

/** After a failed attempt: first pause and longest one. A queue that restarts is back within a second. */
const retryMs = { first: 20, most: 500 }

/**
 * Repeats an action for as long as the queue is unavailable, with pauses that double from 20 ms to 500 ms.
 * @param signal ends it at once, also in the middle of an attempt, whose outcome is then unknown
 * @param onFailure called after each failed attempt, with the reason
 * @returns the action's result; undefined if `signal` aborted first
 * @throws what the action throws, unless it is QueueUnavailableError
 */
export async function retry<T> (
  action: () => Promise<T>, signal: AbortSignal, onFailure: (reason: string) => void = () => {}
): Promise<T | undefined> {
  let pauseMs = retryMs.first
  while (!signal.aborted) {
    try {
      return await orAborted(action(), signal)
    } catch (error) {
      if (!(error instanceof QueueUnavailableError)) throw error
      if (signal.aborted) break
      onFailure(error.message)
      await delay(pauseMs, undefined, { signal }).catch(() => {})
      pauseMs = Math.min(pauseMs * 2, retryMs.most)
    }
  }
  return undefined
}

/**
 * Awaits an action, but no longer than until `signal` aborts: an embedded push is answered only when it is committed,
 * which a full disk can delay for hours.
 * @throws QueueUnavailableError if it aborts first, and whatever the action throws
 */
export async function orAborted<T> (action: Promise<T>, signal: AbortSignal): Promise<T> {
  let abort = (): void => {}
  try {
    return await Promise.race([action, new Promise<never>((_resolve, reject) => {
      abort = () => reject(new QueueUnavailableError('abandoned'))
      if (signal.aborted) abort()
      else signal.addEventListener('abort', abort)
    })])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}
