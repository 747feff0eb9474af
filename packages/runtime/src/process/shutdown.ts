// When a process is to stop: at a signal if it runs alone; at its parent's message or its parent's death if it is a
// child.
import { isatty } from 'node:tty'
import type { ParentLink } from './parent-link.ts'

const stopSignals = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const

/** A signal that asks for a graceful stop. */
export type StopSignal = typeof stopSignals[number]

/** Requests in progress, the final flush and all the rest of a graceful stop have this long. */
export const stopDeadlineMs = 10_000

/** Signals this close together are one request: a terminal and npm both pass a Ctrl-C on. */
export const sameRequestMs = 1000

/** parent: it asks for a stop; failure: for one at once, as another child failed; orphaned: the parent is gone. */
export type StopReason = StopSignal | 'parent' | 'failure' | 'orphaned'

/** Whether a terminal could hang up. Read once: after it hung up it is no terminal any more. */
const hasTerminal = [0, 1, 2].some((fd) => isatty(fd))

/**
 * Calls back at each signal that asks for a stop; from then on none of them ends the process by itself. SIGHUP is one
 * only if there is a terminal. Otherwise it is ignored, as nohup had asked: Node forgets at its start what it was to
 * ignore, and so does npm, which is Node too, before it.
 */
export function onStopSignal (listener: (signal: StopSignal) => void): void {
  for (const signal of stopSignals) {
    process.on(signal, () => { if (signal !== 'SIGHUP' || hasTerminal) listener(signal) })
  }
}

/**
 * Resolves once, with the first reason to stop; later ones are ignored.
 * @param signals whether signals count: under a living parent the consumer waits for its message
 */
export function stopRequested (link: ParentLink | undefined, signals: boolean): Promise<StopReason> {
  return new Promise((resolve) => {
    // Listening even where signals do not count keeps them from killing the process.
    onStopSignal((signal) => { if (signals) resolve(signal) })
    link?.onStop((atOnce) => resolve(atOnce ? 'failure' : 'parent'), () => resolve('orphaned'))
  })
}

/**
 * Waits before a stop that somebody asked for, so that whoever sends requests here can see in time that they had better
 * go elsewhere. Resolves after `drainMs`, or sooner: at a second signal, or when the parent is gone.
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
