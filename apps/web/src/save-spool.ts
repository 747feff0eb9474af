// The last step of a stop: what could not be pushed is written to the spool, from which a later worker pushes it.
import type { Batch } from '@gearbox/protocol/batch.ts'
import type { Origin } from '@gearbox/queue/spool-file.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { writeSpool } from './deliver/spool.ts'

/** Of a stop's deadline, what is kept for writing even one batch. */
const saveMsLeast = 500

/** Encoding and syncing 230 MB took 3 s here; a slower disk gets twice that. */
const saveBytesPerMs = 40_000

/** For how many ms before its deadline a stop must give up pushing, to have time to save so many bytes. */
export function saveMs (bytes: number): number {
  return saveMsLeast + bytes / saveBytesPerMs
}

/** Where batches are saved, and whose they are. */
export interface SaveSpoolOptions {
  readonly dir: string
  readonly producer: string
  readonly origin: Origin
  readonly logger: Logger
}

/** Writes batches to the spool and logs where they are, or that they are lost. @returns the process's exit code */
export async function saveSpool (batches: readonly Batch[], options: SaveSpoolOptions): Promise<number> {
  if (batches.length === 0) return 0
  const { dir, producer, origin, logger } = options
  const increments = batches.reduce((sum, batch) => sum + batch.increments, 0)
  const what = `${batches.length} batches (${increments} increments)`
  try {
    const path = await writeSpool(dir, producer, origin, batches.map(({ element }) => element))
    logger.warn(`${what} are not known to be in the queue or stored: they wait in ${path} ` +
      'and are pushed at the next start')
    return 0
  } catch (error) {
    logger.fatal(`${what} are lost: they could neither be pushed nor written to ${dir} (${reasonOf(error)})`)
    return exitCode.unsent
  }
}
