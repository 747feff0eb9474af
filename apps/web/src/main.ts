// A web worker as a process: configuration → queue → flusher → server, and the same backwards to stop. Under `npm
// start` it has a parent and, without REDIS_URL, the consumer's embedded queue; alone it needs Redis.
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { EmbeddedProducerQueue } from '@gearbox/queue/embedded/producer-queue.ts'
import type { ProducerQueue } from '@gearbox/queue/queue.ts'
import { shownUrl } from '@gearbox/queue/redis/connection.ts'
import { RedisProducerQueue } from '@gearbox/queue/redis/producer-queue.ts'
import { embeddedQueueName } from '@gearbox/queue/spool-file.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import { createLogger, logCrash, type Logger } from '@gearbox/runtime/log/logger.ts'
import { createRegistry, durations, logStats, logStop, snapshot, type Registry } from '@gearbox/runtime/metrics.ts'
import { serveMetrics, type MetricsServer } from '@gearbox/runtime/metrics-server.ts'
import type { LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { defineCommand, runCommand } from '@gearbox/runtime/process/command.ts'
import { ParentLink } from '@gearbox/runtime/process/parent-link.ts'
import { drain, stopDeadlineMs, stopRequested, type StopReason } from '@gearbox/runtime/process/shutdown.ts'
import { Flusher } from './deliver/flusher.ts'
import { pushSpool, readDatabaseUuid } from './deliver/spool.ts'
import { ConnectionLimit } from './http/connection-limit.ts'
import { listen, urlOf, type Listening } from './http/listen.ts'
import { scrapeAll } from './http/metrics.ts'
import { registerConnections, registerProducer, registerWorker } from './metrics.ts'
import { saveMs, saveSpool } from './save-spool.ts'
import { buildServer } from './server.ts'
import { Submissions } from './submit/submissions.ts'
import { Totals } from './totals/reads.ts'

/** For how long a start waits for the queue before it listens. */
const reachableMs = 1000

/** The parts of a worker, in the order in which they are started. */
interface Parts {
  readonly config: WebConfig
  readonly plugins: readonly LoadedPlugin[]
  readonly logger: Logger
  /** Undefined in a worker that runs alone. */
  readonly link: ParentLink | undefined
  readonly producer: string
  readonly queue: ProducerQueue
  readonly flusher: Flusher
  readonly submissions: Submissions
  readonly totals: Totals
  readonly registry: Registry
  /** Replies by status. */
  readonly requests: Map<number, number>
}

/** What only a started worker has. */
interface Started {
  readonly listening: Listening
  readonly metricsServer: MetricsServer | undefined
  /** Aborted when a stop begins: what plugins have under way should end. */
  readonly stopping: AbortController
  /** From here on /readyz sends new requests elsewhere. */
  announceStop: () => void
  /** Ends what goes on by itself in the background: pushing the spool, logging statistics. */
  endBackground: () => void
}

const settings = [
  'host', 'port', 'redisUrl', 'queueName', 'databasePath', 'unsentDir', 'flushIntervalMs', 'ack', 'ackTimeoutMs',
  'pendingKeysMax', 'pendingBytesMax', 'pendingRequestsMax', 'unstoredBytesMax', 'bodyBytesMax', 'bodyPairsMax',
  'connectionsMax', 'fastLane', 'basePath', 'headersTimeoutMs', 'requestTimeoutMs', 'keepAliveTimeoutMs', 'drainMs',
  'apiKeys', 'hostsAllowed', 'corsOrigins', 'public', 'trustProxy', 'totalsMaxAgeS', 'metricsPort',
  'logLevel', 'logTransport', 'statsIntervalMs', 'plugins',
] as const

/** The settings of a web worker. */
type WebConfig = Pick<Config, typeof settings[number]>

/** `npm run web`, and each web worker of an `npm start`. */
export const command = defineCommand({
  name: 'web',
  summary: 'Takes increments over HTTP and pushes their sums to Redis. Start several: they share the port.',
  usage: 'usage: npm run web',
  // From a parent: the path of the embedded queue's socket, and what the log calls this worker.
  options: { embedded: { type: 'string' }, part: { type: 'string' } },
  settings,
  service: true,
  environment: ({ values: { embedded } }) => embedded === undefined
    ? { required: { REDIS_URL: 'a web worker that runs alone pushes to Redis (npm start needs none)' } }
    : {},
  wouldRun: ({ host, port, basePath, redisUrl, queueName, databasePath }) => ({
    'web worker': `${urlOf(host, port)}${basePath}`,
    queue: redisUrl === undefined ? 'embedded' : `${queueName} in ${shownUrl(redisUrl)}`,
    database: `${databasePath} (for reads)`,
  }),
  run: async ({ values }, config, plugins) => await run(config, plugins, values.embedded, values.part),
})

/** @returns the exit code */
async function run (
  config: WebConfig, plugins: readonly LoadedPlugin[], embedded: string | undefined, name = 'web'
): Promise<number> {
  const link = ParentLink.ofThisProcess()
  const logger = createLogger(name, config.logLevel, config.logTransport)
  logCrash(logger)
  const stopping = stopRequested(link, true)
  const parts = build(config, plugins, logger, link, embedded)
  const started = await start(parts)
  return await stop(parts, started, await stopping)
}

/** @param embedded the path of the embedded queue's socket; undefined: Redis */
function build (
  config: WebConfig, plugins: readonly LoadedPlugin[], logger: Logger, link: ParentLink | undefined,
  embedded: string | undefined
): Parts {
  // Made in this process, after any fork: two processes must never share it.
  const producer = randomUUID()
  const queue = createQueue(config, embedded, logger, link === undefined)
  const registry = createRegistry()
  const observeFlush = durations(registry, 'gearbox_flush_duration_seconds',
    'Time from a drain to its last acknowledged push')
  const flusher = new Flusher({ ...config, queue, producer, logger, observeFlush })
  const requests = new Map<number, number>()
  registerWorker(registry, flusher, queue, requests)
  registerProducer(registry, flusher, producer)
  const totals = new Totals(config.databasePath)
  const submissions = new Submissions({ flusher, queue, producer, limits: config })
  return { config, plugins, logger, link, producer, queue, flusher, submissions, totals, registry, requests }
}

function createQueue (config: WebConfig, embedded: string | undefined, logger: Logger, alone: boolean): ProducerQueue {
  if (embedded !== undefined) return new EmbeddedProducerQueue(embedded, embeddedQueueName(config.databasePath))
  if (config.redisUrl === undefined) throw new Error('no REDIS_URL')
  return new RedisProducerQueue({ url: config.redisUrl, queueName: config.queueName, logger, warnOfSettings: alone })
}

async function start (parts: Parts): Promise<Started> {
  const { config, plugins, logger, link, producer, queue, flusher, submissions, totals, registry, requests } = parts
  link?.onCollect(() => snapshot(registry))
  const endStats = link === undefined ? logStats(logger, config.statsIntervalMs, () => snapshot(registry)) : () => {}
  await queue.start()
  flusher.start()
  const metricsServer = link === undefined ? await serveMetrics(config, () => registry.metrics(), logger) : undefined
  let draining = false
  const metrics = (): Promise<string> => scrapeAll(link, metricsServer?.address)
  const consumerExited = (): string | undefined => link?.consumerExited
  const stopping = new AbortController()
  const server = await buildServer({
    config,
    logger,
    flusher,
    queue,
    totals,
    requests,
    metrics,
    consumerExited,
    draining: () => draining,
    plugins: { loaded: plugins, core: config, submissions, registry, stopping: stopping.signal, producer },
  })
  const abandon = new AbortController()
  // A stop does not wait for it: a file stays until all of it is stored.
  pushSpool({ dir: config.unsentDir, queue, logger, stop: abandon.signal }).catch((error: unknown) => {
    logger.error({ err: error }, 'unsent batches could not be pushed')
  })
  await reachable(queue)
  const listening = await listen(server, config)
  const limit = new ConnectionLimit({ ...config, logger })
  limit.watch(listening.listeners)
  registerConnections(registry, listening.listeners, limit)
  link?.ready()
  if (link === undefined) {
    const address = `${listening.address}${config.basePath}`
    logger.info({ producer }, `listens on ${address}, pushes to ${config.queueName} in Redis`)
  }
  return {
    listening,
    metricsServer,
    stopping,
    announceStop: () => { draining = true },
    endBackground: () => {
      abandon.abort()
      endStats()
    },
  }
}

/**
 * Gives the queue a moment to be reached: so a worker that listens is usually ready. Increments can wait for it in any
 * case.
 */
async function reachable (queue: ProducerQueue): Promise<void> {
  if (queue.incarnation !== undefined) return
  await once(queue, 'incarnation', { signal: AbortSignal.timeout(reachableMs) }).catch(() => {})
}

/** Stops accepting, answers, flushes, saves what could not be pushed, closes. @returns the exit code */
async function stop (parts: Parts, started: Started, reason: StopReason): Promise<number> {
  const { config, logger, link, producer, queue, flusher, submissions, totals, registry } = parts
  const { listening, metricsServer } = started
  started.announceStop()
  // Under npm start the parent logs it for all.
  const stopped = link === undefined
    ? logStop(logger, reason, () => snapshot(registry), { drainMs: config.drainMs })
    : () => {}
  await drain(config.drainMs, reason, link)
  started.endBackground()
  started.stopping.abort()
  flusher.skipInterval()
  const pushDeadline = performance.now() + stopDeadlineMs - saveMs(flusher.unsentBytes)
  await listening.close(pushDeadline)
  submissions.stop()
  const left = await flusher.finish(AbortSignal.timeout(Math.max(0, Math.round(pushDeadline - performance.now()))))
  // Under npm start the database is on this host. It shows where batches belong if no queue could be asked.
  const database = queue.origin.database ?? (link === undefined ? undefined : readDatabaseUuid(config.databasePath))
  const code = await saveSpool(left, { dir: config.unsentDir, producer, origin: { ...queue.origin, database }, logger })
  await metricsServer?.close()
  await queue.close()
  totals.close()
  stopped()
  return code
}

if (import.meta.main) await runCommand(command)
