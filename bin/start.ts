// `npm start`: everything on this machine. Starts one consumer and then the web workers, and stops them the other way
// round, so that what a worker flushes last still finds its consumer.
import { mkdtempSync, rmSync } from 'node:fs'
import { once } from 'node:events'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { checkRedis, shownUrl } from '@gearbox/queue/redis/connection.ts'
import { allSettings, type Config } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { leave } from '@gearbox/runtime/log/log-output.ts'
import { createLogger, logCrash, type Logger } from '@gearbox/runtime/log/logger.ts'
import { logStats, logStop } from '@gearbox/runtime/metrics.ts'
import { serveMetrics } from '@gearbox/runtime/metrics-server.ts'
import { defineCommand, runCommand } from '@gearbox/runtime/process/command.ts'
import { DatabaseLock } from '@gearbox/runtime/process/database-lock.ts'
import { Parent } from '@gearbox/runtime/process/parent.ts'
import { onStopSignal, sameRequestMs, stopDeadlineMs } from '@gearbox/runtime/process/shutdown.ts'
import { requireEmbedded } from '@gearbox/consumer/ownership.ts'
import { inspectDatabase, isBusy } from '@gearbox/consumer/store/open.ts'

const signalNumbers = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const

/** Bytes of the longest path of a Unix socket that all systems allow, without its file's name. */
const socketDirBytesMax = 90

/** `npm start`. Its child processes read the same environment, so it names every setting. */
export const command = defineCommand({
  name: 'start',
  summary: 'Sums key=int increments into SQLite: web workers, a queue and a consumer on this machine.',
  usage: 'usage: npm start',
  options: {},
  settings: allSettings,
  service: true,
  wouldRun: ({ host, port, basePath, webWorkers, redisUrl, queueName, databasePath }) => ({
    'web workers': `${webWorkers} on http://${host.includes(':') ? `[${host}]` : host}:${port}${basePath}`,
    queue: redisUrl === undefined ? 'embedded' : `${queueName} in ${shownUrl(redisUrl)}`,
    database: databasePath,
  }),
  run: async (_args, config) => await start(config),
})

async function start (config: Config): Promise<number> {
  const logger = createLogger('gearbox', config.logLevel, config.logTransport)
  logCrash(logger)
  const stop = new AbortController()
  listenForSignals(stop, logger)

  refuseDatabase(config)
  const lock = new DatabaseLock(config.databasePath)
  const dir = config.redisUrl === undefined ? makeSocketDir() : undefined
  try {
    await lock.waitForLeaving()
    const port = await findPort(config)
    if (config.redisUrl !== undefined) await requireRedis(config.redisUrl, config.queueName, logger)
    const code = await run(config, port, dir, lock, logger, stop)
    lock.release()
    return code
  } finally {
    if (dir !== undefined) rmSync(dir, { recursive: true, force: true })
  }
}

/** Refuses a database before a lock or anything else is made next to it. @throws FatalError */
function refuseDatabase ({ databasePath, redisUrl }: Config): void {
  try {
    const identity = inspectDatabase(databasePath)
    if (redisUrl === undefined) requireEmbedded(identity, databasePath)
  } catch (error) {
    // The consumer waits until it is not locked any more.
    if (!isBusy(error)) throw error
  }
}

/** Runs all processes until a stop is asked for. @param dir for the embedded queue's socket @returns the exit code */
async function run (
  config: Config, port: number, dir: string | undefined, lock: DatabaseLock, logger: Logger, stop: AbortController
): Promise<number> {
  const address = `http://${config.host.includes(':') ? `[${config.host}]` : config.host}:${port}`
  const url = `${address}${config.basePath}`
  let failed: number | undefined
  const parent = new Parent({
    logger,
    onChange: (pids) => lock.record(address, pids),
    onRefused: (name, code) => {
      // With Redis the workers' batches reach whichever consumer has superseded it; embedded ones would have nowhere to
      // go.
      if (config.redisUrl !== undefined && running) {
        const reason = `${name} exited and will not be restarted`
        logger.error(`${reason}; web workers keep running (exit code ${code}, its last line says why). ` +
          'Batches wait in Redis; stop and start again')
        parent.announce({ type: 'consumerExited', reason })
        return
      }
      failed = code
      stop.abort()
    },
  })
  let running = false
  const embedded = dir === undefined ? [] : [`--embedded=${join(dir, 'queue')}`]
  const env = { ...process.env, PORT: String(port) }
  const role = async (name: string, module: string, args: readonly string[]): Promise<void> => {
    if (stop.signal.aborted) return
    const path = join(import.meta.dirname, '..', module)
    const started = parent.start({ name, module: path, args: [...embedded, ...args], env })
    const code = await Promise.race([started, once(stop.signal, 'abort').then(() => undefined)])
    // It has said why on stderr.
    if (code !== undefined && !stop.signal.aborted) {
      failed = code
      stop.abort()
    }
  }

  const metricsServer = await serveMetrics(config, async () => await parent.scrape(), logger)
  await role('consumer', 'apps/consumer/src/main.ts', [])
  await Promise.all(Array.from({ length: config.webWorkers }, async (_, i) => {
    await role(`web ${i + 1}`, 'apps/web/src/main.ts', [`--part=web ${i + 1}`])
  }))
  let endStats = (): void => {}
  if (!stop.signal.aborted) {
    running = true
    endStats = logStats(logger, config.statsIntervalMs, async () => await parent.collect())
    const queue = config.redisUrl === undefined ? 'the embedded queue' : `Redis at ${shownUrl(config.redisUrl)}`
    const workers = `${config.webWorkers} web ${config.webWorkers === 1 ? 'worker' : 'workers'}`
    logger.info(`listens on ${url} (${workers}, ${queue})`)
    logger.info(`stores in ${config.databasePath}`)
    logger.info(`try: curl -d 'foo=1&bar=-2&foo=3' ${url}/increment`)
    logger.info(`totals: ${url}/totals, documentation: ${url}/docs`)
    if (!stop.signal.aborted) await once(stop.signal, 'abort')
  }
  endStats()
  const drainMs = failed === undefined ? config.drainMs : 0
  const collect = async (): Promise<object[]> => await parent.collect()
  const stopped = failed === undefined
    ? logStop(logger, String(stop.signal.reason), collect, { drainMs, running: () => parent.running })
    : () => {}
  const webCode = await parent.stop((name) => name !== 'consumer', drainMs)
  const consumerCode = await parent.stop((name) => name === 'consumer')
  await metricsServer?.close()
  stopped()
  return failed ?? Math.max(webCode, consumerCode)
}

/**
 * The first signal asks for a graceful stop. One that comes later than its echo ends this process at once; its children
 * flush and leave by themselves.
 */
function listenForSignals (stop: AbortController, logger: Logger): void {
  let first: number | undefined
  onStopSignal((signal) => {
    first ??= performance.now()
    stop.abort(signal)
    if (performance.now() - first <= sameRequestMs) return
    logger.warn(`ending at once (${signal} again): web workers and consumer finish by themselves, ` +
      `which takes up to ${stopDeadlineMs / 1000} s`)
    leave(128 + signalNumbers[signal])
  })
}

/** A directory for the embedded queue's socket that only this user can enter. */
function makeSocketDir (): string {
  return mkdtempSync(join(Buffer.byteLength(tmpdir()) <= socketDirBytesMax ? tmpdir() : '/tmp', 'gearbox-'))
}

/**
 * Makes sure that nobody listens where the workers will: they share the port, and with a stranger they would do so in
 * silence.
 * @returns the port, chosen by the system if PORT is 0 @throws FatalError
 */
async function findPort ({ host, port }: Config): Promise<number> {
  const server = createServer()
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen({ host, port, exclusive: true }, resolve)
    })
    return (server.address() as AddressInfo).port
  } catch (error) {
    const inUse = error instanceof Error && 'code' in error && error.code === 'EADDRINUSE'
    throw new FatalError(inUse
      ? `port ${port} on ${host} is in use. Stop what listens there, or set PORT to another one`
      : `can't listen on ${host}:${port}: ${reasonOf(error)}. ` +
        'Set HOST and PORT to an address of this machine and a free port')
  } finally {
    await new Promise((resolve) => server.close(resolve))
  }
}

/** Makes sure that Redis can be used. @throws FatalError */
async function requireRedis (url: string, queueName: string, logger: Logger): Promise<void> {
  try {
    await checkRedis(url, queueName, logger)
  } catch (error) {
    throw new FatalError(`Redis at ${shownUrl(url)} can't be used: ${reasonOf(error)}. ` +
      '(Without REDIS_URL everything runs with the embedded queue.)')
  }
}

if (import.meta.main) await runCommand(command)
