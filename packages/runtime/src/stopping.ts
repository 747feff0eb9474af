// When a process is to stop: signals for one that runs alone, its parent's word or its parent's death for a part.
import type { ParentLink } from './parent-link.ts'

export const stopSignals = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const

/** Requests in hand, the final flush and all the rest of a graceful stop have this long. */
export const stopDeadlineMs = 10_000

export type StopReason = typeof stopSignals[number] | 'parent' | 'orphaned'

/**
 * Resolves once, with the first reason to stop; later ones are ignored.
 * @param signals whether signals count: under a living parent the consumer waits for its word
 */
export function stopRequested (link: ParentLink | undefined, signals: boolean): Promise<StopReason> {
  return new Promise((resolve) => {
    // Listening even where signals do not count keeps them from killing the process.
    for (const signal of stopSignals) process.on(signal, () => { if (signals) resolve(signal) })
    link?.onStop(() => resolve('parent'), () => resolve('orphaned'))
  })
}
