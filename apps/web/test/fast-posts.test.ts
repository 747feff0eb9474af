// Requests to a plugin's route that the fast lane answers, over real sockets: which ones, in which order their replies
// leave, and what becomes of clients that are slow, gone, or send without end. That both paths give the same replies is
// compared in test/fuzz.
import { describe, expect, onTestFinished, test } from 'vitest'
import { definePlugin, replyError, type FastReply, type LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { Pipe } from '@gearbox/test-kit/pipe.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { OpenQueue } from './fixtures/open-queue.ts'
import { Connection, errorOf, formType, send, startWorker, type Reply, type Worker } from './fixtures/worker.ts'

interface Waiting { readonly name: string, readonly reply: FastReply }

interface Parts {
  readonly worker: Worker
  readonly queue: OpenQueue
  /** Requests that the plugin has not answered. Those for the names `now`, `throw` … are answered at once. */
  readonly waiting: Waiting[]
  /** How many requests passed Node's parser. */
  slow (): number
}

const atOnce: Readonly<Record<string, (reply: FastReply) => void>> = {
  now: (reply) => reply.send(200, {}, '"fast"'),
  throw: () => { throw replyError(409, 'GBX_SOLD_OUT', 'there are none left', { left: 0 }) },
  wrong: () => { throw new Error('hunter2') },
  header: (reply) => reply.send(200, { location: 'a\r\nx: y' }, '1'),
  status: (reply) => reply.send(1000, {}, '1'),
  empty: (reply) => reply.send(204, {}, '1'),
  'wrong-fail': (reply) => reply.fail(replyError(409, 'GBX_X', 'x'), { location: '\0' }),
  twice: (reply) => {
    reply.send(201, { 'cache-control': 'no-store' }, '{"e":"é"}')
    reply.send(202, {}, '2')
    reply.fail(new Error('hunter2'))
  },
}

function line (waiting: Waiting[]): LoadedPlugin {
  const plugin = definePlugin({
    name: 'line',
    web: (app, context) => {
      const config = { needs: 'count', public: 'tickets' } as const
      const body = { type: 'object', properties: { a: { type: 'string' } } } as const
      app.post('/line/:name', { config, schema: { body } }, async (_request, reply) =>
        reply.type('application/json; charset=utf-8').send('"slow"'))
      app.post('/line/:name/more', { config: { needs: 'count' } }, async () => 'more')
      app.get('/line/:name', { config: { needs: 'read' } }, async () => 'read')
      context.fastPost('/line/', (name, reply) => {
        const answer = atOnce[name]
        if (answer === undefined) waiting.push({ name, reply })
        else answer(reply)
      })
    },
  })
  return { plugin, settings: {} }
}

async function start (env: NodeJS.ProcessEnv = {}): Promise<Parts> {
  const [queue, waiting] = [new OpenQueue(), new Array<Waiting>()]
  const worker = await startWorker({ FAST_LANE: 'on', ...env }, queue, [line(waiting)])
  onTestFinished(worker.end)
  let slow = 0
  worker.server.server.on('request', () => { slow++ })
  return { worker, queue, waiting, slow: () => slow }
}

function connectTo (worker: Worker): Connection {
  const connection = new Connection(worker)
  onTestFinished(() => connection.end())
  return connection
}

/** A connection without a socket, on which what is pushed is read at once. */
function open (worker: Worker): Pipe {
  const pipe = new Pipe()
  onTestFinished(() => { pipe.destroy() })
  worker.server.server.emit('connection', pipe)
  return pipe
}

function post (name: string, ...lines: readonly string[]): string {
  return `POST /line/${name} HTTP/1.1\r\nHost: x\r\n${lines.map((text) => `${text}\r\n`).join('')}\r\n`
}

function count (body: string, query = ''): string {
  return `POST /increment${query} HTTP/1.1\r\nHost: x\r\nContent-Type: ${formType}\r\nContent-Length: ` +
    `${body.length}\r\n\r\n${body}`
}

async function repliesOn (connection: Connection, number: number): Promise<Reply[]> {
  await until(`${number} replies; received: ${connection.received}`, () => connection.replies().length >= number)
  return connection.replies()
}

/** One request on its own connection, as a client that keeps it open sends it. */
async function ask ({ worker }: Pick<Parts, 'worker'>, request: string): Promise<Reply> {
  const connection = connectTo(worker)
  connection.write(request)
  const [reply] = await repliesOn(connection, 1)
  connection.end()
  return reply!
}

const textsOf = (replies: readonly Reply[]): string[] => replies.map(({ status, text }) => `${status} ${text}`)
const statusesOf = (received: string): string[] => received.match(/(?<=HTTP\/1\.1 )\d+/g) ?? []

describe('requests by path', () => {
  test('plain ones bypass Node\'s parser, all else goes to the route', async () => {
    const { worker, slow } = await start()
    const connection = connectTo(worker)
    connection.write(post('now') + post('now', 'Content-Length: 0', `Content-Type: ${formType}`, 'Accept: */*'))
    expect(textsOf(await repliesOn(connection, 2))).toEqual(['200 "fast"', '200 "fast"'])
    expect(slow()).toBe(0)
    const others = [post('now', 'Idempotency-Key: k'), post('now', 'Accept: text/plain'), post('n%6fw'),
      `${post('now', 'Content-Length: 3', `Content-Type: ${formType}`)}a=1`]
    for (const other of others) expect((await ask({ worker }, other)).text, other).toBe('"slow"')
    expect(slow()).toBe(others.length)
    connection.write(post('now/more') + post('now'))
    expect(textsOf(await repliesOn(connection, 4)).slice(2)).toEqual(['200 more', '200 "slow"'])
  })

  test('with FAST_LANE=off all go to the route', async () => {
    expect((await ask(await start({ FAST_LANE: 'off' }), post('now'))).text).toBe('"slow"')
  })

  test('below BASE_PATH only', async () => {
    const parts = await start({ BASE_PATH: '/gearbox' })
    expect((await ask(parts, post('now').replace('/line', '/gearbox/line'))).text).toBe('"fast"')
    expect((await ask(parts, post('now'))).status).toBe(404)
  })

  test('a key has to be right, and none is needed where the route is public', async () => {
    const env = { API_KEYS: 'count:one,read:two' }
    const [closed, publicly] = [await start(env), await start({ ...env, PUBLIC: 'tickets' })]
    const answers = async (parts: Parts): Promise<string[]> => {
      const keys = [undefined, 'one', 'two', 'three']
      return await Promise.all(keys.map(async (key) => {
        const lines = key === undefined ? [] : [`Authorization: Bearer ${key}`]
        const { status, text } = await ask(parts, post('now', ...lines))
        return status === 200 ? text : String(status)
      }))
    }
    expect(await answers(closed)).toEqual(['401', '"fast"', '403', '401'])
    expect(await answers(publicly)).toEqual(['"fast"', '"fast"', '"fast"', '401'])
  })

  test.each(['line/', '/line', '/', '/line/../', '/other/', '/line/:x/', '//line/'])('%s is no prefix that a route has',
    async (prefix) => {
      const plugin = definePlugin({
        name: 'line',
        web: (app, context) => {
          app.post('/line/:name', { config: { needs: 'count' } }, async () => '')
          context.fastPost(prefix, () => {})
        },
      })
      await expect(startWorker({}, new OpenQueue(), [{ plugin, settings: {} }])).rejects.toThrow(/"line".*fastPost/)
    })

  test('a prefix with two routes behind it is refused', async () => {
    const plugin = definePlugin({
      name: 'line',
      web: (app, context) => {
        context.fastPost('/line/', () => {})
        app.post('/line/:name', { config: { needs: 'count' } }, async () => '')
        app.post('/line/other', { config: { needs: 'admin' } }, async () => '')
      },
    })
    await expect(startWorker({}, new OpenQueue(), [{ plugin, settings: {} }])).rejects.toThrow('and no other there')
  })
})

describe('an answer', () => {
  test('is what the plugin says the first time, with the headers of every reply around its own', async () => {
    const { worker } = await start({ CORS_ORIGINS: 'https://friend.example' })
    const connection = connectTo(worker)
    connection.write(post('twice'))
    await repliesOn(connection, 1)
    expect(connection.received.replace(/Date: .*/, 'Date: now')).toBe('HTTP/1.1 201 Created\r\nvary: Origin\r\n' +
      'cache-control: no-store\r\ncontent-type: application/json; charset=utf-8\r\ncontent-length: 10\r\n' +
      'Date: now\r\nConnection: keep-alive\r\nKeep-Alive: timeout=72\r\n\r\n{"e":"é"}')
    expect(worker.replies).toEqual(new Map([[201, 1]]))
  })

  test('may be thrown; what can\'t be written is a 500', async () => {
    const { worker } = await start()
    const connection = connectTo(worker)
    connection.write(['throw', 'wrong', 'header', 'status', 'empty', 'wrong-fail'].map((name) => post(name)).join(''))
    const [thrown, ...wrong] = await repliesOn(connection, 6)
    expect([thrown!.status, JSON.parse(thrown!.text)]).toEqual([409, {
      statusCode: 409, code: 'GBX_SOLD_OUT', error: 'Conflict', message: 'there are none left', left: 0,
    }])
    for (const reply of wrong) expect(errorOf(reply).code).toBe('GBX_INTERNAL')
    expect(connection.received).not.toMatch(/hunter2|x: y/)
  })

  test('that comes when the connection is gone is dropped', async () => {
    const { worker, waiting } = await start()
    const connection = connectTo(worker)
    connection.write(post('a') + post('b'))
    await until('both to wait', () => waiting.length === 2)
    expect(waiting.map(({ reply }) => reply.isGone())).toEqual([false, false])
    connection.end()
    await until('it to be seen', () => waiting.every(({ reply }) => reply.isGone()))
    for (const { reply } of waiting.reverse()) reply.send(200, {}, '1')
    await until('nothing to be counted', () => worker.flusher.replyBytes === 0)
    expect((await ask({ worker }, post('now'))).text).toBe('"fast"')
  })

  test('reaches a client that has ended its side only, of which a plugin knows', async () => {
    const { worker, waiting } = await start()
    const connection = connectTo(worker)
    connection.write(post('a'))
    connection.finish()
    await until('it to be seen', () => waiting[0]?.reply.isGone() === true)
    waiting[0]!.reply.send(200, {}, '1')
    await connection.closed
    expect(textsOf(connection.replies())).toEqual(['200 1'])
  })
})

describe('the order of replies', () => {
  test('is that of the requests of both shapes, whichever is known first', async () => {
    const { worker, queue, waiting, slow } = await start()
    queue.hold()
    const connection = connectTo(worker)
    connection.write(count('a=1') + post('x') + count('a=1', '?ack=memory') + post('now') + post('y') + count('a=x'))
    await until('all to be there', () => waiting.length === 2 && worker.flusher.pendingReplies === 1)
    expect(worker.flusher.replyBytes, 'those that wait for others').toBeGreaterThan(2 * 256)
    waiting[1]!.reply.send(201, {}, '"y"')
    expect((await send(worker, { path: '/healthz' })).status).toBe(200)
    expect(connection.received).toBe('')
    queue.release()
    expect(textsOf(await repliesOn(connection, 1))).toEqual(['204 '])
    waiting[0]!.reply.send(201, {}, '"x"')
    const texts = textsOf(await repliesOn(connection, 6))
    expect(texts.slice(0, 5)).toEqual(['204 ', '201 "x"', '202 ', '200 "fast"', '201 "y"'])
    expect(texts[5]).toMatch(/^400 .*GBX_BAD_PAIR/)
    expect(slow(), 'only the question whether it lives').toBe(1)
    expect(worker.flusher.replyBytes).toBe(0)
  })

  test('holds for what goes to the standard path behind them', async () => {
    const { worker, waiting, slow } = await start()
    const connection = connectTo(worker)
    connection.write(post('x') + count('a=1') + post('now', 'Accept: text/plain') + post('now') + count('a=1'))
    await until('the first to wait', () => waiting.length === 1)
    expect((await send(worker, { path: '/healthz' })).status).toBe(200)
    expect([connection.received, slow()]).toEqual(['', 1])
    waiting[0]!.reply.send(201, {}, '"x"')
    expect(textsOf(await repliesOn(connection, 5)))
      .toEqual(['201 "x"', '204 ', '200 "slow"', '200 "slow"', '204 '])
  })

  test.each([1, 2, 3])('holds among requests that come %d bytes at a time', async (size) => {
    const { worker, queue } = await start()
    const bytes = post('now') + count('a=1') + post('now', 'Accept: */*') + count('b=22')
    const pipe = open(worker)
    for (let at = 0; at < bytes.length; at += size) {
      pipe.push(bytes.slice(at, at + size))
      await new Promise((resolve) => setImmediate(resolve))
    }
    await until('all replies', () => statusesOf(pipe.received).length === 4)
    expect(statusesOf(pipe.received)).toEqual(['200', '204', '200', '204'])
    expect(queue.totals()).toEqual(new Map([['a', 1n], ['b', 22n]]))
  })

  test('holds wherever mixed requests are cut in two', async () => {
    const { worker, slow } = await start()
    const bytes = count('a=1') + post('now') + count('a=x') + post('throw') + count('a=1')
    for (let cut = 1; cut < bytes.length; cut++) {
      const pipe = open(worker)
      pipe.push(bytes.slice(0, cut))
      pipe.push(bytes.slice(cut))
      await until(`all replies, cut at ${cut}`, () => statusesOf(pipe.received).length === 5)
      expect(statusesOf(pipe.received)).toEqual(['204', '200', '400', '409', '204'])
      pipe.destroy()
    }
    expect(slow()).toBe(0)
  })
})

describe('clients', () => {
  const times = { HEADERS_TIMEOUT_MS: '300', REQUEST_TIMEOUT_MS: '600' }

  test.each([
    ['half a head', post('now').slice(0, 20), []],
    ['half a head behind others', post('now') + count('a=1') + post('now').slice(0, 30), [200, 204]],
  ])('that send %s get a 408 and are cut off', async (_name, bytes, before) => {
    const { worker } = await start(times)
    const connection = connectTo(worker)
    connection.write(bytes)
    await connection.closed
    expect(connection.replies().map(({ status }) => status)).toEqual([...before, 408])
  })

  test('that end within a head get a 400 behind what is due', async () => {
    const { worker, waiting } = await start()
    const connection = connectTo(worker)
    connection.write(post('x') + count('a=1') + post('now').slice(0, 30))
    await until('the first to wait', () => waiting.length === 1)
    connection.finish()
    await until('the end to be seen', () => waiting[0]!.reply.isGone())
    waiting[0]!.reply.send(200, {}, '1')
    await connection.closed
    expect(connection.replies().map(({ status }) => status)).toEqual([200, 204, 400])
  })

  test('whose reply is pending are not idle', async () => {
    const { worker, waiting } = await start({ KEEP_ALIVE_TIMEOUT_MS: '100', ...times })
    const [connection, other] = [connectTo(worker), connectTo(worker)]
    connection.write(post('x'))
    other.write(post('now'))
    await other.closed
    waiting[0]!.reply.send(200, {}, '1')
    await connection.closed
    expect(textsOf(connection.replies())).toEqual(['200 1'])
  })

  test('that send without end are read no further than 64 replies and what was read with them', async () => {
    const { worker, waiting } = await start()
    const connection = connectTo(worker)
    const number = 20_000
    connection.write(post('x').repeat(number))
    let before = -1
    await until('no more to be read', async () => {
      const same = waiting.length === before && before > 0
      before = waiting.length
      await send(worker, { path: '/healthz' })
      return same
    })
    expect(waiting.length).toBeLessThan(64 + 65_536 / post('x').length + 1)
    await until('all replies', () => {
      for (const { reply } of waiting.splice(0)) reply.send(200, {}, '1')
      return statusesOf(connection.received).length === number
    })
  })

  test('that send without end are given up at PENDING_BYTES_MAX, and what is due is written', async () => {
    const { worker, waiting } = await start({ PENDING_BYTES_MAX: '16384' })
    const connection = connectTo(worker)
    connection.write(post('x') + post('now').repeat(1000))
    await until('the limit', () => worker.flusher.replyBytes > 16_384)
    expect(worker.flusher.replyBytes).toBeLessThan(80_000)
    waiting[0]!.reply.send(201, {}, '1')
    await connection.closed
    const statuses = connection.replies().map(({ status }) => status)
    expect(statuses[0]).toBe(201)
    expect(new Set(statuses.slice(1))).toEqual(new Set([200]))
    expect(statuses.length).toBeLessThan(300)
    expect(worker.flusher.replyBytes).toBe(0)
  })
})

test('as the worker stops, replies that are due are written, and new requests are refused', async () => {
  const { worker, waiting } = await start()
  const [connection, later] = [connectTo(worker), connectTo(worker)]
  connection.write(post('x'))
  later.write(post('now'))
  await repliesOn(later, 1)
  await until('it to wait', () => waiting.length === 1)
  const closing = worker.server.close()
  connection.write(post('y'))
  expect((await send(worker, { path: '/healthz' }).catch(() => undefined))?.status).not.toBe(200)
  waiting[0]!.reply.send(200, {}, '1')
  const [first, second] = await repliesOn(connection, 2)
  expect([first!.text, second!.status]).toEqual(['1', 503])
  expect(waiting).toHaveLength(1)
  connection.end()
  await closing
})
