// The HTTP edge: Fastify with its limits, its errors in one shape, and the routes. It is built apart from listening.
import { Server, type RequestListener, type ServerOptions as HttpOptions } from 'node:http'
import cors from '@fastify/cors'
import swagger from '@fastify/swagger'
import fastify, {
  LogController, type FastifyBaseLogger, type FastifyError, type FastifyInstance, type FastifyReply, type FastifyRequest,
} from 'fastify'
import { ApiKeys } from '@gearbox/runtime/access/api-keys.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import { Hosts } from '@gearbox/runtime/access/hosts.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import { Origins } from '@gearbox/runtime/access/origins.ts'
import { version } from '@gearbox/runtime/version.ts'
import { countHosts, refuseCaller, refuseHost } from './http/access.ts'
import type { AdmitOptions } from './increment/admit.ts'
import { describeRoute } from './http/docs/document.ts'
import { RequestError, type ErrorCode } from './http/errors.ts'
import { FastLaneServer, type FastLaneOptions } from './fast-lane/server.ts'
import { keyBytesMax } from './increment/form.ts'
import { describeInvalid } from './http/query.ts'
import { Refusals } from './http/refusals.ts'
import { docsRoutes } from './http/docs/route.ts'
import { Routing } from './http/routing.ts'
import { incrementRoutes } from './increment/route.ts'
import { healthRoutes } from './http/health.ts'
import { metricsRoutes } from './http/metrics.ts'
import { totalsRoutes } from './totals/route.ts'
import type { Totals } from './totals/reads.ts'

export interface ServerOptions {
  readonly config: Config
  readonly logger: Logger
  readonly flusher: AdmitOptions['flusher']
  readonly queue: AdmitOptions['queue']
  readonly totals: Totals
  /** All figures as Prometheus text. */
  readonly metrics: () => Promise<string>
  /** Why the consumer of this installation exited for good; undefined while there is one, or none is known of. */
  readonly consumerExited?: () => string | undefined
  /** Counted by status for every reply. */
  readonly requests: Map<number, number>
  /** Whether a stop was asked for that has not begun. */
  readonly draining?: () => boolean
}

/** How often Node looks for clients that are over their time; its own default of 30 s would let a slow one sit for that long. */
const timeoutCheckMs = 500

/** A key of 256 bytes, each written as %XX. */
const paramCharactersMax = 3 * keyBytesMax

/** Who may come in, as both paths ask for it. */
type Access = Pick<FastLaneOptions, 'hosts' | 'apiKeys'>

const bearer = {
  type: 'http',
  scheme: 'bearer',
  description: 'One of API_KEYS. `count:KEY` may count, `read:KEY` may read, `admin:KEY` may do everything, a key alone counts and reads.',
} as const

/** Builds the server. Nothing listens yet. */
export async function buildServer (options: ServerOptions): Promise<FastifyInstance> {
  const { config } = options
  const access: Access = { hosts: new Hosts(config), apiKeys: new ApiKeys(config.apiKeys) }
  const { hosts, apiKeys } = access
  const origins = new Origins(config.corsOrigins, hosts)
  const count = (statusCode: number): void => {
    options.requests.set(statusCode, (options.requests.get(statusCode) ?? 0) + 1)
  }
  const refusals = new Refusals(count)
  // What Fastify has to say of a normal day, our own lines say better.
  const loggerInstance: FastifyBaseLogger = options.logger.child({}, { level: options.logger.isLevelEnabled('warn') ? 'warn' : options.logger.level })
  const app = fastify({
    loggerInstance,
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: config.bodyBytesMax,
    serverFactory: (listener) => createServer(refusals.guard(listener), options, access, count),
    forceCloseConnections: 'idle',
    // Its own 503 has neither our shape nor Retry-After.
    return503OnClosing: false,
    routerOptions: { maxParamLength: paramCharactersMax },
    clientErrorHandler: (error, socket) => refusals.refuse(error, socket),
    // These come before all hooks.
    frameworkErrors: (error, request, reply) => {
      sendError(refuseHost(hosts, request) ?? refuseCaller(apiKeys, request, reply) ?? error, reply)
    },
  })
  refusals.listen(app.server, (request) => refuseHost(hosts, { raw: request }))

  let stopping = false
  app.addHook('preClose', (done) => {
    stopping = true
    if (app.server instanceof FastLaneServer) app.server.stop()
    done()
  })
  app.addHook('onRequest', (request, reply, done) => {
    const { raw } = request
    // Nothing is read behind it (refusals.ts).
    if (raw.headers.upgrade !== undefined) reply.header('connection', 'close')
    const refusal = refuseHost(hosts, request)
    const hostHeaders = countHosts(raw)
    if (refusal !== undefined) done(refusal)
    else if (stopping) done(new RequestError('GBX_STOPPING', 'this worker is stopping; send it again'))
    else if (hostHeaders > 1 || (hostHeaders === 0 && raw.httpVersion !== '1.0')) {
      done(new RequestError('GBX_BAD_REQUEST', 'an HTTP/1.1 request needs one Host header'))
    } else done()
  })
  app.addHook('preHandler', (request, reply, done) => {
    if (refusals.isRead(request.raw)) done()
    else reply.hijack()
  })
  app.addHook('onResponse', (_request, reply, done) => {
    count(reply.statusCode)
    done()
  })
  app.setErrorHandler((error, request, reply) => {
    // Fastify closes behind a body that it refuses.
    if (reply.getHeader('connection') === 'close') refusals.stopBehind(request.raw)
    sendError(error, reply, request)
  })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/x-www-form-urlencoded', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))

  await app.register(swagger, {
    transform: describeRoute,
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Gearbox', version, description: 'Sums key=int increments exactly into SQLite. A 204 says that the ack level asked for was reached, a 202 that the increment is in memory only; 4xx and 503 say that nothing was counted.' },
      ...(config.basePath === '' ? {} : { servers: [{ url: config.basePath }] }),
      ...(config.apiKeys.length > 0
        ? { components: { securitySchemes: { bearer } }, security: [{ bearer: [] }] }
        : {}),
    },
  })
  const routing = new Routing(app, config.basePath)
  if (config.corsOrigins.length > 0) {
    // An OPTIONS that is no preflight is answered like any other method that there is not.
    app.addHook('onRequest', (request, reply, done) => {
      const { origin, 'access-control-request-method': method } = request.headers
      done(request.method === 'OPTIONS' && (origin === undefined || method === undefined) ? routing.refuse(request, reply) : undefined)
    })
    await app.register(cors, {
      delegator: ({ method, headers: { origin } }, done) => {
        const listed = origin !== undefined && origins.isListed(origin)
        done(null, {
          // A preflight is answered in any case; without Access-Control-Allow-Origin that is a refusal.
          origin: listed ? (origins.any ? '*' : true) : (method === 'OPTIONS' ? [] : false),
          methods: ['GET', 'HEAD', 'POST'],
          // Pages can't read it otherwise.
          exposedHeaders: ['Retry-After'],
        })
      },
    })
  }
  app.addHook('onRequest', (request, reply, done) => done(refuseCaller(apiKeys, request, reply)))
  app.addHook('onRequest', (request, reply, done) => { done(routing.check(request, reply)) })
  await app.register(docsRoutes, { path: `${config.basePath}/docs` })
  const prefix = config.basePath
  await app.register(incrementRoutes, { prefix, limits: config, origins, flusher: options.flusher, queue: options.queue })
  await app.register(totalsRoutes, { prefix, totals: options.totals })
  await app.register(healthRoutes, { prefix, flusher: options.flusher, queue: options.queue, draining: options.draining, consumerExited: options.consumerExited })
  await app.register(metricsRoutes, { prefix, metrics: options.metrics })
  app.setNotFoundHandler((request, reply) => { throw routing.refuse(request, reply) })
  await app.ready()
  return app
}

/** Node's HTTP server, with the fast lane in front of it if that is on. */
function createServer (
  listener: RequestListener, { config, flusher, queue, logger }: ServerOptions, access: Access, replied: (statusCode: number) => void
): Server {
  const http: HttpOptions = {
    // A missing Host is refused in our own shape.
    requireHostHeader: false,
    headersTimeout: config.headersTimeoutMs,
    requestTimeout: config.requestTimeoutMs,
    keepAliveTimeout: config.keepAliveTimeoutMs,
    connectionsCheckingInterval: timeoutCheckMs,
  }
  const toKnown = (error: unknown): RequestError => {
    const known = toRequestError(error)
    if (known.statusCode === 500) logger.error({ err: error }, 'a request failed')
    return known
  }
  const server = config.fastLane === 'on'
    ? new FastLaneServer(http, listener, { ...access, limits: config, flusher, queue, replied, toRequestError: toKnown })
    : new Server(http, listener)
  server.maxConnections = config.connectionsMax
  // A client may say that it sends nothing more and still read its reply (`nc -N`). Node would close behind a request that may
  // have counted, without an answer; its types do not name the switch.
  Object.assign(server, { httpAllowHalfOpen: true })
  // Without any progress, in either direction: nobody else cuts off who does not read replies. One that is held takes ACK_TIMEOUT_MS.
  return server.setTimeout(config.ackTimeoutMs + config.requestTimeoutMs)
}

const codeOfStatus: { readonly [status: number]: ErrorCode } = {
  400: 'GBX_BAD_REQUEST',
  401: 'GBX_UNAUTHORIZED',
  // A path out of the documentation's own directory.
  403: 'GBX_NOT_FOUND',
  404: 'GBX_NOT_FOUND',
  408: 'GBX_REQUEST_TIMEOUT',
  413: 'GBX_BODY_TOO_LARGE',
  // A key in the path that is longer than any key.
  414: 'GBX_NOT_FOUND',
  415: 'GBX_UNSUPPORTED_MEDIA_TYPE',
  431: 'GBX_HEADERS_TOO_LARGE',
  503: 'GBX_STOPPING',
}

const messageOfCode: { readonly [code: string]: (error: Error) => string } = {
  GBX_BAD_REQUEST: () => 'the request can not be read; is its URL encoded right?',
  GBX_NOT_FOUND: () => 'not found',
  GBX_BODY_TOO_LARGE: () => 'the body is larger than BODY_BYTES_MAX allows; send it in several requests',
  GBX_UNSUPPORTED_MEDIA_TYPE: () => 'the Content-Type must be application/x-www-form-urlencoded, in UTF-8 and without Content-Encoding',
}

/** Any error as one of ours. @param query what was sent, for a message about it */
function toRequestError (error: unknown, query?: unknown): RequestError {
  if (error instanceof RequestError) return error
  if (!(error instanceof Error)) return new RequestError('GBX_INTERNAL', 'something went wrong; the log says what')
  if (isInvalid(error)) return new RequestError('GBX_BAD_QUERY', describeInvalid(error.validation, query))
  const code = 'statusCode' in error && typeof error.statusCode === 'number' ? codeOfStatus[error.statusCode] : undefined
  if (code === undefined) return new RequestError('GBX_INTERNAL', 'something went wrong; the log says what')
  return new RequestError(code, messageOfCode[code]?.(error) ?? error.message.slice(0, 200))
}

function isInvalid (error: Error): error is Error & Required<Pick<FastifyError, 'validation'>> {
  return 'validation' in error && Array.isArray(error.validation)
}

function sendError (error: unknown, reply: FastifyReply, request?: FastifyRequest): void {
  const known = toRequestError(error, request?.query)
  if (known.statusCode === 500) request?.log.error({ err: error }, 'a request failed')
  if (known.statusCode === 503) reply.header('retry-after', '1')
  reply.code(known.statusCode).type('application/json; charset=utf-8').send(JSON.stringify(known))
}
