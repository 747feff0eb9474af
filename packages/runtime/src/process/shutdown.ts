// When a process is to stop: signals for one that runs alone, its parent's word or its parent's death for a part.
import { isatty } from 'node:tty'
import type { ParentLink } from './parent-link.ts'

const stopSignals = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const

/** A signal that asks for a graceful stop. */
export type StopSignal = typeof stopSignals[number]

/** Requests in hand, the final flush and all the rest of a graceful stop have this long. */
export const stopDeadlineMs = 10_000

/** A terminal and npm both pass one Ctrl-C on: signals this close together are one request. */
export const sameRequestMs = 1000

/** parent: it asks for a stop; failure: it asks for one at once, as another of its parts failed; orphaned: it is gone. */
export type StopReason = StopSignal | 'parent' | 'failure' | 'orphaned'

/** Whether a terminal could hang up. Looked at once: afterwards it is none any more. */
const hasTerminal = [0, 1, 2].some((fd) => isatty(fd))

/**
 * Calls back at each signal that asks for a stop; from then on none of them ends the process by itself. SIGHUP is one only
 * where there is a terminal. Elsewhere it is ignored, as nohup had asked: Node forgets at its start what it was to ignore,
 * and npm, which is Node too, before it.
 */
export function onStopSignal (listener: (signal: StopSignal) => void): void {
  for (const signal of stopSignals) {
    process.on(signal, () => { if (signal !== 'SIGHUP' || hasTerminal) listener(signal) })
  }
}

/**
 * Resolves once, with the first reason to stop; later ones are ignored.
 * @param signals whether signals count: under a living parent the consumer waits for its word
 */
export function stopRequested (link: ParentLink | undefined, signals: boolean): Promise<StopReason> {
  return new Promise((resolve) => {
    // Listening even where signals do not count keeps them from killing the process.
    onStopSignal((signal) => { if (signals) resolve(signal) })
    link?.onStop((atOnce) => resolve(atOnce ? 'failure' : 'parent'), () => resolve('orphaned'))
  })
}

/**
 * Waits before a stop that somebody asked for, so that whoever sends requests here can see in time that they had better go elsewhere.
 * Resolves after `drainMs`, or sooner: at a second signal, or when the parent is gone.
 */
export async function drain (drainMs: number, reason: StopReason, link: ParentLink | undefined): Promise<void> {
  if (drainMs === 0 || reason === 'failure' || link?.orphaned === true) return
  const startedAt = performance.now()
  await new Promise<void>((resolve) => {
    setTimeout(resolve, drainMs)
    process.once('disconnect', resolve)
    onStopSignal(() => { if (performance.now() - startedAt > sameRequestMs) resolve() })
  })
}
