// The fast lane over real sockets: what passes by Node's parser, what is handed over to it, and that order, limits and
// times hold in both. That both paths give the same replies is compared in test/fuzz.
import { connect } from 'node:net'
import { describe, expect, onTestFinished, test } from 'vitest'
import { Pipe } from '@gearbox/test-kit/pipe.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { OpenQueue } from './fixtures/open-queue.ts'
import {
  Connection, errorOf, formType, increment, send, startWorker, type Reply, type Worker,
} from './fixtures/worker.ts'

interface Parts {
  readonly worker: Worker
  readonly queue: OpenQueue
  /** How many requests passed Node's parser. */
  slow (): number
}

async function start (env: NodeJS.ProcessEnv = {}, queue = new OpenQueue()): Promise<Parts> {
  const worker = await startWorker({ FAST_LANE: 'on', ...env }, queue)
  onTestFinished(worker.end)
  let slow = 0
  worker.server.server.on('request', () => { slow++ })
  return { worker, queue, slow: () => slow }
}

function connectTo (worker: Worker): Connection {
  const connection = new Connection(worker)
  onTestFinished(() => connection.end())
  return connection
}

/** A connection without a socket, on which what is pushed is read at once and each write is seen. */
function open (worker: Worker): Pipe {
  const pipe = new Pipe()
  onTestFinished(() => { pipe.destroy() })
  worker.server.server.emit('connection', pipe)
  return pipe
}

async function repliesOn (connection: Connection, count: number): Promise<Reply[]> {
  await until(`${count} replies; received: ${connection.received}`, () => connection.replies().length >= count)
  return connection.replies()
}

async function statusesOn (connection: Connection, count: number): Promise<number[]> {
  return (await repliesOn(connection, count)).map(({ status }) => status)
}

async function connections ({ server }: Worker): Promise<number> {
  return await new Promise((resolve) => server.server.getConnections((_error, count) => resolve(count)))
}

/** A request of the fast lane's shape. Lines are added behind its headers. */
function post (body: string, query = '', ...lines: readonly string[]): string {
  return `POST /increment${query} HTTP/1.1\r\nHost: x\r\nContent-Type: ${formType}\r\nContent-Length: ` +
    `${Buffer.byteLength(body)}\r\n${lines.map((line) => `${line}\r\n`).join('')}\r\n${body}`
}

const chunked = (body: string): string =>
  `POST /increment HTTP/1.1\r\nHost: x\r\nContent-Type: ${formType}\r\nTransfer-Encoding: ` +
    `chunked\r\n\r\n${body.length.toString(16)}\r\n${body}\r\n0\r\n\r\n`
const health = 'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n'

describe('requests by path', () => {
  test('plain increments bypass Node\'s parser, all else and what follows it on a connection does not', async () => {
    const { worker, queue, slow } = await start()
    const connection = connectTo(worker)
    connection.write(post('a=1') + post('a=1', '?ack=memory') + post('a=x') +
      post('a=1', '', 'Connection: keep-alive', 'Idempotency-Key: k'))
    expect(await statusesOn(connection, 4)).toEqual([204, 202, 400, 204])
    expect(slow()).toBe(0)
    connection.write(health + post('a=1'))
    expect(await statusesOn(connection, 6)).toEqual([204, 202, 400, 204, 200, 204])
    expect(slow()).toBe(2)
    await until('all', () => queue.totals().get('a') === 3n)
  })

  test('with FAST_LANE=off all requests pass Node\'s parser', async () => {
    const { worker, slow } = await start({ FAST_LANE: 'off' })
    const connection = connectTo(worker)
    connection.write(post('a=1').repeat(3))
    expect(await statusesOn(connection, 3)).toEqual([204, 204, 204])
    expect(slow()).toBe(3)
  })

  test('with API_KEYS requests with a key bypass it, and those without are refused by the standard path', async () => {
    const { worker, slow } = await start({ API_KEYS: 'one,two' })
    const connection = connectTo(worker)
    connection.write(post('a=1', '', 'Authorization: Bearer one') + post('a=1', '', 'Authorization: Bearer two'))
    expect(await statusesOn(connection, 2)).toEqual([204, 204])
    expect(slow()).toBe(0)
    connection.write(post('a=1', '', 'Authorization: Bearer three') + post('a=1', '', 'Authorization: Bearer one'))
    expect(await statusesOn(connection, 4)).toEqual([204, 204, 401, 204])
    expect(slow()).toBe(2)
    expect(worker.flusher.counts.increments).toBe(3)
  })

  test('a wrong key is refused at once, before the body is there', async () => {
    const { worker } = await start({ API_KEYS: 'one' })
    const pipe = open(worker)
    pipe.push(post('a=1', '', 'Authorization: Bearer two').slice(0, -1))
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve))
    expect(pipe.received).toMatch(/^HTTP\/1\.1 401 /)
  })
})

describe('replies that are known and wait for others', () => {
  test('count as pending bytes until they are written', async () => {
    const { worker, queue } = await start()
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1'))
    await until('it to be pending', () => worker.flusher.pendingReplies === 1)
    const before = worker.flusher.replyBytes
    connection.write(post('a=x').repeat(20) + post('a=1', '?ack=memory').repeat(20))
    await until('all to be known', () => worker.flusher.counts.increments === 21)
    expect(worker.flusher.replyBytes).toBeGreaterThan(before + 20 * 200)
    queue.release()
    expect(await statusesOn(connection, 41)).toEqual([204, ...Array(20).fill(400), ...Array(20).fill(202)])
    expect(worker.flusher.replyBytes).toBe(0)
  })

  test('of a client that sends for ever end with its connection at PENDING_BYTES_MAX, and those that ' +
    'are due are written', async () => {
    const { worker, queue } = await start({ PENDING_BYTES_MAX: '16384' })
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1') + post('a=x').repeat(400))
    await until('the limit', () => worker.flusher.replyBytes > 16_384)
    expect(worker.flusher.replyBytes).toBeLessThan(80_000)
    queue.release()
    await connection.closed
    const statuses = connection.replies().map(({ status }) => status)
    expect(statuses[0]).toBe(204)
    expect(new Set(statuses.slice(1))).toEqual(new Set([400]))
    expect(statuses.length).toBeLessThan(300)
    expect(worker.flusher.replyBytes).toBe(0)
    expect((await increment(worker, 'a=1')).status).toBe(204)
  })

  test('of a connection that is gone are no longer counted', async () => {
    const { worker, queue } = await start()
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1') + post('a=x').repeat(20))
    await until('all to be known', () => worker.flusher.replyBytes > 20 * 200)
    connection.end()
    queue.release()
    await until('none to be pending', () => worker.flusher.replyBytes === 0)
  })
})

describe('the order of replies', () => {
  test('is kept: a reply that is known waits for those before it', async () => {
    const { worker, queue, slow } = await start()
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1') + post('b=1', '?ack=memory') + post('c=x'))
    await until('all to be counted', () => worker.flusher.counts.increments === 2)
    expect((await send(worker, { path: '/healthz' })).status).toBe(200)
    expect(connection.received).toBe('')
    queue.release()
    expect(await statusesOn(connection, 3)).toEqual([204, 202, 400])
    expect(slow(), 'only the question whether it lives').toBe(1)
  })

  test('is written at once: replies to requests that came together leave together', async () => {
    const { worker } = await start()
    const pipe = open(worker)
    let writes = 0
    pipe.onWrite = () => { writes++ }
    pipe.push(post('a=1').repeat(20) + post('a=x'))
    await until('all replies', () => pipe.received.match(/^HTTP\/1\.1 /gm)?.length === 21)
    expect(writes).toBe(1)
  })

  test('is kept for a request of the standard path, which waits until no reply is due before it', async () => {
    const { worker, queue, slow } = await start()
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1') + health + post('b=1'))
    await until('the first to be counted', () => worker.flusher.pendingReplies === 1)
    connection.write(chunked('c=1') + post('d=1'))
    expect((await send(worker, { path: '/healthz' })).status).toBe(200)
    expect(connection.received).toBe('')
    expect([worker.flusher.counts.increments, slow()]).toEqual([1, 1])
    queue.release()
    expect(await statusesOn(connection, 5)).toEqual([204, 200, 204, 204, 204])
    expect(queue.totals()).toEqual(new Map(['a', 'b', 'c', 'd'].map((key) => [key, 1n])))
  })

  test.each([1, 2, 3])('is kept when the path changes among requests that come %d bytes at a time', async (size) => {
    const { worker, queue } = await start()
    const bytes = post('a=1') + chunked('b=22') + post('c=333') + health
    const pipe = open(worker)
    for (let at = 0; at < bytes.length; at += size) {
      pipe.push(bytes.slice(at, at + size))
      await new Promise((resolve) => setImmediate(resolve))
    }
    await until('all replies', () => pipe.received.match(/^HTTP\/1\.1 /gm)?.length === 4)
    expect(pipe.received.match(/^HTTP\/1\.1 \d+/gm))
      .toEqual(['HTTP/1.1 204', 'HTTP/1.1 204', 'HTTP/1.1 204', 'HTTP/1.1 200'])
    expect(queue.totals()).toEqual(new Map([['a', 1n], ['b', 22n], ['c', 333n]]))
  })

  test('is kept with a body that comes in very many pieces', async () => {
    const { worker, queue, slow } = await start()
    const body = Array.from({ length: 500 }, (_, i) => `key${i}=${i}`).join('&')
    const connection = connectTo(worker)
    const bytes = post('a=1') + post(body) + post('a=1')
    for (let at = 0; at < bytes.length; at += 10) connection.write(bytes.slice(at, at + 10))
    expect(await statusesOn(connection, 3)).toEqual([204, 204, 204])
    expect(queue.totals().size).toBe(501)
    expect(queue.totals().get('a')).toBe(2n)
    expect(slow()).toBe(0)
  })
})

describe('clients that are slow', () => {
  const times = { HEADERS_TIMEOUT_MS: '300', REQUEST_TIMEOUT_MS: '600' }

  test.each([
    ['nothing', ''],
    ['half a head', post('a=1').slice(0, 60)],
    ['half a body', post('a=1').slice(0, -1)],
    ['half a head after a request', post('b=1') + post('a=1').slice(0, 60)],
    ['half a body after a request', post('b=1') + post('a=1').slice(0, -1)],
  ])('who send %s get a 408 and are cut off', async (_name, bytes) => {
    const { worker, queue } = await start(times)
    const connection = connectTo(worker)
    const startedAt = performance.now()
    connection.write(bytes)
    await connection.closed
    expect(performance.now() - startedAt, 'ms').toBeLessThan(600 + 1000 + 500 + 3000)
    const replies = connection.replies()
    expect(replies.map(({ status }) => status)).toEqual(bytes.includes('b=1') ? [204, 408] : [408])
    expect(errorOf(replies.at(-1)!).code).toBe('GBX_REQUEST_TIMEOUT')
    expect(queue.totals().get('a')).toBeUndefined()
  })

  test('who are very many at once are all cut off, and others are served meanwhile', async () => {
    const { worker } = await start(times)
    const slow = Array.from({ length: 300 }, (_, i) => {
      const connection = connectTo(worker)
      connection.write(post('slow=1').slice(0, i % 100))
      return connection
    })
    let closed = 0
    for (const connection of slow) connection.closed.then(() => { closed++ }, () => {})
    for (let served = 0; closed < slow.length; served++) {
      expect((await increment(worker, 'a=1')).status, `after ${served}`).toBe(204)
    }
    expect(new Set(slow.map(({ received }) => received.slice(0, 12)))).toEqual(new Set(['HTTP/1.1 408']))
  })

  test('who are slow but in time are served', async () => {
    const { worker, queue } = await start({ HEADERS_TIMEOUT_MS: '300', REQUEST_TIMEOUT_MS: '20000' })
    const [connection, silent] = [connectTo(worker), connectTo(worker)]
    const second = post('a=2')
    connection.write(post('a=1') + second.slice(0, -1))
    await repliesOn(connection, 1)
    // By then the other one is in Node's parser too, which has the timeouts.
    await silent.closed
    connection.write(second.slice(-1))
    expect(await statusesOn(connection, 2)).toEqual([204, 204])
    expect(queue.totals()).toEqual(new Map([['a', 3n]]))
  })

  test('who leave their connection idle are cut off', async () => {
    const { worker, slow } = await start({ KEEP_ALIVE_TIMEOUT_MS: '100' })
    const connection = connectTo(worker)
    connection.write(post('a=1'))
    await connection.closed
    expect(connection.replies().map(({ status }) => status)).toEqual([204])
    expect(slow()).toBe(0)
  })

  test('whose reply is pending are not idle', async () => {
    const { worker, queue, slow } = await start({
      KEEP_ALIVE_TIMEOUT_MS: '100',
      ACK_TIMEOUT_MS: '2500',
      HEADERS_TIMEOUT_MS: '100',
      REQUEST_TIMEOUT_MS: '100',
    })
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1'))
    await connection.closed
    expect(connection.replies().map(({ status }) => status)).toEqual([202])
    expect(slow()).toBe(0)
  })
})

describe('clients that send without end', () => {
  test('and whose replies are pending are read no further', async () => {
    const { worker, queue } = await start()
    queue.hold()
    const connection = connectTo(worker)
    const count = 20_000
    connection.write(post('a=1').repeat(count))
    await until('some pending replies', () => worker.flusher.pendingReplies > 0)
    let before = -1
    // What was read already is all admitted; others are served meanwhile, and nothing more is read.
    await until('no more to be read', async () => {
      const { increments } = worker.flusher.counts
      const same = increments === before
      before = increments
      await send(worker, { path: '/healthz' })
      return same
    })
    expect(worker.flusher.pendingReplies).toBeLessThan(64 + 65_536 / post('a=1').length + 1)
    queue.release()
    await until('all replies', () => connection.received.match(/^HTTP/gm)?.length === count)
    expect(new Set(connection.received.match(/^HTTP[^\r]*/gm))).toEqual(new Set(['HTTP/1.1 204 No Content']))
    expect(queue.totals()).toEqual(new Map([['a', BigInt(count)]]))
  })

  test('and do not read their replies are read no further, and then cut off', async () => {
    const {
      worker,
      slow,
    } = await start({ ACK_TIMEOUT_MS: '500', HEADERS_TIMEOUT_MS: '500', REQUEST_TIMEOUT_MS: '500' })
    const socket = connect(worker.port, '127.0.0.1')
    onTestFinished(() => { socket.destroy() })
    let closed = false
    socket.on('error', () => {}).on('close', () => { closed = true })
    socket.pause()
    // Refusals are longer than what they refuse: they fill what the kernel keeps for a client that does not read.
    const many = post('a=x', '?ack=memory').repeat(1000)
    const write = (): void => { while (socket.writable && socket.write(many)); }
    socket.on('drain', write).once('connect', write)
    await until('the connection', async () => await connections(worker) === 1)
    await until('the connection to be closed', async () => await connections(worker) === 0)
    expect(process.memoryUsage().external, 'bytes').toBeLessThan(200 * 2 ** 20)
    expect(slow()).toBe(0)
    socket.resume()
    await until('the client to see it', () => closed)
  })
})

describe('a worker that stops', () => {
  /** As main.ts does it. */
  async function close (worker: Worker): Promise<void> {
    const idle = setInterval(() => worker.server.server.closeIdleConnections(), 20)
    await worker.server.close()
    clearInterval(idle)
  }

  test('gives the replies that are pending, and closes the connections that wait for nothing', async () => {
    const { worker, queue } = await start()
    const [idle, held] = [connectTo(worker), connectTo(worker)]
    idle.write(post('a=1'))
    await repliesOn(idle, 1)
    queue.hold()
    held.write(post('a=1'))
    await until('a pending reply', () => worker.flusher.pendingReplies === 1)
    const closing = close(worker)
    await idle.closed
    expect(held.received).toBe('')
    queue.release()
    await closing
    await held.closed
    expect(held.replies().map(({ status }) => status)).toEqual([204])
    expect(queue.totals().get('a')).toBe(2n)
  })

  test.each([['of the fast lane', post('late=1')],
    ['of the other',
      chunked('late=1')]])('refuses what comes behind a pending reply: a request %s', async (_name, late) => {
    const { worker, queue } = await start()
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1'))
    await until('a pending reply', () => worker.flusher.pendingReplies === 1)
    const closing = close(worker)
    connection.write(late)
    await until('the port to be closed', () => !worker.server.server.listening)
    // What was written is in the worker's socket now: some event-loop iterations later it is read.
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve))
    queue.release()
    await closing
    await connection.closed
    const [first, second] = connection.replies()
    expect([first?.status, second?.status]).toEqual([204, 503])
    expect(errorOf(second!).code).toBe('GBX_STOPPING')
    expect(queue.totals()).toEqual(new Map([['a', 1n]]))
  })

  test('closes all connections when asked to, also those whose reply is pending', async () => {
    const { worker, queue } = await start()
    queue.hold()
    const all = [connectTo(worker), connectTo(worker), connectTo(worker), connectTo(worker)]
    all[0]!.write(post('a=1'))
    all[1]!.write(post('a=1') + health)
    all[2]!.write(post('a=1').slice(0, 50))
    await until('two pending replies', () => worker.flusher.pendingReplies === 2)
    await until('four connections', async () => await connections(worker) === 4)
    worker.server.server.closeAllConnections()
    await Promise.all(all.map(async ({ closed }) => { await closed }))
    queue.release()
    await until('what was admitted', () => queue.totals().get('a') === 2n)
    expect(await connections(worker)).toBe(0)
  })
})

describe('clients that leave', () => {
  test('who send nothing more get their replies, and are closed then', async () => {
    const { worker, queue } = await start()
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1') + post('a=2', '?ack=memory'))
    connection.finish()
    await until('both to be counted', () => worker.flusher.counts.increments === 2)
    queue.release()
    await connection.closed
    expect(connection.replies().map(({ status }) => status)).toEqual([204, 202])
    expect(await connections(worker)).toBe(0)
  })

  test('who end within a request count nothing with it', async () => {
    const { worker, queue } = await start()
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1') + post('b=1').slice(0, -1))
    connection.finish()
    await until('the first to be counted', () => worker.flusher.pendingReplies === 1)
    queue.release()
    await connection.closed
    const replies = connection.replies()
    expect(replies.map(({ status }) => status)).toEqual([204, 400])
    expect(errorOf(replies[1]!).code).toBe('GBX_BAD_REQUEST')
    expect(queue.totals()).toEqual(new Map([['a', 1n]]))
  })

  test('who send nothing more behind a request of the standard path get the reply that is due before it', async () => {
    const { worker, queue } = await start()
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1') + health)
    connection.finish()
    await until('the first to be counted', () => worker.flusher.pendingReplies === 1)
    queue.release()
    await connection.closed
    expect(connection.replies()[0]?.status).toBe(204)
    expect(await connections(worker)).toBe(0)
  })

  test.each([['whose reply is pending', ''], ['that is to move to the standard path', health],
    ['with half a request',
      post('b=1').slice(0,
        -1)]])('a connection %s can be reset: what was taken in counts once', async (_name, rest) => {
    const { worker, queue } = await start()
    queue.hold()
    const connection = connectTo(worker)
    connection.write(post('a=1') + rest)
    await until('a pending reply', () => worker.flusher.pendingReplies === 1)
    connection.reset()
    queue.release()
    await until('what was admitted', () => queue.totals().get('a') === 1n)
    await until('the connection to be gone', async () => await connections(worker) === 0)
    expect((await increment(worker, 'a=1')).status).toBe(204)
    expect(queue.totals()).toEqual(new Map([['a', 2n]]))
  })
})

test('connections beyond CONNECTIONS_MAX are closed, and accepted when others have left', async () => {
  const { worker, slow } = await start({ CONNECTIONS_MAX: '2' })
  const [first, second] = [connectTo(worker), connectTo(worker)]
  for (const connection of [first, second]) {
    connection.write(post('a=1'))
    expect(await statusesOn(connection, 1)).toEqual([204])
  }
  const third = connectTo(worker)
  await third.closed
  expect(third.received).toBe('')
  // The one that moves to the standard path still counts as one.
  second.write(health)
  expect(await statusesOn(second, 2)).toEqual([204, 200])
  expect([await connections(worker), slow()]).toEqual([2, 1])
  first.end()
  second.end()
  await until('all to be gone', async () => await connections(worker) === 0)
  const fourth = connectTo(worker)
  fourth.write(post('a=1'))
  expect(await statusesOn(fourth, 1)).toEqual([204])
})

test('a limit that is reached is a 503 with Retry-After on a connection that goes on', async () => {
  const { worker, queue, slow } = await start({ PENDING_REQUESTS_MAX: '1' })
  queue.hold()
  const [held, other] = [connectTo(worker), connectTo(worker)]
  held.write(post('a=1'))
  await until('a pending reply', () => worker.flusher.pendingReplies === 1)
  other.write(post('b=1') + post('b=1', '?ack=memory'))
  const [refused, memory] = await repliesOn(other, 2)
  expect([refused!.status, refused!.headers['retry-after'], memory!.status]).toEqual([503, '1', 202])
  expect(errorOf(refused!).code).toBe('GBX_OVERLOADED')
  queue.release()
  await repliesOn(held, 1)
  other.write(post('b=1'))
  expect(await statusesOn(other, 3)).toEqual([503, 202, 204])
  expect(slow()).toBe(0)
  expect(queue.totals()).toEqual(new Map([['a', 1n], ['b', 2n]]))
})

test('what goes wrong while counting is a 500 in its place, and the connection goes on', async () => {
  const queue = new OpenQueue()
  const { worker, slow } = await start({}, queue)
  const connection = connectTo(worker)
  Object.defineProperty(queue, 'pushIsStored', { configurable: true, get: () => { throw new Error('broken') } })
  connection.write(post('a=1') + post('a=x'))
  const replies = await repliesOn(connection, 2)
  expect(replies.map(({ status }) => status)).toEqual([500, 400])
  expect(errorOf(replies[0]!)).toEqual({ code: 'GBX_INTERNAL', message: 'something went wrong; the log says what' })
  Object.defineProperty(queue, 'pushIsStored', { value: false })
  connection.write(post('a=1'))
  expect(await statusesOn(connection, 3)).toEqual([500, 400, 204])
  expect(slow()).toBe(0)
  expect(queue.totals()).toEqual(new Map([['a', 1n]]))
})

test('replies of both paths are counted by status', async () => {
  const { worker } = await start()
  const connection = connectTo(worker)
  connection.write(post('a=1').repeat(3) + post('a=1', '?ack=memory') + post('a=x').repeat(2) + chunked('a=1') + health)
  await repliesOn(connection, 8)
  await until('all to be counted', () => worker.replies.get(200) === 1)
  expect(Object.fromEntries(worker.replies)).toEqual({ 200: 1, 202: 1, 204: 4, 400: 2 })
})

test('an Idempotency-Key that is repeated on other connections of both paths counts once', async () => {
  const worker = await startWorker({ FAST_LANE: 'on', API_KEYS: 'one' })
  onTestFinished(worker.end)
  let slow = 0
  worker.server.server.on('request', () => { slow++ })
  const lines = ['Authorization: Bearer one', 'Idempotency-Key: same']
  const all = Array.from({ length: 20 }, (_, i) => {
    const connection = connectTo(worker)
    connection.write(i % 2 === 0
      ? post('a=1&b=2', '?ack=stored', ...lines).repeat(2)
      : post('b=2&a=1', '?ack=stored&',
        ...lines))
    return connection
  })
  for (const [i, connection] of all.entries()) {
    expect(await statusesOn(connection, i % 2 === 0 ? 2 : 1)).toEqual(i % 2 === 0 ? [204, 204] : [204])
  }
  expect(slow).toBe(10)
  expect(worker.totals()).toEqual(new Map([['a', 1n], ['b', 2n]]))
  const other = connectTo(worker)
  other.write(post('a=2', '?ack=stored', ...lines) + post('a=2', '?ack=stored&', ...lines))
  expect(await statusesOn(other, 2)).toEqual([422, 422])
  expect(worker.totals()).toEqual(new Map([['a', 1n], ['b', 2n]]))
})
