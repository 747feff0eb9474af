// The HTTP edge over real sockets: who may come in, how much, how slowly, and what those who may not are told.
import { request } from 'node:http'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { startAll } from '@gearbox/test-kit/gearbox.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { OpenQueue } from './fixtures/open-queue.ts'
import {
  Connection, errorOf, formType, increment, send, startWorker, type Reply, type Worker,
} from './fixtures/worker.ts'

/** A worker of one test's own that pushes to an open queue. */
async function startOne (env: NodeJS.ProcessEnv = {}): Promise<{ worker: Worker, queue: OpenQueue }> {
  const queue = new OpenQueue()
  const worker = await startWorker(env, queue)
  onTestFinished(worker.end)
  return { worker, queue }
}

function connectTo (worker: Worker): Connection {
  const connection = new Connection(worker)
  onTestFinished(() => connection.end())
  return connection
}

async function replyOn (connection: Connection, count = 1): Promise<Reply> {
  return await until(`${count} replies; received: ${connection.received}`, () => connection.replies()[count - 1])
}

describe('an ordinary worker', () => {
  let worker: Worker
  const queue = new OpenQueue()
  beforeAll(async () => { worker = await startWorker({}, queue) })
  afterAll(async () => { await worker.end() })

  test.each(['/', '/increments', '/increment/', '/increment/x', '/total', '/totals/a/b', '/docs/nothing',
    '/docs/static/nothing', '/docs/static/../../package.json', '/nothing?a=b', '/__proto__',
    '//increment'])('404 for GET %s', async (path) => {
    const reply = await send(worker, { path })
    expect(reply.status).toBe(404)
    expect(errorOf(reply).code).toBe('GBX_NOT_FOUND')
  })

  test.each([
    ['GET', '/increment', 'POST'],
    ['HEAD', '/increment', 'POST'],
    ['PUT', '/increment?ack=stored', 'POST'],
    ['DELETE', '/increment', 'POST'],
    ['PATCH', '/increment', 'POST'],
    ['OPTIONS', '/increment', 'POST'],
    ['TRACE', '/increment', 'POST'],
    ['PROPFIND', '/increment', 'POST'],
    ['POST', '/totals', 'GET, HEAD'],
    ['PATCH', '/totals?key=a', 'GET, HEAD'],
    ['POST', '/totals/a', 'GET, HEAD'],
    ['POST', '/totals/a%2Fb', 'GET, HEAD'],
    ['PROPFIND', `/totals/${'%D0%BA'.repeat(128)}`, 'GET, HEAD'],
    ['POST', '/healthz', 'GET, HEAD'],
    ['POST', '/readyz', 'GET, HEAD'],
    ['POST', '/metrics', 'GET, HEAD'],
  ])('405 with Allow for %s %s', async (method, path, allow) => {
    const reply = await send(worker, { method, path })
    expect(reply.status).toBe(405)
    expect(reply.headers.allow).toBe(allow)
    if (method !== 'HEAD') expect(errorOf(reply).code).toBe('GBX_METHOD_NOT_ALLOWED')
  })

  test('a body changes nothing about a 405', async () => {
    const reply = await send(worker,
      { method: 'PUT', path: '/increment', headers: { 'Content-Type': 'application/json' }, body: '{}' })
    expect(reply.status).toBe(405)
    expect(reply.headers.allow).toBe('POST')
  })

  test('a request that is no HTTP gets a 400 and is cut off', async () => {
    const connection = connectTo(worker)
    connection.write('hello\r\n\r\n')
    await connection.closed
    expect(errorOf(connection.replies()[0]!))
      .toEqual({ code: 'GBX_BAD_REQUEST', message: 'this is not an HTTP/1.1 request' })
  })

  test('a body with two lengths is refused', async () => {
    const connection = connectTo(worker)
    connection.write(`POST /increment HTTP/1.1\r\nHost: x\r\nContent-Type: ${formType}\r\nContent-Length: ` +
      '3\r\nTransfer-Encoding: chunked\r\n\r\na=1')
    await connection.closed
    expect(connection.replies()[0]?.status).toBe(400)
    expect(worker.flusher.counts.increments).toBe(0)
  })

  test('headers of more than 16 KiB get a 431', async () => {
    const connection = connectTo(worker)
    connection.write(`GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ${'x'.repeat(17_000)}\r\n\r\n`)
    await connection.closed
    const reply = connection.replies()[0]!
    expect(reply.status).toBe(431)
    expect(errorOf(reply).code).toBe('GBX_HEADERS_TOO_LARGE')
  })

  test('a URL that cannot be decoded gets a 400 that echoes at most 64 characters', async () => {
    const reply = await send(worker, { path: `/totals/%ED%A0%80${'x'.repeat(150)}` })
    expect(reply.status).toBe(400)
    expect(errorOf(reply).message).not.toMatch(/x{65}/)
  })

  test('a 404 echoes at most 64 characters', async () => {
    const reply = await send(worker, { path: `/nothing/${'x'.repeat(1000)}` })
    expect(reply.status).toBe(404)
    expect(errorOf(reply).message).not.toMatch(/x{65}/)
  })

  test('the worker lives and is ready', async () => {
    for (const path of ['/healthz', '/readyz']) {
      expect(await send(worker, { path })).toMatchObject({ status: 200, text: '{"status":"ok"}' })
    }
  })

  test('figures come as Prometheus text', async () => {
    const { status, headers, text } = await send(worker, { path: '/metrics' })
    expect(status).toBe(200)
    expect(headers['content-type']).toBe('text/plain; version=0.0.4; charset=utf-8')
    expect(text).toMatch(/^process_cpu_seconds_total \d/m)
  })

  test('requests one behind the other on one connection are answered in their order', async () => {
    const connection = connectTo(worker)
    const post = (body: string): string =>
      `POST /increment?ack=queued HTTP/1.1\r\nHost: x\r\nContent-Type: ${formType}\r\nContent-Length: ` +
        `${body.length}\r\n\r\n${body}`
    connection.write(`${post('pipelined=1')}${post('pipelined=x')}${post('pipelined=2')}`)
    await until('three replies', () => connection.replies().length === 3)
    expect(connection.replies().map(({ status }) => status)).toEqual([204, 400, 204])
    expect(queue.totals().get('pipelined')).toBe(3n)
  })

  test('an error leaves nothing in the queue', () => {
    expect(new Set(queue.totals().keys())).toEqual(new Set(['pipelined']))
  })
})

describe('API_KEYS', () => {
  const [one, two] = ['first-key', 'second/key+==']
  let worker: Worker
  const queue = new OpenQueue()
  beforeAll(async () => { worker = await startWorker({ API_KEYS: `${one}, ${two}` }, queue) })
  afterAll(async () => { await worker.end() })

  test.each(['/', '/increment', '/totals', '/totals/a', '/metrics', '/docs/nothing', '/nothing', '/healthz/x',
    '/totals/%ED%A0%80'])('401 for %s without one', async (path) => {
    const reply = await send(worker, { path })
    expect(reply.status).toBe(401)
    expect(reply.headers['www-authenticate']).toBe('Bearer')
    expect(errorOf(reply).code).toBe('GBX_UNAUTHORIZED')
  })

  test.each([
    'Bearer', 'Bearer ', 'Bearer wrong', `Bearer ${one}x`, `Bearer ${one.slice(0, -1)}`, `Bearer ${one}, ${two}`,
      `Bearer ${one},${two}`, `Basic ${one}`, one, `Bearer${one}`, `Bearer ${one.toUpperCase()}`,
  ])('401 for a write with Authorization: %s', async (authorization) => {
    const reply = await increment(worker, 'a=1', '', { Authorization: authorization })
    expect(reply.status).toBe(401)
    expect(reply.headers['www-authenticate']).toBe('Bearer')
    expect(errorOf(reply).message).not.toContain(one)
    expect(worker.flusher.counts.increments).toBe(0)
  })

  test.each(['/healthz', '/readyz', '/healthz?'])('%s is open to all', async (path) => {
    expect((await send(worker, { path })).status).toBe(200)
  })

  test.each([`Bearer ${one}`, `bearer ${one}`, `BEARER ${two}`])('%s is let in', async (authorization) => {
    expect((await increment(worker, 'in=1', '', { Authorization: authorization })).status).toBe(204)
    expect((await send(worker, { path: '/docs/json', headers: { Authorization: authorization } })).status).toBe(200)
    expect((await send(worker, { path: '/nothing', headers: { Authorization: authorization } })).status).toBe(404)
  })
})

describe('pages that count', () => {
  const [friend, stranger] = ['https://friend.example', 'https://stranger.example']
  let worker: Worker
  const queue = new OpenQueue()
  beforeAll(async () => {
    worker = await startWorker({ CORS_ORIGINS: `${friend},http://localhost:8080`, API_KEYS: 'k' }, queue)
  })
  afterAll(async () => { await worker.end() })
  const from = async (origin: string, headers: Record<string, string> = {}): Promise<Reply> =>
    await increment(worker, 'a=1', '', { Authorization: 'Bearer k', Origin: origin, ...headers })

  test.each([stranger, 'null', '', 'friend.example', `${friend}.evil.example`, `${friend}:444`, 'http://friend.example',
    'HTTPS://', 'file://', `${friend}/`, `${friend}, ${stranger}`,
    'x'.repeat(500)])('403 for Origin: %s', async (origin) => {
    const reply = await from(origin)
    expect(reply.status).toBe(403)
    const { code, message } = errorOf(reply)
    expect(code).toBe('GBX_FORBIDDEN_ORIGIN')
    expect(message).not.toMatch(/x{65}/)
    expect(reply.headers['access-control-allow-origin']).toBeUndefined()
    expect(worker.flusher.counts.increments).toBe(0)
  })

  test('those of this host may', async () => {
    expect((await from(`http://127.0.0.1:${worker.port}`)).status).toBe(204)
    expect((await from(`http://127.0.0.1:${worker.port + 1}`)).status).toBe(403)
    expect((await from('https://counter.example', { Host: 'counter.example' })).status).toBe(204)
    expect((await from('http://localhost', { Host: 'localhost' })).status).toBe(204)
  })

  test('those of CORS_ORIGINS may, and may read the reply', async () => {
    for (const origin of [friend, 'http://localhost:8080']) {
      const reply = await from(origin)
      expect(reply.status).toBe(204)
      expect(reply.headers['access-control-allow-origin']).toBe(origin)
      expect(reply.headers.vary).toMatch(/origin/i)
    }
    const refused = await increment(worker, 'a=x', '', { Authorization: 'Bearer k', Origin: friend })
    expect(refused.status).toBe(400)
    expect(refused.headers['access-control-allow-origin']).toBe(friend)
  })

  test('a 401 can be read by them too', async () => {
    const reply = await increment(worker, 'a=1', '', { Origin: friend })
    expect(reply.status).toBe(401)
    expect(reply.headers['access-control-allow-origin']).toBe(friend)
  })

  test('a preflight is answered without a key', async () => {
    const preflight = {
      method: 'OPTIONS',
      path: '/increment',
      headers: {
        Origin: friend,
        'Access-Control-Request-Method': 'POST',
        'Access-Control-Request-Headers': 'authorization,idempotency-key',
      },
    }
    const reply = await send(worker, preflight)
    expect(reply.status).toBe(204)
    expect(reply.headers['access-control-allow-origin']).toBe(friend)
    expect(reply.headers['access-control-allow-methods']).toMatch(/POST/)
    expect(reply.headers['access-control-allow-headers']).toMatch(/authorization.*idempotency-key/)
    const other = await send(worker, { ...preflight, headers: { ...preflight.headers, Origin: stranger } })
    expect(other.headers['access-control-allow-origin']).toBeUndefined()
  })

  test('reading is not counting', async () => {
    const reply = await send(worker, { path: '/metrics', headers: { Origin: stranger, Authorization: 'Bearer k' } })
    expect(reply.status).toBe(200)
    expect(reply.headers['access-control-allow-origin']).toBeUndefined()
  })

  test('without CORS_ORIGINS nobody foreign may, and a preflight is nothing special', async () => {
    const { worker } = await startOne()
    expect((await increment(worker, 'a=1', '', { Origin: friend })).status).toBe(403)
    const preflight = await send(worker,
      { method: 'OPTIONS', path: '/increment', headers: { Origin: friend, 'Access-Control-Request-Method': 'POST' } })
    expect(preflight.status).toBe(405)
    expect(preflight.headers['access-control-allow-origin']).toBeUndefined()
  })
})

describe('slow clients', () => {
  test('who do not finish their headers get a 408 and are cut off', async () => {
    const { worker } = await startOne({ HEADERS_TIMEOUT_MS: '200', REQUEST_TIMEOUT_MS: '60000' })
    const connection = connectTo(worker)
    connection.write('POST /increment HTTP/1.1\r\nHost: x\r\nContent-')
    await connection.closed
    const reply = connection.replies()[0]!
    expect(reply.status).toBe(408)
    expect(errorOf(reply).code).toBe('GBX_REQUEST_TIMEOUT')
  })

  test.each(['Content-Length: 100',
    'Transfer-Encoding: chunked'])('who do not finish their body get a 408, are cut off, and count ' +
      'nothing (%s)', async (framing) => {
    const { worker, queue } = await startOne({ HEADERS_TIMEOUT_MS: '200', REQUEST_TIMEOUT_MS: '400' })
    const connection = connectTo(worker)
    connection.write('POST /increment HTTP/1.1\r\nHost: x\r\nContent-Type: ' +
      `${formType}\r\n${framing}\r\n\r\n${framing.startsWith('Transfer') ? '3\r\na=1\r\n' : 'a=1'}`)
    await connection.closed
    const reply = connection.replies()[0]!
    expect(reply.status).toBe(408)
    expect(errorOf(reply).code).toBe('GBX_REQUEST_TIMEOUT')
    expect(worker.flusher.counts.increments).toBe(0)
    expect(queue.list).toEqual([])
  })

  test('a client that leaves in the middle of its body counts nothing', async () => {
    const { worker } = await startOne()
    const connection = connectTo(worker)
    connection.write(`POST /increment HTTP/1.1\r\nHost: x\r\nContent-Type: ${formType}\r\nContent-Length: ` +
      '100\r\n\r\na=1&b=2')
    connection.end()
    await connection.closed
    expect((await increment(worker, 'c=1')).status).toBe(204)
    expect(worker.flusher.counts.increments).toBe(1)
  })

  test('a headers timeout above the one of the whole request is refused at the start', async () => {
    await expect(startOne({ HEADERS_TIMEOUT_MS: '20000', REQUEST_TIMEOUT_MS: '1000' })).rejects.toThrow(
      /HEADERS_TIMEOUT_MS \(20000\) must not be above REQUEST_TIMEOUT_MS \(1000\)/
    )
  })

  test('an idle connection is closed', async () => {
    const { worker } = await startOne({ KEEP_ALIVE_TIMEOUT_MS: '100' })
    const connection = connectTo(worker)
    connection.write('GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
    await connection.closed
    expect(connection.replies().map(({ status }) => status)).toEqual([200])
  })

  test('a reply that waits for its ack level longer than a request may take to arrive is not cut off', async () => {
    const { worker, queue } = await startOne({
      HEADERS_TIMEOUT_MS: '100',
      REQUEST_TIMEOUT_MS: '200',
      KEEP_ALIVE_TIMEOUT_MS: '100',
      ACK_TIMEOUT_MS: '1500',
    })
    queue.hold()
    expect((await increment(worker, 'a=1')).status).toBe(202)
  })
})

test('connections beyond CONNECTIONS_MAX are closed, and come in when another has left', async () => {
  const { worker } = await startOne({ CONNECTIONS_MAX: '2' })
  const [first, second] = [connectTo(worker), connectTo(worker)]
  for (const connection of [first, second]) {
    connection.write('GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
    expect((await replyOn(connection)).status).toBe(200)
  }
  const third = connectTo(worker)
  await third.closed
  expect(third.received).toBe('')
  second.end()
  await until('a place', async () => (await send(worker, { path: '/healthz' })).status === 200)
})

describe('a worker that can hold no more', () => {
  /** A worker whose first batch is stuck on its way, so that nothing more leaves its memory. */
  async function startStuck (env: NodeJS.ProcessEnv): Promise<{ worker: Worker, queue: OpenQueue }> {
    const { worker, queue } = await startOne(env)
    queue.hold()
    expect((await increment(worker, 'stuck=1', '?ack=memory')).status).toBe(202)
    await until('a batch on its way', () => worker.flusher.unstoredBatches === 1 && worker.flusher.pendingKeys === 0)
    return { worker, queue }
  }

  function expectOverloaded (reply: Reply, setting: string): void {
    expect(reply.status).toBe(503)
    expect(reply.headers['retry-after']).toMatch(/^[1-9]\d*$/)
    const { code, message } = errorOf(reply)
    expect(code).toBe('GBX_OVERLOADED')
    expect(message).toContain(setting)
  }

  test('PENDING_KEYS_MAX: takes no new keys, goes on with those it has, and recovers', async () => {
    const { worker, queue } = await startStuck({ PENDING_KEYS_MAX: '3' })
    expect((await increment(worker, 'a=1&b=1&c=1', '?ack=memory')).status).toBe(202)
    expectOverloaded(await increment(worker, 'd=1', '?ack=memory'), 'PENDING_KEYS_MAX')
    expectOverloaded(await increment(worker, 'a=1&d=1', '?ack=memory'), 'PENDING_KEYS_MAX')
    expect((await increment(worker, 'a=1&b=1&a=1', '?ack=memory')).status).toBe(202)
    expect(worker.flusher.pendingKeys).toBe(3)
    queue.release()
    await until('all to be pushed', () => queue.totals().size === 4)
    expect(queue.totals()).toEqual(new Map([['stuck', 1n], ['a', 3n], ['b', 2n], ['c', 1n]]))
    expect((await increment(worker, 'd=1')).status).toBe(204)
  })

  test('PENDING_KEYS_MAX holds for requests with an Idempotency-Key, also where they repeat ' +
    'keys that wait', async () => {
    const { worker } = await startStuck({ PENDING_KEYS_MAX: '3' })
    expect((await increment(worker, 'a=1', '?ack=memory')).status).toBe(202)
    const replies = []
    for (let i = 0; i < 5; i++) {
      replies.push(await increment(worker, 'a=1', '?ack=memory', { 'Idempotency-Key': `request-${i}` }))
    }
    expect(replies.map(({ status }) => status)).toEqual([202, 202, 503, 503, 503])
    expectOverloaded(replies[4]!, 'PENDING_KEYS_MAX')
  })

  test('PENDING_BYTES_MAX: takes no new keys, goes on with those it has, and recovers', async () => {
    const { worker, queue } = await startStuck({ PENDING_BYTES_MAX: '2048' })
    expectOverloaded(await increment(worker, Array.from({ length: 50 }, (_, i) => `k${i}=1`).join('&'), '?ack=memory'),
      'PENDING_BYTES_MAX')
    let last: Reply | undefined
    let taken = 0
    for (let i = 0; i < 100 && last?.status !== 503; i++) {
      last = await increment(worker, `${i}${'x'.repeat(200)}=1`, '?ack=memory')
      if (last.status === 202) taken++
    }
    expectOverloaded(last!, 'PENDING_BYTES_MAX')
    expect(taken).toBeGreaterThan(2)
    expect(worker.flusher.pendingBytes).toBeLessThanOrEqual(2048)
    expect((await increment(worker, `0${'x'.repeat(200)}=1`, '?ack=memory')).status).toBe(202)
    queue.release()
    await until('all to be pushed', () => queue.totals().size === taken + 1)
    expect(worker.flusher.pendingBytes).toBe(0)
    expect((await increment(worker, 'd=1')).status).toBe(204)
  })

  test('PENDING_BYTES_MAX holds for requests with an Idempotency-Key, also where they repeat ' +
    'keys that wait', async () => {
    const { worker } = await startStuck({ PENDING_BYTES_MAX: '2048' })
    expect((await increment(worker, 'a=1', '?ack=memory')).status).toBe(202)
    const statuses = []
    for (let i = 0; i < 100; i++) {
      statuses.push((await increment(worker, 'a=1', '?ack=memory', { 'Idempotency-Key': `request-${i}` })).status)
    }
    expect(statuses.at(-1)).toBe(503)
    expect(worker.flusher.pendingBytes).toBeLessThanOrEqual(2048)
  })

  test('PENDING_REQUESTS_MAX: holds no more replies, and counts nothing of what it refuses', async () => {
    const { worker, queue } = await startStuck({ PENDING_REQUESTS_MAX: '2' })
    const held = [increment(worker, 'a=1'), increment(worker, 'a=1')]
    await until('two pending replies', () => worker.flusher.pendingReplies === 2)
    expectOverloaded(await increment(worker, 'a=1'), 'PENDING_REQUESTS_MAX')
    expectOverloaded(await increment(worker, 'a=1', '?ack=stored'), 'PENDING_REQUESTS_MAX')
    queue.release()
    expect((await Promise.all(held)).map(({ status }) => status)).toEqual([204, 204])
    expect(queue.totals().get('a')).toBe(2n)
    expect((await increment(worker, 'a=1')).status).toBe(204)
  })
})

describe('a queue out of reach', () => {
  test('for a moment makes replies late, for longer than ACK_TIMEOUT_MS refuses all but memory, and then ' +
    'all comes in', async () => {
    const { worker, queue } = await startOne({ ACK_TIMEOUT_MS: '300' })
    expect((await increment(worker, 'a=1')).status).toBe(204)
    queue.disconnect()
    expect((await increment(worker, 'a=1')).status).toBe(202)
    await until('it to be too long', () => worker.flusher.failingMs > 300)
    for (const query of ['', '?ack=queued', '?ack=stored']) {
      const reply = await increment(worker, 'refused=1', query)
      expect(reply.status).toBe(503)
      expect(reply.headers['retry-after']).toMatch(/^[1-9]\d*$/)
      const { code, message } = errorOf(reply)
      expect(code).toBe('GBX_QUEUE_UNREACHABLE')
      expect(message).toContain('cut')
    }
    expect((await increment(worker, 'a=x')).status).toBe(400)
    expect((await increment(worker, 'a=1', '?ack=memory')).status).toBe(202)
    expect((await send(worker, { path: '/healthz' })).status).toBe(200)
    queue.connect()
    await until('all of it', () => queue.totals().get('a') === 3n)
    await until('to be ready', async () => (await increment(worker, 'a=1')).status === 204)
    expect(queue.totals()).toEqual(new Map([['a', 4n]]))
  })

  test('shows in /readyz with its reason', async () => {
    const { worker, queue } = await startOne()
    await until('to be ready', async () => (await send(worker, { path: '/readyz' })).status === 200)
    queue.disconnect()
    const reply = await send(worker, { path: '/readyz' })
    expect(reply.status).toBe(503)
    expect(errorOf(reply)).toEqual({
      code: 'GBX_QUEUE_UNREACHABLE',
      message: "the queue can't be reached: cut",
    })
    expect((await send(worker, { path: '/healthz' })).status).toBe(200)
    queue.connect()
    await until('to be ready again', async () => (await send(worker, { path: '/readyz' })).status === 200)
  })
})

test('a worker that stops answers what it has, and what still comes on open connections gets a 503', async () => {
  const { worker, queue } = await startOne()
  queue.hold()
  const held = increment(worker, 'held=1')
  await until('a pending reply', () => worker.flusher.pendingReplies === 1)
  const late = connectTo(worker)
  late.write(`POST /increment HTTP/1.1\r\nHost: x\r\nContent-Type: ${formType}\r\nContent-Length: 3\r\n`)
  // A second request tells that the half of the first one has arrived: both came in on this event loop in that order.
  await send(worker, { path: '/healthz' })
  const closing = worker.server.close()
  await until('the port to be closed', async () => await new Promise<boolean>((resolve) => {
    request({ host: '127.0.0.1', port: worker.port, agent: false }, () => resolve(false)).on('error',
      () => resolve(true)).end()
  }))
  late.write('\r\na=1')
  const reply = await replyOn(late)
  queue.release()
  expect((await held).status).toBe(204)
  await closing
  expect(reply.status).toBe(503)
  expect(errorOf(reply).code).toBe('GBX_STOPPING')
  expect(queue.totals()).toEqual(new Map([['held', 1n]]))
})

test('under npm start one scrape shows every figure', async () => {
  const gearbox = await startAll({ DATABASE_PATH: `${temporaryDir()}/numbers.db` })
  onTestFinished(async () => { await gearbox.end() })
  const port = Number(new URL(gearbox.url).port)
  for (let i = 0; i < 10; i++) expect((await increment({ port }, 'a=1&b=2', '?ack=stored')).status).toBe(204)
  expect((await increment({ port }, 'a=x')).status).toBe(400)
  const { status, headers, text } = await send({ port }, { path: '/metrics' })
  expect(status).toBe(200)
  expect(headers['content-type']).toMatch(/^text\/plain; version=0\.0\.4/)
  for (const line of text.trimEnd().split('\n')) {
    const value = /(?:[-+]?\d[\d.e+-]*|NaN|\+Inf)$/.source
    expect(line).toMatch(new RegExp(`^(?:$|# (?:HELP|TYPE) [a-z0-9_]+ .|[a-z0-9_]+(?:\\{[^{}]*\\})? ${value})`))
  }
  for (const name of [
    'requests_total', 'increments_total', 'pending_keys', 'unstored_batches', 'flush_duration_seconds',
    'batches_pushed_total', 'push_retries_total', 'window_replays_total', 'queue_length', 'queue_durable',
    'batches_applied_total', 'batches_duplicate_total', 'sequence_gaps_total', 'rejected_total',
    'commit_duration_seconds', 'lag_seconds',
  ]) expect(text).toMatch(new RegExp(`^# TYPE gearbox_${name} (?:counter|gauge|histogram)$`, 'm'))
  expect(text).toMatch(/^gearbox_increments_total 20$/m)
  expect(text).toMatch(/^gearbox_requests_total\{status="204"\} 10$/m)
  expect(text).toMatch(/^gearbox_requests_total\{status="400"\} 1$/m)
  expect(text).toMatch(/^process_resident_memory_bytes \d/m)
})
