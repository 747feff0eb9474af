// Listening on HOST and PORT, and closing again. `localhost` can be two addresses, so a worker may have more than one
// listener.
import { lookup } from 'node:dns/promises'
import { createServer, type Server } from 'node:net'
import type { FastifyInstance, FastifyListenOptions } from 'fastify'
import type { Config } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { detachedFrom } from './detach.ts'

/**
 * Connections that the kernel keeps until they are accepted: as many as it allows (somaxconn, 4096 on Linux). Node's
 * 511 are too few for a burst: the connections beyond them wait for TCP's doubling pauses, seconds long, while the
 * worker is idle.
 */
const backlog = 65_535

/** How often a server that is closing closes the connections that have become idle. */
const idleCheckMs = 50

/** A server that listens. */
export interface Listening {
  /** The first listener's: `http://HOST:PORT`. */
  readonly address: string
  /** All listeners. Connections of each are served by the same server. */
  readonly listeners: readonly Server[]
  /**
   * Stops accepting, waits for the requests in progress, and at the deadline (performance.now()) closes what is still
   * open.
   */
  close: (deadline: number) => Promise<void>
}

/** Where it is to listen. */
export function urlOf (host: string, port: number): string {
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}`
}

/** Shares the port with the other workers: the kernel spreads connections over all that listen. @throws FatalError */
export async function listen (app: FastifyInstance, { host, port }: Pick<Config, 'host' | 'port'>): Promise<Listening> {
  // Fastify passes these on to node:net, whose reusePort its own types do not name.
  const options: FastifyListenOptions & { readonly reusePort: boolean } = { host, port, reusePort: true, backlog }
  try {
    const address = await app.listen(options)
    const others = host === 'localhost' ? await listenOnOthers(app, options) : []
    return { address, listeners: [app.server, ...others], close: (deadline) => close(app, others, deadline) }
  } catch (error) {
    throw new FatalError(`can't listen on ${host}:${port}: ${reasonOf(error)}. ` +
      'Set HOST and PORT to an address of this machine and a free port')
  }
}

/**
 * `localhost` is often two addresses, 127.0.0.1 and ::1, of which a server listens on the first. A separate listener
 * for each of the others passes its connections on to the server. Where there can be none, the first address must do.
 */
async function listenOnOthers (app: FastifyInstance, options: FastifyListenOptions): Promise<Server[]> {
  const first = app.server.address()
  if (first === null || typeof first === 'string') return []
  const others = (await lookup('localhost', { all: true })).filter(({ address }) => address !== first.address)
  return others.map(({ address }) => {
    const other = createServer({ noDelay: true, allowHalfOpen: true })
    other.on('connection', (socket) => app.server.emit('connection', socket))
    other.maxConnections = app.server.maxConnections
    other.on('error', () => {})
    return other.listen({ ...options, host: address, port: first.port })
  })
}

async function close (app: FastifyInstance, others: readonly Server[], deadline: number): Promise<void> {
  for (const other of others) other.close()
  const timer = setTimeout(() => {
    app.server.closeAllConnections()
    for (const socket of detachedFrom(app.server)) socket.destroy()
  }, deadline - performance.now())
  // A connection that becomes idle after its last reply would otherwise stay for KEEP_ALIVE_TIMEOUT_MS.
  const idle = setInterval(() => app.server.closeIdleConnections(), idleCheckMs)
  await app.close()
  clearInterval(idle)
  clearTimeout(timer)
}
