// The HTTP server of a worker: Fastify with its checks, errors and routes, and the fast lane in front of it. main.ts
// builds it and makes it listen.
import { Server, type RequestListener } from 'node:http'
import fastify, { LogController, type FastifyBaseLogger, type FastifyInstance, type FastifyRequest } from 'fastify'
import { keyBytesMax } from '@gearbox/protocol/key.ts'
import { ApiKeys } from '@gearbox/runtime/access/api-keys.ts'
import { Hosts } from '@gearbox/runtime/access/hosts.ts'
import { Origins } from '@gearbox/runtime/access/origins.ts'
import type { TrustProxy } from '@gearbox/runtime/access/trust-proxy.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import { sendError } from '@gearbox/runtime/http/error-reply.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import { toRequestError } from '@gearbox/runtime/http/known-errors.ts'
import { Routing } from '@gearbox/runtime/http/routing.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { FastLaneServer, type FastLaneOptions } from './fast-lane/server.ts'
import { refuseCaller, refuseForRoute, refuseHost } from './http/access.ts'
import { addCors } from './http/cors.ts'
import { addDocument } from './http/docs/document.ts'
import { docsRoutes } from './http/docs/route.ts'
import { healthRoutes } from './http/health.ts'
import { metricsRoutes } from './http/metrics.ts'
import { httpOptions, limitServer, type HttpConfig } from './http/node-server.ts'
import { addHeadCheck, addReplyHooks } from './http/request-checks.ts'
import { UnparsedReplies } from './http/unparsed-replies.ts'
import type { AdmitOptions } from './increment/admit.ts'
import { incrementRoutes } from './increment/route.ts'
import type { Totals } from './totals/reads.ts'
import { registerPlugins, type PluginOptions } from './plugins/register.ts'
import { correctionRoutes } from './totals/corrections.ts'
import { totalsRoutes } from './totals/route.ts'

/** The settings of a server. */
export type ServerConfig = HttpConfig & AdmitOptions['limits'] &
  Pick<Config,
    'host' | 'hostsAllowed' | 'corsOrigins' | 'public' | 'trustProxy' | 'totalsMaxAgeS' | 'bodyBytesMax' |
    'basePath' | 'fastLane'>

/** The parts that a server serves. They are started and stopped by the caller. */
export interface ServerOptions {
  readonly config: ServerConfig
  readonly logger: Logger
  readonly flusher: AdmitOptions['flusher']
  readonly queue: AdmitOptions['queue']
  readonly totals: Totals
  /** All metrics as Prometheus text. */
  readonly metrics: () => Promise<string>
  /** Why the consumer of this installation exited for good; undefined while there is one, or none is known of. */
  readonly consumerExited?: () => string | undefined
  /** Counted by status for every reply. */
  readonly requests: Map<number, number>
  /** The plugins, with what their routes work with besides the server's own parts. */
  readonly plugins?: ServedPlugins
  /** Whether a stop was asked for that has not begun. */
  readonly draining?: () => boolean
}

/** What the routes of plugins work with, besides what the server has. */
export type ServedPlugins =
  Pick<PluginOptions, 'loaded' | 'core' | 'submissions' | 'registry' | 'stopping' | 'producer'>

/** Who may come in, as both paths check it. */
type Access = Pick<FastLaneOptions, 'hosts' | 'apiKeys'>

/** A key of 256 bytes, each written as %XX. */
const paramCharactersMax = 3 * keyBytesMax

/** Builds the server, ready to listen. Its `close` stops accepting and waits for the requests in progress. */
export async function buildServer (options: ServerOptions): Promise<FastifyInstance> {
  const { config } = options
  const hosts = new Hosts(config)
  const apiKeys = new ApiKeys(config.apiKeys)
  const origins = new Origins(config.corsOrigins, hosts)
  const callerRefusal = (request: FastifyRequest): RequestError | undefined =>
    refuseCaller(apiKeys, config.public, request)
  const replied = (statusCode: number): void => {
    options.requests.set(statusCode, (options.requests.get(statusCode) ?? 0) + 1)
  }
  const unparsed = new UnparsedReplies(replied)
  const app = fastify({
    loggerInstance: fastifyLogger(options.logger),
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: config.bodyBytesMax,
    trustProxy: trusted(config.trustProxy),
    serverFactory: (listener) => createServer(unparsed.guard(listener), options, { hosts, apiKeys }, replied),
    forceCloseConnections: 'idle',
    // Its own 503 has neither our shape nor Retry-After.
    return503OnClosing: false,
    routerOptions: { maxParamLength: paramCharactersMax },
    clientErrorHandler: (error, socket) => unparsed.refuse(error, socket),
    // These come before all hooks.
    frameworkErrors: (error, request, reply) => {
      sendError(reply, refuseHost(hosts, request) ?? callerRefusal(request) ?? toRequestError(error))
    },
  })
  unparsed.listen(app.server, (request) => refuseHost(hosts, { raw: request }))
  addHeadCheck(app, hosts, stopFlag(app))
  addReplyHooks(app, unparsed, replied)
  app.setErrorHandler((error, request, reply) => {
    // Fastify closes behind a body that it refuses.
    if (reply.getHeader('connection') === 'close') unparsed.stopBehind(request.raw)
    const known = toRequestError(error, request)
    if (known.statusCode === 500) request.log.error({ err: error }, 'a request failed')
    sendError(reply, known)
  })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/x-www-form-urlencoded', { parseAs: 'buffer' },
    (_request, body, done) => done(null, body))

  await addDocument(app, config)
  const routing = new Routing(app, `not found; see ${config.basePath}/docs for the available endpoints`)
  if (config.corsOrigins.length > 0) await addCors(app, origins, routing)
  app.addHook('onRequest', (request, _reply, done) => done(callerRefusal(request) ?? routing.check(request)))
  app.setNotFoundHandler((request) => { throw routing.refuse(request) })
  await addRoutes(app, options, apiKeys, origins, replied)
  await app.ready()
  return app
}

async function addRoutes (
  app: FastifyInstance, options: ServerOptions, apiKeys: ApiKeys, origins: Origins,
  replied: (statusCode: number) => void
): Promise<void> {
  const { config, flusher, queue, totals, metrics, draining, consumerExited } = options
  const prefix = config.basePath
  await app.register(docsRoutes, { path: `${prefix}/docs` })
  await app.register(incrementRoutes, { prefix, limits: config, origins, flusher, queue })
  await app.register(totalsRoutes, { prefix, totals, maxAgeS: config.totalsMaxAgeS, hasApiKeys: apiKeys.any })
  await app.register(healthRoutes, { prefix, flusher, queue, draining, consumerExited })
  await app.register(metricsRoutes, { prefix, metrics })
  if (options.plugins === undefined) return
  const { submissions } = options.plugins
  await app.register(correctionRoutes, {
    prefix,
    apiKeys: config.apiKeys,
    origins,
    submit: async (correction, how) => await submissions.submit('totals', correction, { ...how, alone: true }),
  })
  const admit = { limits: config, flusher, queue }
  await registerPlugins(app, prefix, {
    ...options.plugins,
    logger: options.logger,
    apiKeys,
    origins,
    replied,
    admit,
    database: totals.plugins,
    fastPost: (path, access, handler) => {
      if (!(app.server instanceof FastLaneServer)) return
      const isCallerAllowed = (authorization: string | undefined): boolean =>
        refuseForRoute(apiKeys, config.public, access, authorization) === undefined
      app.server.addPost(path, apiKeys.any ? isCallerAllowed : undefined, handler)
    },
  })
}

/** As Fastify takes it, whose types know no number of proxies. */
function trusted (trustProxy: TrustProxy): boolean | string[] | ((address: string, hop: number) => boolean) {
  if (typeof trustProxy === 'boolean') return trustProxy
  return typeof trustProxy === 'number' ? (_address, hop) => hop < trustProxy : [...trustProxy]
}

/** What Fastify logs of its usual work, our own lines say better. */
function fastifyLogger (logger: Logger): FastifyBaseLogger {
  return logger.child({}, { level: logger.isLevelEnabled('warn') ? 'warn' : logger.level })
}

/** @returns whether `app.close` was called; from then on the fast lane, too, leaves all requests to Fastify's hooks */
function stopFlag (app: FastifyInstance): () => boolean {
  let stopping = false
  app.addHook('preClose', (done) => {
    stopping = true
    if (app.server instanceof FastLaneServer) app.server.stop()
    done()
  })
  return () => stopping
}

/** Node's HTTP server, with the fast lane in front of it if that is on. */
function createServer (
  listener: RequestListener, options: ServerOptions, access: Access, replied: (statusCode: number) => void
): Server {
  const { config, flusher, queue, logger } = options
  const toKnown = (error: unknown): RequestError => {
    const known = toRequestError(error)
    if (known.statusCode === 500) logger.error({ err: error }, 'a request failed')
    return known
  }
  const lane = { ...access, limits: config, flusher, queue, replied, toRequestError: toKnown }
  const server = config.fastLane === 'on'
    ? new FastLaneServer(httpOptions(config), listener, lane)
    : new Server(httpOptions(config), listener)
  return limitServer(server, config)
}
