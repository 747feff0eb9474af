// How much of what was taken is handled at once: a correction of a total is a run of its own, many entries of plugins
// are several runs, and what a newer program wrote is not handled at all.
import { batchVersion, newerVersion, readEntries, readHeader } from '@gearbox/protocol/batch.ts'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { correctionsName } from './store/plugins/corrections.ts'

/**
 * Bytes of batches with entries of plugins in one run, at most, or one such batch. Some 20,000 of the shortest entries
 * fit, and with results of 4 KiB these take the disk and this process some seconds and 80 MB.
 */
const entriesBytesMax = 512 * 1024

/** The next batch was written by a newer program: to pass over it would lose what is new in it. */
export class NewerBatchError extends FatalError {
  /** @param queue where the batch is */
  constructor (version: number, queue: string) {
    super(`${queue} has a batch of version ${version}, and this consumer reads versions up to ${batchVersion}: ` +
      'a newer Gearbox wrote it. Start that one; all before it is stored, and nothing of it is lost', exitCode.refused)
  }
}

/** A run, and when each of its batches was accepted. */
export interface NextRun {
  readonly elements: readonly Buffer[]
  /** Unix ms. */
  readonly acceptedAt: readonly number[]
}

/**
 * The elements from the head that make one run: all of them, or those before a correction or before too many entries,
 * or that correction alone.
 * @param queue the queue's name, for a message
 * @throws NewerBatchError if the first one is a well-formed batch of a newer version
 */
export function nextRun (elements: readonly Buffer[], queue: string): NextRun {
  const acceptedAt: number[] = []
  let entriesBytes = 0
  for (const [i, element] of elements.entries()) {
    const header = readHeader(element)
    if (typeof header === 'string') {
      const version = newerVersion(element)
      if (version !== undefined && i === 0) throw new NewerBatchError(version, queue)
      if (version !== undefined) return { elements: elements.slice(0, i), acceptedAt }
      acceptedAt.push(Date.now())
    } else {
      const isCorrection = header.entries && hasCorrection(element)
      if (header.entries) entriesBytes += element.length
      const isEnd = isCorrection || (header.entries && entriesBytes > entriesBytesMax)
      if (isEnd && i > 0) return { elements: elements.slice(0, i), acceptedAt }
      acceptedAt.push(header.at)
      if (isCorrection) return { elements: elements.slice(0, 1), acceptedAt }
    }
  }
  return { elements, acceptedAt }
}

/** Most batches are not read to find out. */
const correctionText = `"plugin":"${correctionsName}"`

function hasCorrection (element: Buffer): boolean {
  if (!element.includes(correctionText)) return false
  const entries = readEntries(element)
  return typeof entries !== 'string' && entries.some(({ plugin }) => plugin === correctionsName)
}
