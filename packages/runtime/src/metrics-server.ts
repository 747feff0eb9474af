// /metrics on a port that belongs to one process alone, so that each scrape is of the same one: of a consumer or web worker that runs
// by itself, or of `npm start` with all its processes. What every metrics port must do (keys, hosts, limits) is done here.
import type { FastifyInstance } from 'fastify'
import { ApiKeys } from './api-keys.ts'
import type { Config } from './config.ts'
import { FatalError, reasonOf } from './errors.ts'
import { Hosts } from './hosts.ts'
import type { Logger } from './logger.ts'
import { metricsContentType } from './metrics.ts'

/** Prometheus keeps one connection open; a person who looks opens a few. */
const connectionsMax = 100

/** How often Node looks for clients that are over their time. */
const timeoutCheckMs = 500

export interface MetricsServer {
  /** Where it listens: `http://HOST:PORT`. */
  readonly address: string
  /** Stops listening and closes every connection. */
  close: () => Promise<void>
}

/**
 * Listens on HOST and METRICS_PORT. It asks for a Host of ours or, with API_KEYS set, for a key that may read, as the workers do.
 * @param read the metrics as Prometheus text
 * @returns undefined where METRICS_PORT is unset
 * @throws FatalError if it can't listen
 */
export async function serveMetrics (config: Config, read: () => Promise<string>, logger: Logger): Promise<MetricsServer | undefined> {
  if (config.metricsPort === undefined) return undefined
  const app = await build(config, read)
  try {
    const address = await app.listen({ host: config.host, port: config.metricsPort })
    logger.info(`metrics at ${address}/metrics`)
    return { address, close: async () => { await app.close() } }
  } catch (error) {
    throw new FatalError(`metrics can't be served on ${config.host}:${config.metricsPort}: ${reasonOf(error)}. ` +
      'Set METRICS_PORT to a free port; every process needs its own')
  }
}

async function build (config: Config, read: () => Promise<string>): Promise<FastifyInstance> {
  // Loaded only where somebody scrapes: a consumer has no other HTTP.
  const { default: fastify } = await import('fastify')
  const app = fastify({
    requestTimeout: config.requestTimeoutMs,
    http: { headersTimeout: config.headersTimeoutMs, connectionsCheckingInterval: timeoutCheckMs },
    // Nothing on this port is worth waiting for when the process stops.
    forceCloseConnections: true,
  })
  app.server.maxConnections = connectionsMax
  const [hosts, apiKeys] = [new Hosts(config), new ApiKeys(config.apiKeys)]
  app.addHook('onRequest', async ({ raw: { url, headers } }, reply) => {
    const refusal = hosts.refusal({ url, host: headers.host }) ?? apiKeys.refusal(headers.authorization, 'read')
    if (refusal === undefined) return
    if (refusal.challenge !== undefined) reply.header('www-authenticate', refusal.challenge)
    const { statusCode, code, message } = refusal
    throw Object.assign(new Error(message), { statusCode, code })
  })
  app.get('/metrics', async (_request, reply) => {
    reply.type(metricsContentType)
    return await read()
  })
  app.setNotFoundHandler(async (_request, reply) => {
    reply.code(404)
    return { statusCode: 404, code: 'GBX_NOT_FOUND', error: 'Not Found', message: 'not found; this port has GET /metrics only' }
  })
  return app
}
