// What the fast lane uses of Node's private parts, on this Node: a failure here means that it has changed them.
import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import { connect, type AddressInfo, type Socket } from 'node:net'
import { promisify } from 'node:util'
import { expect, onTestFinished, test } from 'vitest'
import { Pipe } from '@gearbox/test-kit/pipe.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { interceptConnections, readInto } from '../src/fast-lane/socket.ts'

interface Accepted {
  readonly accepted: Socket
  /** What `readInto` made of it. */
  readonly socket: Socket
  /** What was read, each time: the buffer itself, and a copy of its bytes. */
  readonly reads: Array<{ readonly buffer: Buffer, readonly bytes: Buffer }>
}

interface Started {
  readonly server: Server
  readonly port: number
  readonly connections: readonly Accepted[]
  parse (socket: Socket): void
}

async function start (): Promise<Started> {
  const connections: Accepted[] = []
  const server = createServer((request, response) => { response.end(`${request.method} ${request.url}`) })
  const parse = interceptConnections(server, (accepted) => {
    const reads: Accepted['reads'] = []
    const socket = readInto(accepted, server, (buffer, length) => {
      reads.push({ buffer, bytes: Buffer.copyBytesFrom(buffer, 0, length) })
    })
    socket.on('end', () => socket.end())
    connections.push({ accepted, socket, reads })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(async () => {
    for (const { socket } of connections) socket.destroy()
    await promisify(server.close.bind(server))()
  })
  const { port } = server.address() as AddressInfo
  return { server, port, connections, parse }
}

function open (port: number): Socket {
  const client = connect(port, '127.0.0.1')
  onTestFinished(() => { client.destroy() })
  return client
}

const received = ({ reads }: Accepted): Buffer => Buffer.concat(reads.map(({ bytes }) => bytes))

test('all connections are read into one shared buffer, whole and in order', async () => {
  const { port, connections } = await start()
  const sent = Buffer.from(Array.from({ length: 200_000 }, (_, i) => i % 251))
  for (let i = 0; i < 2; i++) {
    open(port).write(sent)
    await until('all bytes', () => connections[i] !== undefined && received(connections[i]!).length === sent.length)
    expect(received(connections[i]!).equals(sent)).toBe(true)
  }
  const buffers = new Set(connections.flatMap(({ reads }) => reads.map(({ buffer }) => buffer)))
  expect(buffers.size).toBe(1)
  expect([...buffers][0]!.length).toBe(65_536)
  for (const { accepted, socket } of connections) expect(socket).not.toBe(accepted)
})

test('a connection counts as one of its server until it is closed', async () => {
  const { server, port, connections } = await start()
  const client = open(port)
  client.write('a')
  await until('the connection', () => connections.length === 1)
  const count = promisify(server.getConnections.bind(server))
  expect(await count()).toBe(1)
  client.destroy()
  await until('none', async () => await count() === 0)
  expect(connections[0]!.socket.destroyed).toBe(true)
})

test('a connection can still be given to Node, with the bytes that were put back', async () => {
  const { port, connections, parse } = await start()
  const client = open(port)
  let reply = ''
  client.on('data', (chunk) => { reply += chunk.toString() })
  client.write('GET /a HTTP/1.1\r\nHost: x\r\n\r\n')
  await until('the request', () => connections[0] !== undefined && received(connections[0]).length > 0)
  const { socket } = connections[0]!
  socket.pause()
  socket.unshift(received(connections[0]!))
  parse(socket)
  socket.resume()
  await until('its reply', () => reply.endsWith('GET /a'))
  client.write('GET /b HTTP/1.1\r\nHost: x\r\n\r\n')
  await until('the next reply', () => reply.endsWith('GET /b'))
  expect(connections[0]!.reads.length).toBe(1)
})

test('a stream that has no handle of this server is read in chunks', async () => {
  const { server, connections } = await start()
  const pipe = new Pipe()
  server.emit('connection', pipe)
  pipe.push('a=1')
  await until('the chunk', () => connections[0]?.reads.length === 1)
  expect(connections[0]!.socket).toBe(pipe)
  expect(received(connections[0]!).toString()).toBe('a=1')
})
