// The fast lane: an HTTP server whose connections are served straight from their sockets, as long as they send requests
// of one of two shapes (request-matcher.ts, post-matcher.ts). A connection that sends anything else goes, with all
// bytes unread, to Node's parser and the standard path behind it, and stays there. What an increment comes to is
// decided in increment/admit.ts for both; what another request comes to, its plugin decides.
import { Server, type RequestListener, type ServerOptions } from 'node:http'
import type { ApiKeys } from '@gearbox/runtime/access/api-keys.ts'
import type { Hosts } from '@gearbox/runtime/access/hosts.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import type { FastPostHandler } from '@gearbox/runtime/plugin.ts'
import { Connection, idleCheckMs, reusedRequest, type Lane, type ServeOptions } from './connection.ts'
import { FastPosts } from './posts.ts'
import { ReplyTexts, WritePass } from './replies.ts'
import { RequestMatcher } from './request-matcher.ts'
import { interceptConnections } from './socket.ts'

/** What the fast lane needs of the worker. */
export interface FastLaneOptions extends ServeOptions {
  readonly limits: ServeOptions['limits'] & Pick<Config, 'basePath' | 'bodyBytesMax' | 'corsOrigins'>
  readonly hosts: Hosts
  readonly apiKeys: ApiKeys
  /** Counts a reply. */
  readonly replied: (statusCode: number) => void
}

/**
 * An HTTP server with the fast lane in front of its parser. It *serves* from its construction on; `stop` makes it
 * *stopping*, in which new requests go to the standard path and pending replies are still written; `close` of `Server`
 * stops accepting as usual.
 */
export class FastLaneServer extends Server {
  readonly #connections = new Set<Connection>()
  readonly #lane: Lane & { readonly options: FastLaneOptions }

  constructor (httpOptions: ServerOptions, listener: RequestListener, options: FastLaneOptions) {
    super(httpOptions, listener)
    const parse = interceptConnections(this, (socket) => { this.#connections.add(new Connection(this.#lane, socket)) })
    this.#lane = {
      server: this,
      options,
      matcher: createMatcher(options),
      posts: new FastPosts(),
      texts: createTexts(options),
      pass: new WritePass(),
      request: reusedRequest(),
      stopping: false,
      onLeave: (connection) => {
        this.#connections.delete(connection)
        parse(connection.socket)
        connection.socket.resume()
      },
      onTruncated: (socket) => { this.emit('clientError', truncated(), socket) },
      onClose: (connection) => { this.#connections.delete(connection) },
    }
    const checking = setInterval(() => {
      for (const connection of this.#connections) connection.checkIdle()
    }, idleCheckMs).unref()
    this.once('close', () => clearInterval(checking))
  }

  /**
   * Has plain requests for `POST {prefix}NAME` answered here.
   * @param prefix with BASE_PATH
   * @param isCallerAllowed whether the Authorization, or its absence, lets its sender in; undefined: all may
   */
  addPost (
    prefix: string, isCallerAllowed: ((authorization: string | undefined) => boolean) | undefined,
    handler: FastPostHandler
  ): void {
    const { hosts } = this.#lane.options
    this.#lane.posts.add({ prefix, isHostAllowed: (host) => hosts.allows(host), isCallerAllowed }, handler)
  }

  /** From here on new requests go to the standard path, which refuses them. */
  stop (): void {
    this.#lane.stopping = true
  }

  override closeIdleConnections (): void {
    super.closeIdleConnections()
    for (const connection of this.#connections) connection.closeIfIdle()
  }

  override closeAllConnections (): void {
    super.closeAllConnections()
    for (const connection of this.#connections) connection.destroy()
  }
}

function createMatcher ({ limits, hosts, apiKeys }: FastLaneOptions): RequestMatcher {
  return new RequestMatcher({
    basePath: limits.basePath,
    bodyBytesMax: limits.bodyBytesMax,
    isHostAllowed: (host) => hosts.allows(host),
    isCallerAllowed: apiKeys.any ? (authorization) => apiKeys.allows(authorization, 'count') : undefined,
  })
}

function createTexts ({ limits, replied, toRequestError }: FastLaneOptions): ReplyTexts {
  const { keepAliveTimeoutMs, corsOrigins } = limits
  return new ReplyTexts({ keepAliveTimeoutMs, varyByOrigin: corsOrigins.length > 0, replied, toRequestError })
}

/** What Node's parser would say of a connection that ended within a request. */
function truncated (): Error {
  return Object.assign(new Error('the connection ended within a request'), { code: 'HPE_INVALID_EOF_STATE' })
}
