// The HTTP edge: Fastify with its limits, its errors in one shape, and the routes. It is built apart from listening.
import { Server, STATUS_CODES, type IncomingMessage, type RequestListener, type ServerOptions as HttpOptions, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import bearerAuth from '@fastify/bearer-auth'
import cors from '@fastify/cors'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import fastify, {
  LogController, type FastifyBaseLogger, type FastifyError, type FastifyInstance, type FastifyReply, type FastifyRequest,
} from 'fastify'
import type { Config } from '@gearbox/runtime/config.ts'
import type { Logger } from '@gearbox/runtime/logger.ts'
import type { CountOptions } from './count.ts'
import { RequestError, type ErrorCode } from './errors.ts'
import { FastLaneServer } from './fast-lane.ts'
import { keyBytesMax } from './form.ts'
import { describeInvalid } from './query.ts'
import { Routing } from './routing.ts'
import { incrementRoutes } from './routes/increment.ts'
import { healthRoutes } from './routes/health.ts'
import { metricsRoutes } from './routes/metrics.ts'
import { totalsRoutes } from './routes/totals.ts'
import type { Totals } from './totals.ts'

export interface ServerOptions {
  readonly config: Config
  readonly logger: Logger
  readonly flusher: CountOptions['flusher']
  readonly queue: CountOptions['queue']
  readonly totals: Totals
  /** All figures as Prometheus text. */
  readonly metrics: () => Promise<string>
  /** Counted by status for every reply. */
  readonly requests: Map<number, number>
}

/** How often Node looks for clients that are over their time; its own default of 30 s would let a slow one sit for that long. */
const timeoutCheckMs = 500

/** A key of 256 bytes, each written as %XX. */
const paramCharactersMax = 3 * keyBytesMax

/** Builds the server. Nothing listens yet. */
export async function buildServer (options: ServerOptions): Promise<FastifyInstance> {
  const { config } = options
  /** The last reply of each connection, sent or due. */
  const replies = new WeakMap<Socket, ServerResponse>()
  const count = (statusCode: number | undefined): void => {
    if (statusCode === undefined) return
    options.requests.set(statusCode, (options.requests.get(statusCode) ?? 0) + 1)
  }
  // What Fastify has to say of a normal day, our own lines say better.
  const loggerInstance: FastifyBaseLogger = options.logger.child({}, { level: options.logger.isLevelEnabled('warn') ? 'warn' : options.logger.level })
  const app = fastify({
    loggerInstance,
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: config.bodyBytesMax,
    serverFactory: (listener) => createServer(listener, options, count),
    forceCloseConnections: 'idle',
    // Its own 503 has neither our shape nor Retry-After.
    return503OnClosing: false,
    routerOptions: { maxParamLength: paramCharactersMax },
    clientErrorHandler: (error, socket) => { count(refuseUnparsed(error, socket, replies.get(socket))) },
    frameworkErrors: (error, _request, reply) => { sendError(error, reply) },
  })
  // Nobody offers a tunnel, and Node would close at once, replies due or not.
  app.server.on('connect', (_request: IncomingMessage, socket: Socket) => {
    const last = replies.get(socket)
    if (last === undefined || last.writableFinished) socket.destroySoon()
    else last.once('finish', () => socket.destroySoon())
  })
  app.server.on('checkExpectation', (request: IncomingMessage, response: ServerResponse) => {
    replies.set(request.socket, response)
    count(refuseExpectation(response))
  })

  let stopping = false
  app.addHook('preClose', (done) => {
    stopping = true
    if (app.server instanceof FastLaneServer) app.server.stop()
    done()
  })
  app.addHook('onRequest', ({ raw }, reply, done) => {
    replies.set(raw.socket, reply.raw)
    // Node drops what came together with an Upgrade and goes on behind it: later replies would seem to answer what was dropped.
    if (raw.headers.upgrade !== undefined) reply.header('connection', 'close')
    if (stopping) done(new RequestError('GBX_STOPPING', 'this worker is stopping; send it again'))
    else if (raw.headers.host === undefined && raw.httpVersion !== '1.0') done(new RequestError('GBX_BAD_REQUEST', 'an HTTP/1.1 request needs a Host header'))
    else done()
  })
  app.addHook('onResponse', (_request, reply, done) => {
    count(reply.statusCode)
    done()
  })
  app.setErrorHandler((error, request, reply) => { sendError(error, reply, request) })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/x-www-form-urlencoded', { parseAs: 'buffer' }, (_request, body, done) => done(null, body))

  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Gearbox', version: '0.1.0', description: 'Sums key=int increments exactly into SQLite. A 204 says that the ack level asked for was reached, a 202 that the increment is in memory only; 4xx and 503 say that nothing was counted.' },
      ...(config.apiKeys.length > 0
        ? { components: { securitySchemes: { bearer: { type: 'http', scheme: 'bearer' } } }, security: [{ bearer: [] }] }
        : {}),
    },
  })
  const routing = new Routing(app)
  if (config.corsOrigins.length > 0) {
    // An OPTIONS that is no preflight is answered like any other method that there is not.
    app.addHook('onRequest', (request, reply, done) => {
      const { origin, 'access-control-request-method': method } = request.headers
      done(request.method === 'OPTIONS' && (origin === undefined || method === undefined) ? routing.refuse(request, reply) : undefined)
    })
    await app.register(cors, { origin: [...config.corsOrigins], methods: ['GET', 'HEAD', 'POST'] })
  }
  if (config.apiKeys.length > 0) await requireBearer(app, config.apiKeys)
  app.addHook('onRequest', (request, reply, done) => { done(routing.check(request, reply)) })
  await app.register(swaggerUi, { routePrefix: '/docs' })
  await app.register(incrementRoutes, { limits: config, corsOrigins: config.corsOrigins, flusher: options.flusher, queue: options.queue })
  await app.register(totalsRoutes, { totals: options.totals })
  await app.register(healthRoutes, { flusher: options.flusher, queue: options.queue })
  await app.register(metricsRoutes, { metrics: options.metrics })
  app.setNotFoundHandler((request, reply) => { throw routing.refuse(request, reply) })
  await app.ready()
  return app
}

/** Node's HTTP server, with the fast lane in front of it if that is on. */
function createServer (listener: RequestListener, { config, flusher, queue, logger }: ServerOptions, replied: (statusCode: number) => void): Server {
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
    ? new FastLaneServer(http, listener, { limits: config, flusher, queue, replied, toRequestError: toKnown })
    : new Server(http, listener)
  server.maxConnections = config.connectionsMax
  // Without any progress, in either direction: nobody else cuts off who does not read replies. One that is held takes ACK_TIMEOUT_MS.
  return server.setTimeout(config.ackTimeoutMs + config.requestTimeoutMs)
}

/** Everything but the health checks asks for one of the keys; a preflight has no way to send one. */
async function requireBearer (app: FastifyInstance, apiKeys: readonly string[]): Promise<void> {
  await app.register(bearerAuth, { keys: new Set(apiKeys), addHook: false, specCompliance: 'rfc6749', verifyErrorLogLevel: 'debug' })
  const open = ['/healthz', '/readyz']
  app.addHook('onRequest', (request: FastifyRequest, reply: FastifyReply, done: (error?: Error) => void) => {
    if (open.includes(request.routeOptions.url ?? '')) {
      done()
      return
    }
    app.verifyBearerAuth?.(request, reply, (error?: Error) => {
      if (error === undefined || error === null) return done()
      reply.header('www-authenticate', 'Bearer')
      done(new RequestError('GBX_UNAUTHORIZED', 'send one of the API keys as "Authorization: Bearer KEY"'))
    })
  })
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
  GBX_NOT_FOUND: () => 'not found; see /docs for the available endpoints',
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

/**
 * What Node's parser refuses never becomes a request: its reply is written by hand.
 * @param last the connection's last reply, sent or due
 * @returns the status that was written, if any
 */
function refuseUnparsed (error: NodeJS.ErrnoException, socket: Socket, last: ServerResponse | undefined): number | undefined {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy()
    return undefined
  }
  const answered = last === undefined || last.req.complete || last.writableEnded
  if (answered && last?.writableFinished === false) {
    // Replies that are due belong to whole requests, which may have been counted: none of them must get this 4xx.
    last.once('finish', () => socket.destroySoon())
    return undefined
  }
  if (answered && last?.req.complete === false) {
    // The request was answered before all of it was there; this would be a second answer.
    socket.destroy()
    return undefined
  }
  const refusal = error.code === 'HPE_HEADER_OVERFLOW'
    ? new RequestError('GBX_HEADERS_TOO_LARGE', 'the headers are larger than 16 KiB')
    : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
      ? new RequestError('GBX_REQUEST_TIMEOUT', 'the request did not arrive in time')
      : new RequestError('GBX_BAD_REQUEST', 'this is not an HTTP/1.1 request')
  if (!answered) {
    if (last.headersSent) {
      last.once('finish', () => socket.destroySoon())
      return undefined
    }
    // Whoever reads its body refuses it, in its turn behind the replies that are due before it. With API_KEYS its head may still be looked at.
    last.setHeader('connection', 'close')
    const refuse = (): void => { last.req.emit('error', refusal) }
    const refuseReader = (event: string | symbol): void => {
      if (event !== 'error') return
      last.req.off('newListener', refuseReader)
      process.nextTick(refuse)
    }
    if (last.req.listenerCount('error') > 0) refuse()
    else last.req.on('newListener', refuseReader)
    return undefined
  }
  const body = JSON.stringify(refusal)
  socket.end(`HTTP/1.1 ${refusal.statusCode} ${STATUS_CODES[refusal.statusCode]}\r\nContent-Type: application/json; charset=utf-8\r\n` +
    `Content-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`)
  return refusal.statusCode
}

/** An Expect other than 100-continue, which Node answers by itself. */
function refuseExpectation (response: ServerResponse): number {
  const refusal = new RequestError('GBX_EXPECTATION_FAILED', 'only "Expect: 100-continue" can be met')
  response.writeHead(refusal.statusCode, { 'content-type': 'application/json; charset=utf-8' }).end(JSON.stringify(refusal))
  return refusal.statusCode
}
