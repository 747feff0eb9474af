// A web worker as a process: configuration → queue → flusher → server, and the same backwards to stop.
// Under `npm start` it talks to its parent and, without REDIS_URL, to the consumer's embedded queue; alone it needs Redis.
import { randomUUID } from 'node:crypto'
import { lookup } from 'node:dns/promises'
import { once } from 'node:events'
import { createServer, type Server } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import type { FastifyInstance, FastifyListenOptions } from 'fastify'
import type { Batch } from '@gearbox/protocol/batch.ts'
import { EmbeddedProducerQueue } from '@gearbox/queue/embedded/producer-queue.ts'
import type { ProducerQueue } from '@gearbox/queue/queue.ts'
import { RedisProducerQueue } from '@gearbox/queue/redis/producer-queue.ts'
import { embeddedQueueName, type Origin } from '@gearbox/queue/spool-file.ts'
import { loadConfig, type Config } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { createLogger, logCrash, type Logger } from '@gearbox/runtime/log/logger.ts'
import { createRegistry, counter, durations, gauge, labelledGauge, logStats, logStop, snapshot, type Registry } from '@gearbox/runtime/metrics.ts'
import { serveMetrics } from '@gearbox/runtime/metrics-server.ts'
import { defineCommand, runCommand } from '@gearbox/runtime/process/command.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { ParentLink } from '@gearbox/runtime/process/parent-link.ts'
import { drain, stopDeadlineMs, stopRequested } from '@gearbox/runtime/process/shutdown.ts'
import { ConnectionLimit } from './http/connection-limit.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import { Flusher } from './deliver/flusher.ts'
import { buildServer } from './server.ts'
import { Totals } from './totals/reads.ts'
import { pushSpool, readDatabaseUuid, writeSpool } from './deliver/spool.ts'

/** Of the stop's deadline, what is kept for writing down what could not be pushed. */
const unsentReserveMs = 500

/** Encoding and syncing 230 MB took 3 s here; a slower disk gets twice that. */
const unsentBytesPerMs = 40_000

const reachableMs = 1000

const idleCheckMs = 50

/**
 * Connections that the kernel keeps until they are accepted: as many as it allows (somaxconn, 4096 on Linux). With Node's 511 a burst
 * overflows it, and what was overflowed sits out TCP's doubling pauses, seconds long, while the worker has nothing to do.
 */
const backlog = 65_535

/** A queue that hangs must not keep all other figures from a parent that waits a second for them. */
const lengthTimeoutMs = 300

/** `npm run web`, and each web worker of an `npm start`. */
export const command = defineCommand({
  name: 'web',
  summary: 'Takes increments over HTTP and pushes their sums to Redis. Start several: they share the port.',
  usage: 'usage: npm run web',
  // From a parent: the path of the embedded queue's socket, and what the log calls this worker.
  options: { embedded: { type: 'string' }, part: { type: 'string' } },
  settings: [
    'host', 'port', 'redisUrl', 'queueName', 'databasePath', 'unsentDir', 'flushIntervalMs', 'ack', 'ackTimeoutMs',
    'pendingKeysMax', 'pendingBytesMax', 'pendingRequestsMax', 'unstoredBytesMax', 'bodyBytesMax', 'bodyPairsMax',
    'connectionsMax', 'fastLane', 'basePath', 'headersTimeoutMs', 'requestTimeoutMs', 'keepAliveTimeoutMs', 'drainMs',
    'apiKeys', 'hostsAllowed', 'corsOrigins', 'metricsPort', 'logLevel', 'statsIntervalMs',
  ],
  service: true,
  run: async ({ values }) => await run(values.embedded, values.part),
})

/** @returns the exit code */
async function run (embedded: string | undefined, name = 'web'): Promise<number> {
  const config = loadConfig(process.env, embedded === undefined ? { REDIS_URL: 'a web worker of its own pushes to Redis (npm start needs none)' } : {})
  const link = ParentLink.ofThisProcess()
  const logger = createLogger(name, config.logLevel)
  logCrash(logger)
  const stopping = stopRequested(link, true)
  // Made in this process, after any fork: two processes must never share it.
  const producer = randomUUID()

  const queue = createQueue(config, embedded, logger, link === undefined)
  const registry = createRegistry()
  const flusher = new Flusher({ ...config, queue, producer, logger, observeFlush: durations(registry, 'gearbox_flush_duration_seconds', 'Time from a drain to its last acknowledged push') })
  const totals = new Totals(config.databasePath)
  const requests = new Map<number, number>()
  register(registry, flusher, queue, requests)
  registerProducer(registry, flusher, producer)
  link?.onCollect(() => snapshot(registry))
  const endStats = link === undefined ? logStats(logger, config.statsIntervalMs, () => snapshot(registry)) : () => {}

  await queue.start()
  flusher.start()
  const metricsServer = link === undefined ? await serveMetrics(config, async () => await registry.metrics(), logger) : undefined
  const metrics = async (): Promise<string> => await scrapeAll(link, metricsServer?.address)
  let draining = false
  const server = await buildServer({
    config, logger, flusher, queue, totals, metrics, requests, draining: () => draining, consumerExited: () => link?.consumerExited,
  })
  const stop = new AbortController()
  // A stop does not wait for it: a file stays until all of it is stored.
  pushSpool({ dir: config.unsentDir, queue, logger, stop: stop.signal }).catch((error: unknown) => {
    logger.error({ err: error }, 'unsent batches could not be pushed')
  })
  await reachable(queue)
  const { address, beside } = await listen(server, config)
  const limit = new ConnectionLimit({ ...config, logger })
  limit.watch([server.server, ...beside])
  countConnections(registry, [server.server, ...beside], limit)
  link?.ready()
  if (link === undefined) logger.info({ producer }, `listens on ${address}${config.basePath}, pushes to ${config.queueName} in Redis`)

  const reason = await stopping
  draining = true
  // Under npm start the parent says it for all.
  const stopped = link === undefined
    ? logStop(logger, reason, async () => await snapshot(registry), { drainMs: config.drainMs })
    : () => {}
  await drain(config.drainMs, reason, link)
  stop.abort()
  flusher.skipInterval()
  endStats()
  const deadline = performance.now() + stopDeadlineMs
  const reserveMs = unsentReserveMs + flusher.unsentBytes / unsentBytesPerMs
  for (const listener of beside) listener.close()
  await closeServer(server, deadline - reserveMs)
  const left = await flusher.finish(AbortSignal.timeout(Math.max(0, Math.round(deadline - reserveMs - performance.now()))))
  // A part of `npm start` shares its database, which tells where batches belong that no queue could be asked about.
  const database = queue.origin.database ?? (link === undefined ? undefined : readDatabaseUuid(config.databasePath))
  const code = await saveUnsent(left, config.unsentDir, producer, { ...queue.origin, database }, logger)
  await metricsServer?.close()
  await queue.close()
  totals.close()
  stopped()
  return code
}

function createQueue (config: Config, embedded: string | undefined, logger: Logger, alone: boolean): ProducerQueue {
  if (embedded !== undefined) return new EmbeddedProducerQueue(embedded, embeddedQueueName(config.databasePath))
  if (config.redisUrl === undefined) throw new Error('no REDIS_URL')
  return new RedisProducerQueue({ url: config.redisUrl, queueName: config.queueName, logger, warnOfSettings: alone })
}

/** Gives the queue a moment to be reached, so that a worker that listens is usually ready; increments can wait for it in any case. */
async function reachable (queue: ProducerQueue): Promise<void> {
  if (queue.incarnation === undefined) await once(queue, 'incarnation', { signal: AbortSignal.timeout(reachableMs) }).catch(() => {})
}

/**
 * What /metrics on the shared port answers: under a parent the metrics of all processes. Without one it would be those of whichever
 * worker got the request, another one at each scrape, so it says where to scrape instead.
 * @throws RequestError
 */
async function scrapeAll (link: ParentLink | undefined, ownAddress: string | undefined): Promise<string> {
  if (link === undefined) {
    throw new RequestError('GBX_METRICS_ELSEWHERE', 'web workers may share this port, so it has no metrics; scrape each worker on its METRICS_PORT ' +
      (ownAddress === undefined ? '(this one has none: set METRICS_PORT, another port for each process)' : `(this one: ${ownAddress}/metrics)`))
  }
  const text = await link.scrape()
  if (text === '') throw new RequestError('GBX_STOPPING', 'npm start was killed, and this worker is stopping; its metrics are gone')
  return text
}

/** Shares the port with the other workers: the kernel spreads connections over all that listen. @throws FatalError */
async function listen (server: FastifyInstance, { host, port }: Config): Promise<{ address: string, beside: readonly Server[] }> {
  // Fastify hands these on to node:net, whose reusePort its own types do not name.
  const options: FastifyListenOptions & { readonly reusePort: boolean } = { host, port, reusePort: true, backlog }
  try {
    const address = await server.listen(options)
    return { address, beside: host === 'localhost' ? await listenBeside(server, options) : [] }
  } catch (error) {
    throw new FatalError(`can't listen on ${host}:${port}: ${reasonOf(error)}. Set HOST and PORT to an address of this machine and a free port`)
  }
}

/**
 * "localhost" is often two addresses, 127.0.0.1 and ::1, of which a server listens on the first. On any other a listener of its own
 * takes connections for it; where that can't be had, the first must do.
 */
async function listenBeside (server: FastifyInstance, options: FastifyListenOptions): Promise<Server[]> {
  const main = server.server.address()
  if (main === null || typeof main === 'string') return []
  const others = (await lookup('localhost', { all: true })).filter(({ address }) => address !== main.address)
  return others.map(({ address }) => {
    const beside = createServer({ noDelay: true, allowHalfOpen: true }, (socket) => server.server.emit('connection', socket))
    beside.maxConnections = server.server.maxConnections
    beside.on('error', () => {})
    return beside.listen({ ...options, host: address, port: main.port })
  })
}

/** Stops accepting, waits for the requests in hand, and at the deadline closes what is still open. */
async function closeServer (server: FastifyInstance, deadline: number): Promise<void> {
  const timer = setTimeout(() => server.server.closeAllConnections(), deadline - performance.now())
  // What becomes idle once its reply is out would otherwise stay for KEEP_ALIVE_TIMEOUT_MS.
  const idle = setInterval(() => server.server.closeIdleConnections(), idleCheckMs)
  await server.close()
  clearInterval(idle)
  clearTimeout(timer)
}

/** @returns the exit code */
async function saveUnsent (left: readonly Batch[], dir: string, producer: string, origin: Origin, logger: Logger): Promise<number> {
  if (left.length === 0) return 0
  const what = `${left.length} batches (${left.reduce((sum, { increments }) => sum + increments, 0)} increments)`
  try {
    const path = await writeSpool(dir, producer, origin, left.map(({ element }) => element))
    logger.warn(`${what} are not known to be in the queue or stored: they wait in ${path} and are pushed at the next start`)
    return 0
  } catch (error) {
    logger.fatal(`${what} are lost: they could neither be pushed nor written to ${dir} (${reasonOf(error)})`)
    return exitCode.unsent
  }
}

function register (registry: Registry, flusher: Flusher, queue: ProducerQueue, requests: ReadonlyMap<number, number>): void {
  counter(registry, 'gearbox_requests_total', 'Replies by status', () => requests, 'status')
  counter(registry, 'gearbox_increments_total', 'Increments accepted', () => flusher.counts.increments)
  counter(registry, 'gearbox_answered_requests_total', 'Requests to count that were answered with 2xx', () => flusher.answered.requests)
  counter(registry, 'gearbox_answered_increments_total', 'Increments in requests that were answered with 2xx', () => flusher.answered.increments)
  counter(registry, 'gearbox_batches_pushed_total', 'Batches that the queue took, replays included', () => flusher.counts.pushed)
  counter(registry, 'gearbox_push_retries_total', 'Attempts to push that failed', () => flusher.counts.retries)
  counter(registry, 'gearbox_window_trimmed_total', 'Batches that only the queue keeps, as too much waits to be stored', () => flusher.counts.trimmed)
  counter(registry, 'gearbox_window_replays_total', 'Times that all unstored batches were pushed again', () => flusher.counts.replays)
  counter(registry, 'gearbox_window_refills_total', 'Batches that the queue lost and that were pushed again', () => flusher.counts.refilled)
  counter(registry, 'gearbox_set_aside_total', 'Entries that were promised (2xx) and could not be applied', () => flusher.counts.setAside)
  gauge(registry, 'gearbox_pending_keys', 'Keys that are in no batch yet', 'sum', () => flusher.pendingKeys)
  gauge(registry, 'gearbox_unstored_batches', 'Batches that are not known to be stored', 'sum', () => flusher.unstoredBatches)
  let length = 0
  gauge(registry, 'gearbox_queue_length', 'Batches waiting in the queue', 'max', async () => {
    await Promise.race([queue.length().then((found) => { length = found }), delay(lengthTimeoutMs, undefined, { ref: false })]).catch(() => {})
    return length
  })
  gauge(registry, 'gearbox_queue_durable', '1 if the queue keeps what was pushed through its own death', 'min', () => Number(queue.durable))
  gauge(registry, 'gearbox_lag_seconds', 'Age of the oldest increment that is not stored', 'max', () => flusher.lagSeconds)
}

/** What a stop waits for first: by then those without a request in progress are closed. */
function countConnections (registry: Registry, servers: readonly Server[], limit: ConnectionLimit): void {
  counter(registry, 'gearbox_connections_dropped_total', 'Connections closed on arrival, as there were too many', () => limit.dropped, 'reason')
  gauge(registry, 'gearbox_connections', 'Open connections', 'sum', async () => {
    const counts = await Promise.all(servers.map(async (server) => await promisify(server.getConnections.bind(server))()))
    return counts.reduce((sum, count) => sum + count, 0)
  })
}

/** What `npm run verify` compares with queue and database. */
function registerProducer (registry: Registry, flusher: Flusher, producer: string): void {
  const of = (read: () => number) => () => new Map([[producer, read()]])
  labelledGauge(registry, 'gearbox_producer_increments', 'Increments that a living worker has accepted', 'producer', of(() => flusher.counts.increments))
  labelledGauge(registry, 'gearbox_producer_pending_increments', 'Of those, in no batch yet', 'producer', of(() => flusher.onTheWay.pending))
  labelledGauge(registry, 'gearbox_producer_window_increments', 'Of those, in batches that are not known to be in the queue', 'producer', of(() => flusher.onTheWay.window))
}

if (import.meta.main) await runCommand(command)
