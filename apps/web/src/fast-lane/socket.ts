// All of the fast lane that leans on private parts of Node: how it gets connections before Node's parser does, and how
// it reads them without a copy. test/socket.test.ts fails when a Node changes them.
import type { Server } from 'node:http'
import { Socket } from 'node:net'

/**
 * Gets the bytes [0, length) of `bytes`. They are valid during the call only: the next read of any connection
 * overwrites them.
 */
export type OnRead = (bytes: Buffer, length: number) => void

/** All connections are read into it, one at a time. */
const readBuffer = Buffer.allocUnsafeSlow(65_536)

/**
 * Has an HTTP server give its connections to `accept` instead of Node's parser. They are paused; `accept` passes them
 * to `readInto`.
 * @returns a function that gives a connection to Node's parser after all
 */
export function interceptConnections (server: Server, accept: (socket: Socket) => void): (socket: Socket) => void {
  const [parse] = server.listeners('connection')
  if (parse === undefined) throw new Error('an HTTP server without a listener for connections')
  server.removeAllListeners('connection')
  Object.assign(server, { pauseOnConnect: true })
  server.on('connection', accept)
  return (socket) => { parse.call(server, socket) }
}

/**
 * Reads a connection. Node allocates 64 KiB for each read and passes them through a Readable, which together cost a
 * fifth of a request. It reads into a given buffer only where a program constructs the socket; so this constructs one
 * of the accepted socket's handle. Where a Node has no such handle, or the connection has another listener, chunks come
 * as everywhere.
 * @param accepted a connection that is still paused; it must not be used afterwards
 * @param server the one that accepted it
 * @returns the connection's socket from now on
 */
export function readInto (accepted: Socket, server: Server, onRead: OnRead): Socket {
  const handle: unknown = Reflect.get(accepted, '_handle')
  const isOurs = Reflect.get(accepted, '_server') === server
  if (!isOurs || typeof handle !== 'object' || handle === null || !('useUserBuffer' in handle)) {
    return accepted.on('data', (chunk: Buffer) => onRead(chunk, chunk.length)).resume()
  }
  const callback = (length: number): boolean => {
    onRead(readBuffer, length)
    return true
  }
  // Without them it neither closes the handle nor counts itself as closed.
  Object.assign(accepted, { _handle: null, _server: null })
  const options = { handle, allowHalfOpen: true, onread: { buffer: readBuffer, callback } }
  const socket: Socket = Reflect.construct(Socket, [options])
  return Object.assign(socket, { server, _server: server })
}
