// The consumer as a process: opens queue and database, checks that they belong together, works, and stops when it is told to.
// Under `npm start` it serves the embedded queue or, with REDIS_URL, takes from Redis; alone it always takes from Redis.
import { rmSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { EmbeddedConsumerQueue } from '@gearbox/queue/embedded/consumer-queue.ts'
import { ownerText, parseOwner, SupersededError, type Owner } from '@gearbox/protocol/owner.ts'
import { rejectReasons } from '@gearbox/protocol/progress.ts'
import { QueueUnavailableError, type ConsumerQueue } from '@gearbox/queue/queue.ts'
import { RedisConsumerQueue } from '@gearbox/queue/redis/consumer-queue.ts'
import { loadConfig, type Config } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { createLogger, logCrash, type Logger } from '@gearbox/runtime/log/logger.ts'
import { createRegistry, counter, durations, gauge, logStats, logStop, snapshot, type Registry } from '@gearbox/runtime/metrics.ts'
import { serveMetrics } from '@gearbox/runtime/metrics-server.ts'
import { defineCommand, runCommand } from '@gearbox/runtime/process/command.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { ParentLink } from '@gearbox/runtime/process/parent-link.ts'
import { onStopSignal, stopDeadlineMs, stopRequested } from '@gearbox/runtime/process/shutdown.ts'
import { checkBinding, claimOwnership } from './ownership.ts'
import { ConsumerLock } from './consumer-lock.ts'
import { Consumer } from './consumer.ts'
import { DatabaseMovedError } from './store/database-file.ts'
import { KeyCounter } from './store/key-counter.ts'
import { isBusy } from './store/open.ts'
import { Store } from './store/store.ts'

// The queue may come up after us, and the database be locked for a while.
const connectRetryMs = 500

/** `npm run consumer`, and the consumer of an `npm start`. */
export const command = defineCommand({
  name: 'consumer',
  summary: 'Takes batches from Redis and stores their sums in SQLite.',
  usage: 'usage: npm run consumer [-- DATABASE_PATH]',
  // From a parent: the path of the embedded queue's socket, and the database that the consumer before this one had.
  options: { embedded: { type: 'string' }, database: { type: 'string' } },
  positionals: true,
  settings: [
    'host', 'redisUrl', 'queueName', 'databasePath', 'commitIntervalMs', 'headersTimeoutMs', 'requestTimeoutMs',
    'idempotencyHours', 'idempotencyRowsMax', 'rejectedRowsMax', 'rejectedBytesMax', 'apiKeys', 'hostsAllowed',
    'metricsPort', 'logLevel', 'statsIntervalMs',
  ],
  service: true,
  run: async ({ values, positionals }) => await run(values.embedded, values.database, positionals[0]),
})

/** @returns the exit code */
async function run (embeddedPath: string | undefined, ownerBefore: string | undefined, databasePath: string | undefined): Promise<number> {
  const env = databasePath === undefined ? process.env : { ...process.env, DATABASE_PATH: databasePath }
  const config = loadConfig(env, embeddedPath === undefined ? { REDIS_URL: 'a consumer of its own takes from Redis (npm start needs none)' } : {})
  const link = ParentLink.ofThisProcess()
  const logger = createLogger('consumer', config.logLevel)
  logCrash(logger)
  const stopping = stopRequested(link, link === undefined)
  const stop = new AbortController()
  const abandon = new AbortController()

  const embedded = embeddedPath === undefined ? undefined : new EmbeddedConsumerQueue(embeddedPath)
  const queue = embedded ?? redisQueue(config, logger)
  let orphaned = false
  const reason = stopping.then(async (reason) => {
    // The workers flush once more when the parent dies; what they push is answered before this process leaves.
    if (reason === 'orphaned') await Promise.race([embedded?.lastWorkerGone(), signalled()])
    orphaned = reason === 'orphaned'
    setTimeout(() => abandon.abort(), stopDeadlineMs).unref()
    stop.abort()
    return reason
  })

  const registry = createRegistry()
  let stopped = (): void => {}
  // Under npm start the parent says it for all.
  if (link === undefined) {
    reason.then((signal) => { stopped = logStop(logger, signal, async () => await snapshot(registry)) }, () => {})
  }
  const before = ownerBefore === undefined ? undefined : parseOwner(ownerBefore)
  const opened = await open(queue, config, logger, stop.signal, before)
  if (opened === undefined) {
    stopped()
    return 0
  }
  const { store, lock } = opened
  const keyCounter = new KeyCounter(config.databasePath, logger)
  try {
    const consumer = new Consumer({
      queue,
      store,
      logger,
      commitIntervalMs: config.commitIntervalMs,
      stopAdvice: () => stopAdvice(config),
      observeCommit: durations(registry, 'gearbox_commit_duration_seconds', 'Time one transaction took'),
    })
    register(registry, consumer, store, queue, keyCounter)
    link?.onCollect(async (scraping) => {
      if (scraping) await keyCounter.refresh()
      return await snapshot(registry)
    })
    const endStats = link === undefined ? logStats(logger, config.statsIntervalMs, () => snapshot(registry)) : () => {}
    const scrape = async (): Promise<string> => {
      await keyCounter.refresh()
      return await registry.metrics()
    }
    const metricsServer = link === undefined ? await serveMetrics(config, scrape, logger) : undefined
    // Should this process die, an empty or another database is not to take this one's place.
    link?.ready([`--database=${ownerText(store.owner)}`])
    if (link === undefined) logger.info(`takes from ${queue.name} into ${config.databasePath}`)
    await consumer.run(stop.signal, abandon.signal)
    endStats()
    await metricsServer?.close()
    stopped()
    return 0
  } catch (error) {
    if (error instanceof SupersededError) throw new FatalError(`the consumer leaves, another one has taken over: ${error.message}`, exitCode.refused)
    throw error
  } finally {
    await queue.close()
    await keyCounter.close()
    store.close()
    lock.release()
    // Its parent made the socket's directory and can't remove it any more.
    if (orphaned && embeddedPath !== undefined) rmSync(dirname(embeddedPath), { recursive: true, force: true })
  }
}

/** Resolves at the next signal: nobody else is left to tell an orphan to stop. */
async function signalled (): Promise<void> {
  await new Promise<void>((resolve) => onStopSignal(() => resolve()))
}

function redisQueue (config: Config, logger: Logger): ConsumerQueue {
  if (config.redisUrl === undefined) throw new Error('no REDIS_URL')
  return new RedisConsumerQueue({ url: config.redisUrl, queueName: config.queueName, logger, warnOfSettings: true })
}

/** With the embedded queue nothing but the workers' memory keeps what waits; a stop would write it down. */
function stopAdvice ({ databasePath, unsentDir }: Config): string {
  const onSameDisk = deviceOf(unsentDir) === deviceOf(dirname(databasePath))
  return 'Do so before stopping: what waits is in the memory of the web workers only, and a stop writes it to ' +
    `${unsentDir} (UNSENT_DIR)${onSameDisk ? ', which is on the same disk' : ''}`
}

/** Of a path, or of what will be above it. */
function deviceOf (path: string): number | undefined {
  try {
    return statSync(path).dev
  } catch {
    return dirname(path) === path ? undefined : deviceOf(dirname(path))
  }
}

interface Opened {
  readonly store: Store
  readonly lock: ConsumerLock
}

/**
 * Opens queue and database once both can be had; undefined if a stop comes first.
 * @param before the database that the consumer before this one had
 * @throws FatalError
 */
async function open (queue: ConsumerQueue, config: Config, logger: Logger, stop: AbortSignal, before: Owner | undefined): Promise<Opened | undefined> {
  const said = new Set<string>()
  let started = false
  for (;;) {
    let store: Store | undefined
    let lock: ConsumerLock | undefined
    try {
      if (!started) await queue.start().finally(() => { started = true })
      const found = await checkBinding(queue, config.databasePath, before)
      lock = ConsumerLock.share(config.databasePath)
      store = new Store({ ...config, path: config.databasePath })
      await claimOwnership(queue, store, found)
      if (store.copiedTo !== undefined) logger.info(`took over the database of the original; it is kept as it was in ${store.copiedTo}`)
      if (said.size > 0) logger.info(`opened ${config.databasePath} and ${queue.name}`)
      await queue.reportTrouble(undefined)
      return { store, lock }
    } catch (error) {
      store?.close()
      lock?.release()
      const moved = error instanceof DatabaseMovedError
      if (!(error instanceof QueueUnavailableError) && !isBusy(error) && !moved) {
        await queue.close()
        // What stands where the queue's owner should is somebody else's.
        throw error instanceof SupersededError ? new FatalError(`${queue.name} can't be used: ${error.message}; set QUEUE_NAME to another name`, exitCode.refused) : error
      }
      const reason = error instanceof QueueUnavailableError ? queue.unreachable ?? reasonOf(error) : reasonOf(error)
      if (!said.has(reason)) logger.warn(waitingFor(error, reason, queue, config))
      said.add(reason)
      if (!(error instanceof QueueUnavailableError)) await queue.reportTrouble(troubles[moved ? 'moved' : 'locked'])
    }
    if (stop.aborted) break
    await new Promise((resolve) => {
      setTimeout(resolve, connectRetryMs)
      stop.addEventListener('abort', resolve, { once: true })
    })
    if (stop.aborted) break
  }
  await queue.close()
  return undefined
}

/** What is reported to workers that push meanwhile. */
const troubles = {
  moved: { reason: "the database's file is not in its place", moved: true },
  locked: { reason: 'the database is locked', moved: false },
} as const

function waitingFor (error: unknown, reason: string, queue: ConsumerQueue, { databasePath }: Config): string {
  if (error instanceof DatabaseMovedError) return `${troubles.moved.reason} (${reason}): retrying; put it back`
  if (isBusy(error)) return `${databasePath} is locked (${reason}): trying until it is not. Who else has it open?`
  return `Redis at ${queue.name} can't be used: ${reason}. Trying until it can`
}

/** A rate can only be seen where there was a 0 before. */
const noRejections = rejectReasons.map((reason): [string, number] => [reason, 0])

function register (registry: Registry, consumer: Consumer, store: Store, queue: ConsumerQueue, keyCounter: KeyCounter): void {
  counter(registry, 'gearbox_batches_applied_total', 'Batches committed', () => consumer.counts.applied)
  counter(registry, 'gearbox_batches_duplicate_total', 'Batches skipped because they had been applied before', () => consumer.counts.duplicates)
  counter(registry, 'gearbox_sequence_gaps_total', 'Batches that were found missing: the queue lost them', () => consumer.counts.gaps)
  counter(registry, 'gearbox_rejected_total', 'Entries that could not be applied', () => new Map([...noRejections, ...consumer.counts.rejected]), 'reason')
  counter(registry, 'gearbox_set_aside_total', 'Entries that were promised (2xx) and could not be applied', () => consumer.counts.setAside)
  counter(registry, 'gearbox_rejected_dropped_total', 'Of those, entries that REJECTED_ROWS_MAX or REJECTED_BYTES_MAX left no room for', () => consumer.counts.dropped)
  gauge(registry, 'gearbox_rejected_rows', 'Entries that npm run rejected lists', 'max', () => store.rejectedRows)
  gauge(registry, 'gearbox_queue_length', 'Batches waiting in the queue', 'max', () => queue.length)
  gauge(registry, 'gearbox_queue_durable', '1 if the queue keeps what was pushed through its own death', 'min', () => Number(queue.durable))
  gauge(registry, 'gearbox_lag_seconds', 'Age of the oldest increment that is not stored', 'max', () => consumer.lagSeconds)
  gauge(registry, 'gearbox_keys', 'Keys in the database, counted at most once a minute', 'max', () => keyCounter.keys)
}

if (import.meta.main) await runCommand(command)
