// The settings of Node's HTTP server that it would leave open, or have different: times, limits, half-open connections.
import type { Server, ServerOptions } from 'node:http'
import type { Config } from '@gearbox/runtime/config.ts'

/**
 * How often Node checks which clients are over their time; with its own default of 30 s a slow one could stay for that
 * long.
 */
const timeoutCheckMs = 500

/** The settings that limit what a connection may take. */
export type HttpConfig = Pick<Config,
  'headersTimeoutMs' | 'requestTimeoutMs' | 'keepAliveTimeoutMs' | 'connectionsMax' | 'ackTimeoutMs'>

/** Options for the constructor of the server. */
export function httpOptions (config: HttpConfig): ServerOptions {
  return {
    // A missing Host is refused in our own shape.
    requireHostHeader: false,
    headersTimeout: config.headersTimeoutMs,
    requestTimeout: config.requestTimeoutMs,
    keepAliveTimeout: config.keepAliveTimeoutMs,
    connectionsCheckingInterval: timeoutCheckMs,
  }
}

/** Sets what can only be set on the server itself. @returns the same server */
export function limitServer<T extends Server> (server: T, config: HttpConfig): T {
  server.maxConnections = config.connectionsMax
  // A client may end its side and still read its reply (`nc -N`). Node would close without an answer behind a request
  // that may have counted; its types do not name the switch.
  Object.assign(server, { httpAllowHalfOpen: true })
  // For a connection without progress in either direction: nothing else closes those of clients that do not read their
  // replies. A pending reply takes ACK_TIMEOUT_MS.
  return server.setTimeout(config.ackTimeoutMs + config.requestTimeoutMs)
}
