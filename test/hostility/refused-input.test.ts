// After a reply that refuses a connection's input nothing that still arrives on it is read as a request: its sender was
// told that it did not count, and sends it again. On both paths, and with the reply arriving though its client goes on
// sending.
import { randomInt } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import { OpenQueue } from '@gearbox/web/fixtures/open-queue.ts'
import { formType, send, startWorker, type Worker } from '@gearbox/web/fixtures/worker.ts'
import { Random } from '@gearbox/test-kit/random.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { readReplies } from './fixtures.ts'

/** A client that goes on sending whatever it is told. */
class Stubborn {
  readonly socket: Socket
  received = ''
  /** Whether the server has ended its side. */
  ended = false
  reset = false
  readonly closed: Promise<void>

  constructor ({ port }: Worker) {
    this.socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true })
    this.socket.on('data', (chunk) => { this.received += String(chunk) })
    this.socket.on('end', () => { this.ended = true })
    this.socket.on('error', () => { this.reset = true })
    this.closed = new Promise((resolve) => this.socket.once('close', () => resolve()))
    onTestFinished(() => { this.socket.destroy() })
  }

  write (text: string): void {
    if (this.socket.writable) this.socket.write(text)
  }

  statuses (): number[] {
    return readReplies(this.received).map(({ statusLine }) => Number(statusLine.slice(9, 12)))
  }
}

async function start (fastLane: string, env: NodeJS.ProcessEnv = {}): Promise<{ worker: Worker, queue: OpenQueue }> {
  const queue = new OpenQueue()
  const worker =
    await startWorker({ FAST_LANE: fastLane, HEADERS_TIMEOUT_MS: '200', REQUEST_TIMEOUT_MS: '300', ...env }, queue)
  onTestFinished(worker.end)
  return { worker, queue }
}

function post (body: string, fields = `Content-Length: ${body.length}\r\n`, type: string = formType): string {
  return `POST /increment HTTP/1.1\r\nHost: x\r\nContent-Type: ${type}\r\n${fields}\r\n${body}`
}

const chunked = 'Transfer-Encoding: chunked\r\n'
const chunk = (text: string): string => `${text.length.toString(16)}\r\n${text}\r\n`
const late = post('late=1')
const tooLong = `long=${'1'.repeat(70_000)}`

describe.each(['on', 'off'])('with FAST_LANE=%s', (fastLane) => {
  test.each<{ name: string, first: string, then: string, statuses: number[] }>([
    { name: 'a silent connection and then a whole request', first: '', then: late, statuses: [408] },
    { name: 'a head whose rest comes too late', first: late.slice(0, 40), then: late.slice(40), statuses: [408] },
    {
      name: 'a head but for its last byte',
      first: late.slice(0, -'late=1'.length - 1),
      then: late.slice(-'late=1'.length - 1),
      statuses: [408],
    },
    {
      name: 'a head that comes too late on a kept connection',
      first: post('kept=1') + late.slice(0, 40),
      then: late.slice(40),
      statuses: [204, 408],
    },
    {
      name: 'a body that comes too late, and another request',
      first: late.slice(0, -1),
      then: late.slice(-1) + late,
      statuses: [408],
    },
    {
      name: 'a chunked body that comes too late, and another request',
      first: post(chunk('late=1'), chunked),
      then: `0\r\n\r\n${late}`,
      statuses: [408],
    },
    {
      name: 'a body whose request was refused by its head, and another request',
      first: post('late=1', undefined, 'text/plain').slice(0, -1),
      then: `1${late}`,
      statuses: [415],
    },
    { name: 'a request behind a body that is too long', first: post(tooLong) + late, then: late, statuses: [413] },
    {
      name: 'a body that is too long, and comes later',
      first: post('', `Content-Length: ${tooLong.length}\r\n`),
      then: tooLong + late,
      statuses: [413],
    },
    {
      name: 'a request behind a chunked body that is too long',
      first: post(chunk(tooLong) + chunk(''), chunked) + late,
      then: late,
      statuses: [413],
    },
    {
      name: 'a request behind a bad chunk',
      first: post('zz\r\n', chunked),
      then: `${late}0\r\n\r\n${late}`,
      statuses: [400],
    },
    { name: 'a request behind garbage', first: `no request\r\n\r\n${late}`, then: late, statuses: [400] },
    {
      name: 'a request behind headers that are too long',
      first: post('late=1', `X: ${'x'.repeat(17_000)}\r\n`),
      then: late,
      statuses: [431],
    },
    {
      name: 'a request behind an Expect that can not be met',
      first: post('late=1', 'Content-Length: 6\r\nExpect: miracles\r\n') + late,
      then: late,
      statuses: [417],
    },
    {
      name: 'the body behind an Expect that can not be met',
      first: post('', 'Content-Length: 6\r\nExpect: miracles\r\n'),
      then: `late=1${late}`,
      statuses: [417],
    },
    {
      name: 'a request behind one that asks to close',
      first: post('kept=1', 'Content-Length: 6\r\nConnection: close\r\n') + late,
      then: late,
      statuses: [204],
    },
    {
      name: 'a request behind one of HTTP/1.0',
      first: post('kept=1').replace('HTTP/1.1', 'HTTP/1.0') + late,
      then: late,
      statuses: [204],
    },
    {
      name: 'a request behind an Upgrade',
      first: post('kept=1', 'Content-Length: 6\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n') + late,
      then: late,
      statuses: [204],
    },
    {
      name: 'a request behind a CONNECT',
      first: `CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n${late}`,
      then: late,
      statuses: [],
    },
  ])('$name is not counted', async ({ first, then, statuses }) => {
    const { worker, queue } = await start(fastLane)
    const client = new Stubborn(worker)
    client.write(first)
    await until(`the end of the server's side; received: ${client.received}`, () => client.ended)
    client.write(then)
    client.socket.end()
    await client.closed
    // What came after all of it is answered: the worker has read what it reads.
    expect((await send(worker, { path: '/healthz' })).status).toBe(200)
    expect(client.statuses()).toEqual(statuses)
    expect([...queue.totals().keys()]).toEqual(statuses.includes(204) ? ['kept'] : [])
    expect(worker.flusher.counts.increments).toBe(statuses.filter((status) => status === 204).length)
  })

  test.each<{ name: string, next: string, then: string, statuses: number[], inTime?: number }>([
    // On the fast lane a client has time until no reply is due any more: then all of these are.
    { name: 'half a head', next: late.slice(0, 40), then: late.slice(40), statuses: [204], inTime: 1 },
    { name: 'half a body', next: late.slice(0, -1), then: late.slice(-1) + late, statuses: [204, 408], inTime: 2 },
    {
      name: 'half a chunked body',
      next: post(chunk('late=1'), chunked),
      then: `0\r\n\r\n${late}`,
      statuses: [204, 408],
      inTime: 2,
    },
    {
      name: 'a body that is too long',
      next: post('', `Content-Length: ${tooLong.length}\r\n`),
      then: tooLong + late,
      statuses: [204, 413],
    },
    {
      name: 'an Expect',
      next: post('late=1', 'Content-Length: 6\r\nExpect: miracles\r\n') + late,
      then: late,
      statuses: [204, 417],
    },
    { name: 'a CONNECT', next: `CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n${late}`, then: late, statuses: [204] },
    {
      name: 'garbage',
      next: `no request\r\n\r\n${late}`,
      then: late,
      statuses: fastLane === 'off' ? [204] : [204, 400],
    },
  ])('$name while a reply is due, and more when its time is up: what is refused does not count', async ({
    next,
    then,
    statuses,
    inTime = 0,
  }) => {
    const { worker, queue } = await start(fastLane, { ACK_TIMEOUT_MS: '30000' })
    queue.hold()
    const client = new Stubborn(worker)
    client.write(post('kept=1') + next)
    await until('the reply to be pending', () => worker.flusher.pendingReplies === 1)
    // Longer than the timeouts, and than the fast lane keeps a slow connection.
    await delay(1100)
    client.write(then)
    await send(worker, { path: '/healthz' })
    await delay(100)
    queue.release()
    const expected = fastLane === 'on' && inTime > 0 ? [204, ...Array<number>(inTime).fill(204)] : statuses
    await until(`all replies; received: ${client.received}`, () => client.statuses().length >= expected.length)
    client.write('garbage\r\n\r\n')
    client.socket.end()
    await client.closed
    expect(client.statuses().slice(0, expected.length)).toEqual(expected)
    expect(worker.flusher.counts.increments).toBe(expected.filter((status) => status === 204).length)
  })

  test.each([['one segment', Infinity],
    ['pieces of 7 bytes',
      7]])('a chunked body that turns out too long, with a request behind it, in %s', async (_name, size) => {
    const { worker } = await start(fastLane,
      { BODY_BYTES_MAX: '30', HEADERS_TIMEOUT_MS: '10000', REQUEST_TIMEOUT_MS: '10000' })
    const client = new Stubborn(worker)
    const sent = post(chunk('a=1&'.repeat(10)) + chunk(''), chunked) + late
    for (let at = 0; at < sent.length; at += size) client.write(sent.slice(at, at + size))
    await until(`the end of the server's side; received: ${client.received}`, () => client.ended)
    client.write(late)
    client.socket.end()
    await client.closed
    expect(client.statuses()).toEqual([413])
    expect(worker.flusher.counts.increments).toBe(0)
  })

  test.each<{ name: string, first: string, more: string, status: number }>([
    {
      name: 'a body of 16 MiB',
      first: post('', `Content-Length: ${2 ** 24}\r\n`),
      more: 'x'.repeat(2 ** 24),
      status: 413,
    },
    { name: 'a chunked body of 16 MiB', first: post('', chunked), more: chunk('x'.repeat(2 ** 24)), status: 413 },
    { name: 'headers of 4 MiB', first: 'POST /increment HTTP/1.1\r\n', more: 'X: y\r\n'.repeat(700_000), status: 431 },
    { name: 'requests behind garbage', first: 'garbage\r\n\r\n', more: late.repeat(50_000), status: 400 },
  ])('who sends $name and reads only then gets its reply', async ({ first, more, status }) => {
    const { worker } = await start(fastLane, { HEADERS_TIMEOUT_MS: '10000', REQUEST_TIMEOUT_MS: '10000' })
    const client = new Stubborn(worker)
    client.socket.pause()
    client.socket.write(first + more)
    await new Promise<void>((resolve) => client.socket.end(resolve))
    client.socket.resume()
    await client.closed
    expect(client.reset).toBe(false)
    expect(client.statuses()).toEqual([status])
    expect(worker.flusher.counts.increments).toBe(0)
  })

  test('who neither closes nor stops sending behind a refusal is cut off', async () => {
    const { worker } = await start(fastLane)
    const [idle, sending] = [new Stubborn(worker), new Stubborn(worker)]
    const timer = setInterval(() => sending.write(late), 10)
    onTestFinished(() => clearInterval(timer))
    idle.write('garbage\r\n\r\n')
    sending.write('garbage\r\n\r\n')
    await until('both to be closed',
      async () => await new Promise<boolean>((resolve) =>
        worker.server.server.getConnections((_error, count) => resolve(count === 0))))
    await sending.closed
    expect([idle.statuses(), sending.statuses()]).toEqual([[400], [400]])
    expect(worker.flusher.counts.increments).toBe(0)
  })

  test('a client that resets its connection behind a CONNECT while a reply is due does no harm', async () => {
    const { worker, queue } = await start(fastLane, { ACK_TIMEOUT_MS: '30000' })
    queue.hold()
    const client = new Stubborn(worker)
    client.write(`${post('kept=1')}CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n`)
    await until('the reply to be pending', () => worker.flusher.pendingReplies === 1)
    await send(worker, { path: '/healthz' })
    client.socket.resetAndDestroy()
    await send(worker, { path: '/healthz' })
    queue.release()
    await until('the connection to be gone',
      async () => await new Promise<boolean>((resolve) =>
        worker.server.server.getConnections((_error, count) => resolve(count === 0))))
    expect((await send(worker, { path: '/healthz' })).status).toBe(200)
  })

  const seed = randomInt(2 ** 31)
  test(`whatever is sent whenever: a refusal was not counted, and nothing behind one is (seed ${seed})`, async () => {
    const random = new Random(seed)
    const { worker, queue } = await start(fastLane, { ACK_TIMEOUT_MS: '30000' })
    const clients = Array.from({ length: 150 }, (_, i) => drawClient(random, i))
    const outcomes =
      await Promise.all(clients.map(async ({ pieces, keys }) => ({ keys, statuses: await play(worker, pieces) })))
    await until('all to be pushed', () => worker.flusher.pendingKeys === 0 && worker.flusher.pendingReplies === 0)
    const counted = queue.totals()
    const problems = outcomes.flatMap(({ keys, statuses }, i) => {
      const wrong = keys.some((key, at) => {
        const status = statuses[at]
        if (status === undefined) return statuses.some((other) => refusesInput.includes(other)) && counted.has(key)
        return counted.has(key) !== (status === 204)
      })
      return wrong
        ? [`client ${i} ${JSON.stringify(clients[i]!.pieces)}: ${statuses.join()}, counted ` +
        `${keys.filter((key) => counted.has(key)).join()}`]
        : []
    })
    expect(problems).toEqual([])
    const all = outcomes.flatMap(({ statuses }) => statuses)
    expect([...new Set(all)]).toEqual(expect.arrayContaining([204, 400, 408, 413, 417]))
    expect([...counted.values()].every((total) => total === 1n)).toBe(true)
  })
})

const refusesInput = [408, 413, 417, 431]

/** What one client sends, with the pause before each piece in ms, and the key of each of its requests. */
function drawClient (random: Random, client: number): {
  pieces: Array<readonly [pauseMs: number, bytes: string]>
  keys: string[]
} {
  const keys = Array.from({ length: random.int(1, 4) }, (_, i) => `c${client}-${i}`)
  const bytes = keys.map((key) => {
    const body = `${key}=1`
    return random.pick([
      () => post(body),
      () => post(body),
      () => post(chunk(body) + chunk(''), chunked),
      () => post(body, `Content-Length: ${body.length}\r\nExpect: miracles\r\n`),
      () => post(`${body}&${tooLong}`),
      () => post(`${chunk(body)}zz\r\n`, chunked),
      () => post(body, `Content-Length: ${body.length}\r\nConnection: close\r\n`),
    ])()
  }).join('')
  const cuts = Array.from({ length: random.int(0, 4) },
    () => random.int(0, Math.min(bytes.length, 700))).sort((a, b) => a - b)
  // The deadlines are 200 and 300 ms, looked at every 500; on the fast lane they begin up to a second later.
  const pieces = [0,
    ...cuts].map((from, i) => [random.chance(0.5) ? 0 : random.int(0, 1600), bytes.slice(from, cuts[i])] as const)
  return { pieces, keys }
}

/** @returns the statuses that came back */
async function play (worker: Worker,
  pieces: ReadonlyArray<readonly [pauseMs: number, bytes: string]>): Promise<number[]> {
  const client = new Stubborn(worker)
  for (const [pauseMs, bytes] of pieces) {
    if (pauseMs > 0) await delay(pauseMs)
    client.write(bytes)
  }
  await until('an answer', () => client.ended || client.reset || client.statuses().length > 0)
  client.socket.end()
  await client.closed
  return client.statuses()
}
