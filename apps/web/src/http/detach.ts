// Takes a request's socket away from Node's HTTP server: for replies that go on for long, as each of Node's response
// objects, with its parser, takes several times what a bare socket does. It leans on private parts of Node;
// test/detach.test.ts fails when a Node changes them.
import type { Server } from 'node:http'
import { Socket } from 'node:net'
import type { FastifyReply, FastifyRequest } from 'fastify'

/** What clients send on detached sockets is read into it, one at a time: mostly to be dropped. */
const readBuffer = Buffer.allocUnsafeSlow(4096)

/** By server, the sockets that were taken away from it and are open. */
const detached = new WeakMap<object, Set<Socket>>()

/** Sockets that were taken away from a server and are open: it neither knows them as idle nor closes them. */
export function detachedFrom (server: object): ReadonlySet<Socket> {
  return detached.get(server) ?? new Set()
}

/**
 * Detaches the socket of a request that has no body left to read and no reply yet. Nothing was written to it; whoever
 * detaches it writes the whole reply, head included, and ends it. It still counts as one of the server's connections.
 * What the client sends from now on arrives at the socket as it is, and is dropped until somebody listens for it; what
 * it had sent ahead is dropped. A client that ends its side ends the socket.
 * @returns a socket that flows, and has a listener for `error` that does nothing
 * @throws Error if the connection is gone, or has a reply before this one that is not written
 */
export function detach ({ raw: request, server: { server } }: FastifyRequest, reply: FastifyReply): Socket {
  const { socket } = request
  const handle: unknown = Reflect.get(socket, '_handle')
  const isFirst = Reflect.get(socket, '_httpMessage') === reply.raw
  if (socket.destroyed || typeof handle !== 'object' || handle === null || !isFirst) {
    throw new Error('the connection is gone, or has another reply to write first')
  }
  reply.hijack()
  reply.raw.detachSocket(socket)
  const ownServer: unknown = Reflect.get(socket, '_server')
  // Without them the old socket neither closes the handle nor counts itself as closed.
  Object.assign(socket, { _handle: null, _server: null })
  // Node's own listener frees the parser, which has read the handle until now.
  socket.emit('close', false)
  socket.destroy()
  // The handle may be one of the fast lane, which reads into a given buffer and never into one of Node's.
  const callback = (length: number): boolean => {
    if (bare.listenerCount('data') > 0) bare.emit('data', Buffer.copyBytesFrom(readBuffer, 0, length))
    return true
  }
  const bare: Socket = Reflect.construct(Socket, [{ handle, onread: { buffer: readBuffer, callback } }])
  Object.assign(bare, { server: ownServer, _server: ownServer })
  bare.resume().on('error', () => {})
  keep(server, bare)
  return bare
}

function keep (server: Server | object, socket: Socket): void {
  const sockets = detached.get(server) ?? new Set()
  detached.set(server, sockets.add(socket))
  socket.once('close', () => sockets.delete(socket))
}
