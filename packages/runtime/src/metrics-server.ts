// /metrics on a port that belongs to one process alone, so that each scrape is of the same one: of a consumer or web
// worker that runs by itself, or of `npm start` with all its processes. Limits, keys, hosts and refusals are those of
// the workers' port.
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { ApiKeys } from './access/api-keys.ts'
import { Hosts } from './access/hosts.ts'
import type { Config } from './config.ts'
import { FatalError, reasonOf } from './errors.ts'
import { sendError } from './http/error-reply.ts'
import { toRequestError } from './http/known-errors.ts'
import { Routing } from './http/routing.ts'
import type { Logger } from './log/logger.ts'
import { metricsContentType } from './metrics.ts'

/** Prometheus keeps one connection open; a browser opens a few. */
const connectionsMax = 100

/** How often Node checks which clients are over their time. */
const timeoutCheckMs = 500

/** The settings of a metrics port. */
export type MetricsConfig = Pick<Config,
  'host' | 'metricsPort' | 'apiKeys' | 'hostsAllowed' | 'headersTimeoutMs' | 'requestTimeoutMs'>

/** A metrics port that listens. */
export interface MetricsServer {
  /** Where it listens: `http://HOST:PORT`. */
  readonly address: string
  /** Stops listening and closes every connection. */
  close: () => Promise<void>
}

/**
 * Listens on HOST and METRICS_PORT. Like the workers' port it requires an allowed Host or, with API_KEYS set, a key
 * that may read.
 * @param read the metrics as Prometheus text
 * @returns undefined where METRICS_PORT is unset
 * @throws FatalError if it can't listen
 */
export async function serveMetrics (
  config: MetricsConfig, read: () => Promise<string>, logger: Logger
): Promise<MetricsServer | undefined> {
  if (config.metricsPort === undefined) return undefined
  const app = await build(config, read, logger)
  try {
    const address = await app.listen({ host: config.host, port: config.metricsPort })
    logger.info(`metrics at ${address}/metrics`)
    return { address, close: async () => { await app.close() } }
  } catch (error) {
    throw new FatalError(`metrics can't be served on ${config.host}:${config.metricsPort}: ${reasonOf(error)}. ` +
      'Set METRICS_PORT to a free port; every process needs its own')
  }
}

async function build (config: MetricsConfig, read: () => Promise<string>, logger: Logger): Promise<FastifyInstance> {
  // Loaded only where METRICS_PORT is set: a consumer has no other HTTP.
  const { default: fastify } = await import('fastify')
  const refuse = (error: unknown, request: FastifyRequest, reply: FastifyReply): void => {
    const known = toRequestError(error, request)
    if (known.statusCode === 500) logger.error({ err: error }, 'a scrape failed')
    sendError(reply, known)
  }
  const app = fastify({
    requestTimeout: config.requestTimeoutMs,
    http: { headersTimeout: config.headersTimeoutMs, connectionsCheckingInterval: timeoutCheckMs },
    // Nothing on this port is worth waiting for when the process stops.
    forceCloseConnections: true,
    // These come before all hooks.
    frameworkErrors: refuse,
  })
  app.server.maxConnections = connectionsMax
  app.setErrorHandler(refuse)
  const [hosts, apiKeys] = [new Hosts(config), new ApiKeys(config.apiKeys)]
  const routing = new Routing(app, 'not found; this port has GET /metrics only')
  app.addHook('onRequest', (request, _reply, done) => {
    const { url, headers } = request.raw
    const stranger = hosts.refusal({ url, host: headers.host }) ?? apiKeys.refusal(headers.authorization, 'read')
    done(stranger ?? routing.check(request))
  })
  app.get('/metrics', async (_request, reply) => {
    reply.type(metricsContentType)
    return await read()
  })
  return app
}
