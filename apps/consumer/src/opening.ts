// Opens queue and database together once both can be had: checks that they belong to each other, and makes this process
// their newest consumer. Until then it retries, and reports why to the log and to workers that push meanwhile.
import { SupersededError, type Owner } from '@gearbox/protocol/owner.ts'
import type { StoreTrouble } from '@gearbox/protocol/trouble.ts'
import { QueueUnavailableError, type ConsumerQueue } from '@gearbox/queue/queue.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { ConsumerLock } from './consumer-lock.ts'
import { checkBinding, claimOwnership } from './ownership.ts'
import { DatabaseMovedError } from './store/database-file.ts'
import { isBusy } from './store/open.ts'
import type { PluginOptions } from './store/plugins/consumer-plugins.ts'
import { Store } from './store/store.ts'

/** Time from one attempt to the next. The queue may come up after us, and the database be locked for a while. */
const retryMs = 500

/** The settings of a store. */
export type OpenConfig = Pick<Config,
  'databasePath' | 'idempotencyHours' | 'idempotencyRowsMax' | 'rejectedRowsMax' | 'rejectedBytesMax'>

/** What a consumer works on; the caller closes the store, then releases the lock. */
export interface Opened {
  readonly store: Store
  readonly lock: ConsumerLock
}

/** What is reported to workers that push meanwhile. */
const troubles: { readonly [state in 'moved' | 'locked']: StoreTrouble } = {
  moved: { reason: "the database's file is not in its place", moved: true },
  locked: { reason: 'the database is locked', moved: false },
}

/**
 * Starts the queue and opens the database, as the owner of both.
 * @param pluginParts the plugins that work in its transactions, and the log of this process
 * @param before the database that the consumer before this one had: that one is waited for
 * @returns undefined if a stop comes first; the queue is closed then
 * @throws FatalError if waiting would not help; the queue is closed then
 */
export async function openBoth (
  queue: ConsumerQueue, config: OpenConfig, pluginParts: PluginOptions, stop: AbortSignal, before: Owner | undefined
): Promise<Opened | undefined> {
  const { logger } = pluginParts
  const logged = new Set<string>()
  let isStarted = false
  do {
    try {
      if (!isStarted) await queue.start().finally(() => { isStarted = true })
      const opened = await open(queue, config, pluginParts, before)
      const copy = opened.store.copiedTo
      if (copy !== undefined) logger.info(`migrated the database of piccolo-daimao; a copy of it as it was is ${copy}`)
      if (logged.size > 0) logger.info(`opened ${config.databasePath} and ${queue.name}`)
      await queue.reportTrouble(undefined)
      return opened
    } catch (error) {
      if (!passes(error)) {
        await queue.close()
        if (!(error instanceof SupersededError)) throw error
        // The key that should hold the queue's owner holds something else.
        const what = `${queue.name} can't be used: ${error.message}`
        throw new FatalError(`${what}; set QUEUE_NAME to another name`, exitCode.refused)
      }
      const isQueue = error instanceof QueueUnavailableError
      const reason = (isQueue ? queue.unreachable : undefined) ?? reasonOf(error)
      if (!logged.has(reason)) logger.warn(waitingFor(error, reason, queue, config))
      logged.add(reason)
      if (!isQueue) await queue.reportTrouble(isBusy(error) ? troubles.locked : troubles.moved)
    }
    if (!stop.aborted) await pause(stop)
  } while (!stop.aborted)
  await queue.close()
  return undefined
}

async function open (
  queue: ConsumerQueue, config: OpenConfig, pluginParts: PluginOptions, before: Owner | undefined
): Promise<Opened> {
  let store: Store | undefined
  let lock: ConsumerLock | undefined
  try {
    const found = await checkBinding(queue, config.databasePath, before)
    lock = ConsumerLock.share(config.databasePath)
    store = new Store({ ...config, path: config.databasePath, pluginParts })
    await claimOwnership(queue, store, found)
    return { store, lock }
  } catch (error) {
    store?.close()
    lock?.release()
    throw error
  }
}

/** Whether an error may go away by itself, or once a person has put something right. */
function passes (error: unknown): boolean {
  return error instanceof QueueUnavailableError || error instanceof DatabaseMovedError || isBusy(error)
}

function waitingFor (error: unknown, reason: string, queue: ConsumerQueue, { databasePath }: OpenConfig): string {
  if (error instanceof DatabaseMovedError) return `${troubles.moved.reason} (${reason}): retrying; put it back`
  if (isBusy(error)) return `${databasePath} is locked (${reason}): retrying. Who else has it open?`
  return `Redis at ${queue.name} can't be used: ${reason}; retrying`
}

async function pause (stop: AbortSignal): Promise<void> {
  await new Promise((resolve) => {
    setTimeout(resolve, retryMs)
    stop.addEventListener('abort', resolve, { once: true })
  })
}
