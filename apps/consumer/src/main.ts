// The consumer as a process: composes its parts, and stops them in order. Under `npm start` it serves the embedded
// queue or, with REDIS_URL, takes from Redis; alone it always takes from Redis.
import { rmSync } from 'node:fs'
import { dirname } from 'node:path'
import { ownerText, parseOwner, SupersededError, type Owner } from '@gearbox/protocol/owner.ts'
import { EmbeddedConsumerQueue } from '@gearbox/queue/embedded/consumer-queue.ts'
import type { ConsumerQueue } from '@gearbox/queue/queue.ts'
import { shownUrl } from '@gearbox/queue/redis/connection.ts'
import { RedisConsumerQueue } from '@gearbox/queue/redis/consumer-queue.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { createLogger, logCrash, type Logger } from '@gearbox/runtime/log/logger.ts'
import { createRegistry, durations, logStats, logStop, snapshot, type Registry } from '@gearbox/runtime/metrics.ts'
import { serveMetrics } from '@gearbox/runtime/metrics-server.ts'
import type { LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { defineCommand, runCommand } from '@gearbox/runtime/process/command.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { ParentLink } from '@gearbox/runtime/process/parent-link.ts'
import { stopRequested } from '@gearbox/runtime/process/shutdown.ts'
import { Consumer } from './consumer.ts'
import { Lifetime } from './lifetime.ts'
import { registerMetrics } from './metrics.ts'
import { openBoth } from './opening.ts'
import { stopAdvice } from './stop-advice.ts'
import { KeyCounter } from './store/key-counter.ts'
import type { Store } from './store/store.ts'

const settings = [
  'host', 'redisUrl', 'queueName', 'databasePath', 'unsentDir', 'commitIntervalMs', 'headersTimeoutMs',
  'requestTimeoutMs', 'idempotencyHours', 'idempotencyRowsMax', 'rejectedRowsMax', 'rejectedBytesMax', 'apiKeys',
  'hostsAllowed', 'metricsPort', 'logLevel', 'logTransport', 'statsIntervalMs', 'plugins',
] as const

/** The settings of a consumer. */
type ConsumerConfig = Pick<Config, typeof settings[number]>

/** `npm run consumer`, and the consumer of an `npm start`. */
export const command = defineCommand({
  name: 'consumer',
  summary: 'Takes batches from Redis and stores their sums in SQLite.',
  usage: 'usage: npm run consumer [-- DATABASE_PATH]',
  // From a parent: the path of the embedded queue's socket, and the database that the consumer before this one had.
  options: { embedded: { type: 'string' }, database: { type: 'string' } },
  positionals: true,
  settings,
  service: true,
  environment: ({ values: { embedded }, positionals: [path] }) => ({
    ...(path === undefined ? {} : { variables: { DATABASE_PATH: path } }),
    ...(embedded === undefined
      ? { required: { REDIS_URL: 'a consumer that is started alone takes from Redis (npm start needs none)' } }
      : {}),
  }),
  wouldRun: ({ redisUrl, queueName, databasePath }) => ({
    consumer: `of ${redisUrl === undefined ? 'the embedded queue' : `${queueName} in ${shownUrl(redisUrl)}`}`,
    database: databasePath,
  }),
  run: async ({ values: { embedded, database } }, config, plugins) => {
    await run(config, plugins, embedded, database === undefined ? undefined : parseOwner(database))
    return 0
  },
})

/**
 * Runs the consumer until it is asked to stop.
 * @param socket path of the embedded queue's socket; undefined: the queue is Redis
 * @param before the database that the consumer before this one had
 */
async function run (
  config: ConsumerConfig, plugins: readonly LoadedPlugin[], socket: string | undefined, before: Owner | undefined
): Promise<void> {
  const link = ParentLink.ofThisProcess()
  const logger = createLogger('consumer', config.logLevel, config.logTransport)
  logCrash(logger)
  const stopping = stopRequested(link, link === undefined)
  const embedded = socket === undefined ? undefined : new EmbeddedConsumerQueue(socket)
  const queue = embedded ?? redisQueue(config, logger)
  const lifetime = new Lifetime(stopping, embedded)
  const registry = createRegistry()
  let logStopped = (): void => {}
  // Under npm start the parent logs it for all.
  if (link === undefined) {
    const collect = async (): Promise<object[]> => await snapshot(registry)
    lifetime.reason.then((reason) => { logStopped = logStop(logger, reason, collect) }, () => {})
  }
  const opened = await openBoth(queue, config, { loaded: plugins, logger }, lifetime.stop, before)
  if (opened !== undefined) {
    const keyCounter = new KeyCounter(config.databasePath, logger)
    try {
      await consume({ config, logger, link, queue, lifetime, registry, keyCounter, store: opened.store })
    } finally {
      await queue.close()
      await keyCounter.close()
      opened.store.close()
      opened.lock.release()
      // Its parent made the socket's directory and can't remove it any more.
      if (lifetime.orphaned && socket !== undefined) rmSync(dirname(socket), { recursive: true, force: true })
    }
  }
  logStopped()
}

function redisQueue (config: ConsumerConfig, logger: Logger): ConsumerQueue {
  if (config.redisUrl === undefined) throw new Error('no REDIS_URL')
  return new RedisConsumerQueue({ url: config.redisUrl, queueName: config.queueName, logger, warnOfSettings: true })
}

interface Parts {
  readonly config: ConsumerConfig
  readonly logger: Logger
  readonly link: ParentLink | undefined
  readonly queue: ConsumerQueue
  readonly lifetime: Lifetime
  readonly registry: Registry
  readonly keyCounter: KeyCounter
  readonly store: Store
}

/**
 * Consumes until it is to stop, with metrics and statistics meanwhile.
 * @throws FatalError (refused) if it is superseded
 */
async function consume (parts: Parts): Promise<void> {
  const { config, logger, link, queue, lifetime, registry, store } = parts
  const consumer = new Consumer({
    queue,
    store,
    logger,
    commitIntervalMs: config.commitIntervalMs,
    stopAdvice: () => stopAdvice(config),
    observeCommit: durations(registry, 'gearbox_commit_duration_seconds', 'Time one transaction took'),
  })
  registerMetrics(registry, { ...parts, consumer })
  const endMetrics = link === undefined ? await serveAlone(parts) : serveToParent(parts, link)
  if (link === undefined) logger.info(`consuming from ${queue.name}, storing in ${config.databasePath}`)
  try {
    await consumer.run(lifetime.stop, lifetime.abandon)
  } catch (error) {
    if (!(error instanceof SupersededError)) throw error
    throw new FatalError(`another consumer has superseded this one: ${error.message}`, exitCode.refused)
  }
  await endMetrics()
}

/** Under a parent: sends it the metrics that it asks for, and reports that this process is ready. */
function serveToParent ({ registry, keyCounter, store }: Parts, link: ParentLink): () => Promise<void> {
  link.onCollect(async (scraping) => {
    if (scraping) await keyCounter.refresh()
    return await snapshot(registry)
  })
  // Should this process die, an empty or another database must not take this one's place.
  link.ready([`--database=${ownerText(store.owner)}`])
  return async () => {}
}

/** Without a parent: logs statistics, and serves metrics on METRICS_PORT. */
async function serveAlone ({ config, logger, registry, keyCounter }: Parts): Promise<() => Promise<void>> {
  const endStats = logStats(logger, config.statsIntervalMs, () => snapshot(registry))
  const scrape = async (): Promise<string> => {
    await keyCounter.refresh()
    return await registry.metrics()
  }
  const server = await serveMetrics(config, scrape, logger)
  return async () => {
    endStats()
    await server?.close()
  }
}

if (import.meta.main) await runCommand(command)
