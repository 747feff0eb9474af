// Sockets that are taken away from Node's HTTP server, on this Node: a failure here means that it has changed what
// detach.ts leans on.
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import fastify from 'fastify'
import { expect, onTestFinished, test } from 'vitest'
import { definePlugin } from '@gearbox/runtime/plugin.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { startWorker, type Worker } from './fixtures/worker.ts'
import { detach, detachedFrom } from '../src/http/detach.ts'
import { listen } from '../src/http/listen.ts'

const head = 'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n'

interface Started extends Worker { readonly sockets: Socket[] }

async function start (env: NodeJS.ProcessEnv = {}): Promise<Started> {
  const sockets: Socket[] = []
  const stream = definePlugin({
    name: 'stream',
    web: (app, context) => {
      app.get('/stream', { config: { needs: 'none' } }, (request) => {
        const socket = context.detach(request)
        sockets.push(socket)
        socket.write(head)
      })
      app.get('/stream/twice', { config: { needs: 'none' } }, (request) => {
        context.detach(request).end(head)
        try {
          context.detach(request)
        } catch (error) {
          sockets.push(error as Socket)
        }
      })
    },
  })
  const worker = await startWorker(env, undefined, [{ plugin: stream, settings: {} }])
  onTestFinished(async () => {
    for (const socket of detachedFrom(worker.server.server)) socket.destroy()
    await worker.end()
  })
  return Object.assign(worker, { sockets })
}

function open (port: number, text: string): { socket: Socket, read: () => string } {
  const socket = connect(port, '127.0.0.1')
  onTestFinished(() => { socket.destroy() })
  let read = ''
  socket.setEncoding('utf8').on('data', (chunk) => { read += String(chunk) }).on('error', () => {})
  socket.write(text)
  return { socket, read: () => read }
}

const get = (path: string): string => `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`

test.each(['on', 'off'])('a detached socket is written and read as it is (FAST_LANE=%s)', async (fastLane) => {
  const { port, sockets, server } = await start({ FAST_LANE: fastLane })
  const client = open(port, get('/stream'))
  await until('the head', () => client.read() === head)
  const [socket] = sockets
  socket!.write('one')
  await until('the first part', () => client.read() === `${head}one`)
  // Nothing of it is parsed any more.
  let heard = ''
  socket!.on('data', (chunk) => { heard += String(chunk) })
  client.socket.write(get('/healthz'))
  await until('what the client sends', () => heard === get('/healthz'))
  socket!.end('two')
  await once(client.socket, 'end')
  expect(client.read()).toBe(`${head}onetwo`)
  client.socket.end()
  await until('the socket to be closed', () => detachedFrom(server.server).size === 0)
})

test('Node\'s parser and response are freed, and the connection is still counted', async () => {
  const { port, sockets, server } = await start()
  const clients = Array.from({ length: 20 }, () => open(port, get('/stream')))
  await until('all heads', () => clients.every(({ read }) => read() === head))
  const count = async (): Promise<number> => await new Promise((resolve, reject) => {
    server.server.getConnections((error, connections) => error === null ? resolve(connections) : reject(error))
  })
  expect(await count()).toBe(20)
  for (const socket of sockets) {
    expect(Reflect.get(socket, 'parser') ?? null).toBeNull()
    expect(Reflect.get(socket, '_httpMessage') ?? null).toBeNull()
    expect(socket.listenerCount('data')).toBe(0)
  }
  // As if they were idle: it does not know them any more.
  server.server.closeIdleConnections()
  sockets[0]!.write('still here')
  await until('it to arrive', () => clients[0]!.read() === `${head}still here`)
  for (const { socket } of clients) socket.destroy()
  await until('all to be closed', async () => await count() === 0)
})

test('a client that is gone closes a detached socket, read or not', async () => {
  const { port, sockets, server } = await start()
  const client = open(port, get('/stream'))
  await until('the head', () => client.read() === head)
  client.socket.resetAndDestroy()
  const writing = setInterval(() => sockets[0]!.write('x'), 5)
  await until('it to be noticed', () => sockets[0]!.destroyed)
  clearInterval(writing)
  expect(detachedFrom(server.server).size).toBe(0)
})

test('a socket is detached once, and not behind a reply that is still to be written', async () => {
  const { port, sockets } = await start()
  const client = open(port, get('/stream/twice'))
  await until('the end', () => client.read() === head)
  expect(sockets).toEqual([expect.objectContaining({ message: expect.stringContaining('the connection is gone') })])
})

test('with hundreds of detached sockets an ordinary request is answered as before', async () => {
  const { port, sockets } = await start()
  const clients = Array.from({ length: 300 }, () => open(port, get('/stream')))
  await until('all heads', () => clients.every(({ read }) => read() === head))
  expect(sockets).toHaveLength(300)
  const other = open(port, get('/healthz'))
  await until('its reply', () => other.read().startsWith('HTTP/1.1 200'))
})

test('a stop waits for detached sockets until its deadline, and closes what is open then', async () => {
  const app = fastify()
  const sockets: Socket[] = []
  app.get('/stream', (request, reply) => { sockets.push(detach(request, reply)) })
  const listening = await listen(app, { host: '127.0.0.1', port: 0 })
  const clients = [1, 2].map(() => open(Number(new URL(listening.address).port), get('/stream')))
  await until('both to be detached', () => sockets.length === 2)
  const closed = listening.close(performance.now() + 500)
  sockets[0]!.end(head)
  await once(clients[0]!.socket, 'end')
  expect(sockets[1]!.destroyed).toBe(false)
  await closed
  expect(sockets[1]!.destroyed).toBe(true)
  await until('none to be left', () => detachedFrom(app.server).size === 0)
})
