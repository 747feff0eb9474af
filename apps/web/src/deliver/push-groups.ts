// How many batches one push takes, and the push of many batches in such groups: a replay, a refill, or a spool file.
import { batchBytesMax } from '@gearbox/protocol/batch.ts'
import { QueueUnavailableError, type ProducerQueue } from '@gearbox/queue/queue.ts'

/** Batches that one push takes at most; by bytes it takes about as many as one largest batch has. */
const groupBatchesMax = 256

/** Whatever can be pushed: a batch of the window, or a line of a spool file. */
interface Pushable {
  readonly element: Buffer
  /** How many entries of plugins it has; undefined where nobody waits for what they come to. */
  readonly entries?: number
}

/** Whether a batch asks for its commit at once, as somebody waits for what its entries come to. */
export function hurries ({ entries = 0 }: Pushable): boolean {
  return entries > 0
}

/**
 * Divides batches, in their order, into groups of at most 256 batches and the bytes of one largest batch. A larger
 * batch is a group by itself.
 * @param isWanted decides whether a batch is in the next group. It is called after the group before was used, so that
 * it can leave out what became known as stored meanwhile.
 */
export async function * pushGroups<T extends Pushable> (
  batches: Iterable<T> | AsyncIterable<T>, isWanted: (batch: T) => boolean
): AsyncGenerator<T[]> {
  let group: T[] = []
  let bytes = 0
  for await (const batch of batches) {
    if (group.length === groupBatchesMax || (group.length > 0 && bytes + batch.element.length > batchBytesMax)) {
      yield group
      group = []
      bytes = 0
    }
    if (!isWanted(batch)) continue
    group.push(batch)
    bytes += batch.element.length
  }
  if (group.length > 0) yield group
}

/** What `pushInGroups` needs besides the batches. */
export interface PushInGroupsOptions<T> {
  readonly queue: ProducerQueue
  /** The incarnation that the queue must still have. */
  readonly incarnation: string
  /** Ends it before the next group. */
  readonly signal: AbortSignal
  readonly isWanted: (batch: T) => boolean
  /** Called with each group that the queue has. */
  readonly onPushed?: (group: readonly T[]) => void
}

/**
 * Pushes batches in their order, group by group.
 * @returns false if the queue became another one meanwhile: then nothing that was pushed counts, and all of it has to
 * be pushed again
 * @throws QueueUnavailableError what was not reported to `onPushed` may or may not be in the queue
 */
export async function pushInGroups<T extends Pushable> (
  batches: Iterable<T> | AsyncIterable<T>, { queue, incarnation, signal, isWanted, onPushed }: PushInGroupsOptions<T>
): Promise<boolean> {
  for await (const group of pushGroups(batches, isWanted)) {
    if (signal.aborted) throw new QueueUnavailableError('abandoned')
    const elements = group.map(({ element }) => element)
    if (await queue.push(elements, incarnation, group.some(hurries)) === 'moved') return false
    onPushed?.(group)
  }
  return true
}
