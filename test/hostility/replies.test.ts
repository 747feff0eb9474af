// Bytes that no honest client sends, and the exact replies to them. Whoever gets a 4xx has counted nothing with that
// request, and whoever counted gets its own reply, whatever follows it on the same connection.
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { OpenQueue } from '@gearbox/web/fixtures/open-queue.ts'
import { Connection, formType, send, startWorker, type Worker } from '@gearbox/web/fixtures/worker.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { readReplies, type PlainReply } from './fixtures.ts'

function post (fields: string, body: string): string {
  return `POST /increment HTTP/1.1\r\nHost: x\r\nContent-Type: ${formType}\r\n${fields}\r\n${body}`
}

function form (body: string): string {
  return post(`Content-Length: ${body.length}\r\n`, body)
}

function chunked (chunks: string): string {
  return post('Transfer-Encoding: chunked\r\n', chunks)
}

function chunk (text: string): string {
  return `${text.length.toString(16)}\r\n${text}\r\n`
}

const lastChunk = '0\r\n\r\n'
const garbage = 'no request\r\n\r\n'

/** What follows a request that leaves its connection usable. */
const goodbye = 'GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'
const healthy: PlainReply = { statusLine: 'HTTP/1.1 200 OK', body: '{"status":"ok"}' }

const counted: PlainReply = { statusLine: 'HTTP/1.1 204 No Content', body: '' }
const late: PlainReply = { statusLine: 'HTTP/1.1 202 Accepted', body: '' }
const goOn: PlainReply = { statusLine: 'HTTP/1.1 100 Continue', body: '' }

function refusal (statusCode: number, error: string, code: string, message: string): PlainReply {
  return { statusLine: `HTTP/1.1 ${statusCode} ${error}`, body: JSON.stringify({ statusCode, code, error, message }) }
}

const noHttp = refusal(400, 'Bad Request', 'GBX_BAD_REQUEST', 'this is not an HTTP/1.1 request')
const badPair = refusal(400, 'Bad Request', 'GBX_BAD_PAIR',
  'pair 1 ("a"): its value "x" must be a whole number such as 1 or -20, in the digits 0 to 9')
const nothingHere = refusal(404, 'Not Found', 'GBX_NOT_FOUND', 'not found; see /docs for the available endpoints')
const tooLate = refusal(408, 'Request Timeout', 'GBX_REQUEST_TIMEOUT', 'the request did not arrive in time')
const tooLarge = refusal(413, 'Payload Too Large', 'GBX_BODY_TOO_LARGE',
  'the body is larger than BODY_BYTES_MAX allows; send it in several requests')
const unmet = refusal(417, 'Expectation Failed', 'GBX_EXPECTATION_FAILED', 'only "Expect: 100-continue" can be met')
const longHeaders = refusal(431, 'Request Header Fields Too Large', 'GBX_HEADERS_TOO_LARGE',
  'the headers are larger than 16 KiB')
const otherType = refusal(415, 'Unsupported Media Type', 'GBX_UNSUPPORTED_MEDIA_TYPE',
  'the Content-Type must be application/x-www-form-urlencoded, in UTF-8, not "text/plain"')

const tooManyPairs = Array.from({ length: 1001 }, (_, i) => `k${i}=1`).join('&')
const manyPairs = refusal(400, 'Bad Request', 'GBX_TOO_MANY_PAIRS',
  'more than 1000 pairs; send them in several requests')

/**
 * To what can't be read behind replies that are due: the fast lane passes it on when none is due any more, and it is
 * refused in its turn. Where Node read on meanwhile, its refusal would be taken for one of those replies: the
 * connection is closed without a word.
 */
const [thenNoHttp, thenTooLate] = process.env.FAST_LANE === 'off' ? [[], []] : [[noHttp], [tooLate]]

interface Case {
  readonly name: string
  readonly sent: string
  /** All that comes back before the connection is closed. */
  readonly replies: readonly PlainReply[]
  /** Increments. */
  readonly counted: number
}

describe('an ordinary worker', () => {
  const queue = new OpenQueue()
  let worker: Worker
  beforeAll(async () => {
    worker = await startWorker({ HEADERS_TIMEOUT_MS: '1000', REQUEST_TIMEOUT_MS: '1000' }, queue)
  })
  afterAll(async () => { await worker.end() })

  test.each<Case>([
    {
      name: 'chunks with an extension and a trailer',
      sent: `${chunked(`${chunk('a=1')}4;for=you\r\n&b=2\r\n0\r\nX: y\r\n\r\n`)}${goodbye}`,
      replies: [counted, healthy],
      counted: 2,
    },
    {
      name: 'a chunk a byte',
      sent: `${chunked(Array.from('abc=-12&d=3', chunk).join('') + lastChunk)}${goodbye}`,
      replies: [counted, healthy],
      counted: 2,
    },
    {
      name: 'chunks with too many pairs',
      sent: `${chunked(chunk(tooManyPairs) + lastChunk)}${goodbye}`,
      replies: [manyPairs, healthy],
      counted: 0,
    },
    { name: 'a chunk whose size is no number', sent: chunked('zz\r\na=1\r\n0\r\n\r\n'), replies: [noHttp], counted: 0 },
    {
      name: 'a chunk that is longer than its size',
      sent: chunked('3\r\na=12\r\n0\r\n\r\n'),
      replies: [noHttp],
      counted: 0,
    },
    { name: 'a good chunk and a bad one', sent: chunked(`${chunk('a=1')}x\r\n\r\n`), replies: [noHttp], counted: 0 },
    { name: 'a chunk size beyond 64 bits', sent: chunked('1ffffffffffffffff\r\na=1'), replies: [noHttp], counted: 0 },
    {
      name: 'Content-Length before Transfer-Encoding',
      sent: post('Content-Length: 3\r\nTransfer-Encoding: chunked\r\n', chunk('a=1') + lastChunk),
      replies: [noHttp],
      counted: 0,
    },
    {
      name: 'Transfer-Encoding before Content-Length',
      sent: post('Transfer-Encoding: chunked\r\nContent-Length: 3\r\n', chunk('a=1') + lastChunk),
      replies: [noHttp],
      counted: 0,
    },
    {
      name: 'two different Content-Lengths',
      sent: post('Content-Length: 3\r\nContent-Length: 4\r\n', 'a=12'),
      replies: [noHttp],
      counted: 0,
    },
    {
      name: 'the same Content-Length twice',
      sent: post('Content-Length: 3\r\nContent-Length: 3\r\n', 'a=1'),
      replies: [noHttp],
      counted: 0,
    },
    {
      name: 'two lengths in one Content-Length',
      sent: post('Content-Length: 3, 3\r\n', 'a=1'),
      replies: [noHttp],
      counted: 0,
    },
    ...['-1', '+3', '0x3', '3a',
      '99999999999999999999'].map((length): Case =>
      ({
        name: `Content-Length: ${length}`,
        sent: post(`Content-Length: ${length}\r\n`, 'a=1'),
        replies: [noHttp],
        counted: 0,
      })),
    ...['identity', 'chunked, gzip', 'xchunked', 'chunked\r\nTransfer-Encoding: chunked'].map((encoding): Case => (
      {
        name: `Transfer-Encoding: ${JSON.stringify(encoding)}`,
        sent: post(`Transfer-Encoding: ${encoding}\r\n`, chunk('a=1') + lastChunk),
        replies: [noHttp],
        counted: 0,
      })),
    {
      name: 'a Content-Length with a space before its colon',
      sent: post('Content-Length : 3\r\n', 'a=1'),
      replies: [noHttp],
      counted: 0,
    },
    {
      name: 'a folded header',
      sent: post('X: a\r\n b\r\nContent-Length: 3\r\n', 'a=1'),
      replies: [noHttp],
      counted: 0,
    },
    { name: 'a NUL in a header', sent: post('X: a\0b\r\nContent-Length: 3\r\n', 'a=1'), replies: [noHttp], counted: 0 },
    { name: 'line feeds alone', sent: form('a=1').replaceAll('\r\n', '\n'), replies: [noHttp], counted: 0 },
    { name: 'HTTP/2', sent: 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', replies: [noHttp], counted: 0 },
    { name: 'HTTP/1.2', sent: form('a=1').replace('HTTP/1.1', 'HTTP/1.2'), replies: [noHttp], counted: 0 },
    { name: 'TLS', sent: '\x16\x03\x01\x02\x00\x01\x00\x01', replies: [noHttp], counted: 0 },
    {
      name: 'thousands of short headers',
      sent: post(`${'a:\r\n'.repeat(20_000)}Content-Length: 3\r\n`, 'a=1'),
      replies: [longHeaders],
      counted: 0,
    },
    {
      name: 'HTTP/1.0 without Host',
      sent: form('a=1').replace('HTTP/1.1', 'HTTP/1.0').replace('Host: x\r\n', ''),
      replies: [counted],
      counted: 1,
    },
    {
      name: 'a length beyond 64 KiB, before any of the body',
      sent: post('Content-Length: 65537\r\n', ''),
      replies: [tooLarge],
      counted: 0,
    },
    {
      name: 'Expect: 100-continue',
      sent: `${post('Content-Length: 3\r\nExpect: 100-continue\r\n', 'a=1')}${goodbye}`,
      replies: [goOn, counted, healthy],
      counted: 1,
    },
    {
      name: 'Expect: 100-Continue',
      sent: `${post('Content-Length: 3\r\nExpect: 100-Continue\r\n', 'a=1')}${goodbye}`,
      replies: [goOn, counted, healthy],
      counted: 1,
    },
    // Whether its body follows is known to the client alone: nothing behind it is read.
    {
      name: 'another Expect',
      sent: `${post('Content-Length: 3\r\nExpect: miracles\r\n', 'a=1')}${goodbye}`,
      replies: [unmet],
      counted: 0,
    },
    {
      name: 'another Expect and then a good request',
      sent: `${post('Content-Length: 3\r\nExpect: 200-ok\r\n', 'a=1')}${form('b=1')}${goodbye}`,
      replies: [unmet],
      counted: 0,
    },
    {
      name: 'Expect: 100-continue for what is refused by its head',
      sent: `${post('Content-Length: 3\r\nExpect: 100-continue\r\n', 'a=1').replace(formType, 'text/plain')}${goodbye}`,
      replies: [goOn, otherType, healthy],
      counted: 0,
    },
    {
      name: 'more bytes than the Content-Length says',
      sent: post('Content-Length: 3\r\n', 'a=1&b=2'),
      replies: [counted, ...thenNoHttp],
      counted: 1,
    },
    { name: 'a good request and garbage', sent: form('a=1') + garbage, replies: [counted, ...thenNoHttp], counted: 1 },
    {
      name: 'two good requests and garbage',
      sent: form('a=1') + form('b=1') + garbage,
      replies: [counted, counted, ...thenNoHttp],
      counted: 2,
    },
    {
      name: 'a good request, a refused one and garbage',
      sent: form('a=1') + form('a=x') + garbage,
      replies: [counted, badPair, ...thenNoHttp],
      counted: 1,
    },
    {
      name: 'a good request and one in a bad chunk',
      sent: form('a=1') + chunked('zz\r\n'),
      replies: [counted, noHttp],
      counted: 1,
    },
    {
      name: 'three good requests and one in a good and a bad chunk',
      sent: form('a=1').repeat(3) + chunked(`${chunk('a=1')}zz\r\n`),
      replies: [counted, counted, counted, noHttp],
      counted: 3,
    },
    {
      name: 'a good request and one that is too large',
      sent: form('a=1') + post('Content-Length: 65537\r\n', 'a=1'),
      replies: [counted, tooLarge],
      counted: 1,
    },
  ])('answers $name', async ({ sent, replies, counted }) => {
    const before = worker.flusher.counts.increments
    const connection = new Connection(worker)
    onTestFinished(() => connection.end())
    connection.write(sent)
    await connection.closed
    expect(readReplies(connection.received)).toEqual(replies)
    expect(worker.flusher.counts.increments - before, 'counted').toBe(counted)
  })
})

test('an upgrade that nobody offers does not make replies answer other requests than those ' +
  'they belong to', async () => {
  const queue = new OpenQueue()
  const worker = await startWorker({ KEEP_ALIVE_TIMEOUT_MS: '1000' }, queue)
  onTestFinished(worker.end)
  const connection = new Connection(worker)
  onTestFinished(() => connection.end())
  connection.write(post('Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n', 'a=1') + form('b=1'))
  await until('the first reply', () => readReplies(connection.received).length > 0)
  connection.write(form('c=1') + goodbye)
  await connection.closed
  const replies = readReplies(connection.received).filter(({ statusLine }) => statusLine === counted.statusLine)
  expect([...queue.totals().keys()]).toEqual(['a', 'b', 'c'].slice(0, replies.length))
})

describe('the place of a reply that is due is not taken', () => {
  test.each<{ name: string, next: string, replies: readonly PlainReply[] }>([
    { name: 'garbage', next: garbage, replies: [counted, ...thenNoHttp] },
    { name: 'a refused request and garbage', next: form('a=x') + garbage, replies: [counted, badPair, ...thenNoHttp] },
    {
      name: 'a request for nothing and garbage',
      next: `GET /x HTTP/1.1\r\nHost: x\r\n\r\n${garbage}`,
      replies: [counted, nothingHere],
    },
    {
      name: 'another Expect and garbage',
      next: post('Content-Length: 3\r\nExpect: miracles\r\n', 'a=1') + garbage,
      replies: [counted, unmet],
    },
    { name: 'a bad chunk', next: chunked('zz\r\n'), replies: [counted, noHttp] },
    { name: 'a body that is too large', next: post('Content-Length: 65537\r\n', 'a=1'), replies: [counted, tooLarge] },
  ])('by the refusal of $name', async ({ next, replies }) => {
    const queue = new OpenQueue()
    const worker = await startWorker({ HEADERS_TIMEOUT_MS: '1000', REQUEST_TIMEOUT_MS: '1000' }, queue)
    onTestFinished(worker.end)
    queue.hold()
    const connection = new Connection(worker)
    onTestFinished(() => connection.end())
    connection.write(form('a=1'))
    await until('a pending reply', () => worker.flusher.pendingReplies === 1)
    connection.write(next)
    // What came after it is answered: the worker has read what came before.
    expect((await send(worker, { path: '/healthz' })).status).toBe(200)
    expect(connection.received).toBe('')
    queue.release()
    await connection.closed
    expect(readReplies(connection.received)).toEqual(replies)
    expect(worker.flusher.counts.increments).toBe(1)
  })

  test.each<{ name: string, next: string, replies: readonly PlainReply[] }>([
    { name: 'half a header', next: 'POST /incre', replies: [late, ...thenTooLate] },
    { name: 'half a body', next: post('Content-Length: 30\r\n', 'a=1'), replies: [late, tooLate] },
    {
      name: 'a body that is too large and does not come',
      next: post('Content-Length: 65537\r\n', 'a=1'),
      replies: [late, tooLarge],
    },
  ])('by the refusal of $name, which takes too long', async ({ next, replies }) => {
    const queue = new OpenQueue()
    const worker = await startWorker({ HEADERS_TIMEOUT_MS: '200', REQUEST_TIMEOUT_MS: '300', ACK_TIMEOUT_MS: '1500' },
      queue)
    onTestFinished(worker.end)
    queue.hold()
    const connection = new Connection(worker)
    onTestFinished(() => connection.end())
    connection.write(form('a=1') + next)
    await connection.closed
    expect(readReplies(connection.received)).toEqual(replies)
    expect(worker.flusher.counts.increments).toBe(1)
  })
})
