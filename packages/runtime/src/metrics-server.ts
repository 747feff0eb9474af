// /metrics on a port that belongs to one process alone, so that each scrape is of the same one: of a consumer or web worker that runs
// by itself, or of `npm start` with all its processes. What every metrics port must do (keys, hosts, limits) is done here.
import type { FastifyInstance } from 'fastify'
import { ApiKeys } from './access/api-keys.ts'
import type { Config } from './config.ts'
import { FatalError, reasonOf } from './errors.ts'
import { Hosts } from './access/hosts.ts'
import type { Logger } from './log/logger.ts'
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
  // As the workers do: whatever is asked for that is not here is refused, not ignored.
  app.addHook('onRequest', async (request, reply) => {
    const [path, ...query] = request.url.replace(/^https?:\/\/[^/?#]*/i, '').split(/[?#]/)
    if (path !== '/metrics') {
      throw Object.assign(new Error('not found; this port has GET /metrics only'), { statusCode: 404, code: 'GBX_NOT_FOUND' })
    }
    if (request.is404) {
      reply.header('allow', 'GET, HEAD')
      throw Object.assign(new Error('method not allowed; use GET or HEAD'), { statusCode: 405, code: 'GBX_METHOD_NOT_ALLOWED' })
    }
    const [unknown] = new URLSearchParams(query.join('&')).keys()
    if (unknown === undefined) return
    const message = `unknown query parameter ${quote(unknown)}; there are none here`
    throw Object.assign(new Error(message), { statusCode: 400, code: 'GBX_BAD_QUERY' })
  })
  return app
}

/** Input as it may be shown: in visible ASCII, and at most 64 characters of it. */
function quote (text: string): string {
  const visible = JSON.stringify(text).slice(1, -1).replace(/[^ -~]/g, '?')
  return `"${visible.length > 64 ? `${visible.slice(0, 63)}…` : visible}"`
}
