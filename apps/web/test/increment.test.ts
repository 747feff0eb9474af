// POST /increment over a real socket: what is counted, what is not, and what each reply says.
import { int64Max, int64Min } from '@gearbox/protocol/int64.ts'
import { afterAll, afterEach, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { until } from '@gearbox/test-kit/until.ts'
import { acceptedRows, refusedRows, sumsOfRow } from './fixtures/odd-bodies.ts'
import { OpenQueue } from './fixtures/open-queue.ts'
import {
  Connection, errorOf, formType, increment, send, startWorker, type Request, type Worker,
} from './fixtures/worker.ts'

let worker: Worker

beforeAll(async () => { worker = await startWorker() })
afterEach(() => { worker.clear() })
afterAll(async () => { await worker.end() })

/** Stores one more increment: all that was accepted before is stored then too. */
async function countedUntilNow (): Promise<Map<string, bigint>> {
  expect((await increment(worker, 'the last=1', '?ack=stored')).status).toBe(204)
  const totals = worker.totals()
  expect(totals.get('the last')).toBe(1n)
  totals.delete('the last')
  return totals
}

test.each(acceptedRows)('counts $name', async ({ body, pairsOnly, increments }) => {
  const reply = await increment(worker, body, `?ack=stored${pairsOnly ? '&form=pairs' : ''}`)
  expect(reply).toMatchObject({ status: 204, text: '' })
  expect(worker.totals()).toEqual(sumsOfRow(increments))
})

test.each(refusedRows)('counts nothing of $name', async ({ body, pairsOnly, status, code, message }) => {
  const before = worker.flusher.counts.increments
  const reply = await increment(worker, body, pairsOnly ? '?form=pairs' : '')
  expect(reply.status).toBe(status)
  expect(errorOf(reply)).toEqual({ code, message: expect.stringMatching(message) })
  expect(worker.flusher.counts.increments).toBe(before)
  expect(await countedUntilNow()).toEqual(new Map())
})

test.each([
  ['a plain request', ''],
  ['one that only the standard path takes', 'Expect: 100-continue\r\n'],
])('a client that sends nothing more behind %s gets its replies', async (_name, header) => {
  const connection = new Connection(worker)
  onTestFinished(() => connection.end())
  const post = (key: string): string => `POST /increment?ack=stored HTTP/1.1\r\nHost: 127.0.0.1\r\n${header}` +
    `Content-Type: ${formType}\r\nContent-Length: 3\r\n\r\n${key}=1`
  connection.write(post('a') + post('b'))
  connection.finish()
  await connection.closed
  expect(connection.received.match(/^HTTP\/1\.1 204 /gm)).toHaveLength(2)
  expect(await countedUntilNow()).toEqual(new Map([['a', 1n], ['b', 1n]]))
})

const key255 = 'k'.repeat(255)
const form = (headers: Record<string, string> = {}, rest: Request = {}): Request =>
  ({
    method: 'POST',
    path: '/increment?ack=stored',
    body: 'a=1',
    ...rest,
    headers: { 'Content-Type': formType, ...headers },
  })
const typed = (type: string): Request => form({ 'Content-Type': type })
const untyped = (rest: Request): Request => ({ method: 'POST', path: '/increment?ack=stored', ...rest })
const queried = (query: string): Request => form({}, { path: `/increment${query}` })

test.each<[name: string, request: Request, status?: number]>([
  ['the type alone', typed(formType)],
  ['the type in another case', typed('Application/X-WWW-Form-URLEncoded')],
  ['charset=utf-8', typed(`${formType}; charset=utf-8`)],
  ['charset=UTF-8', typed(`${formType};charset=UTF-8`)],
  ['CHARSET="UTF-8"', typed(`${formType}; CHARSET="UTF-8"`)],
  ['blanks around the semicolon', typed(`${formType} ; charset=utf-8`)],
  ['a semicolon and nothing behind it', typed(`${formType};`)],
  ['chunks', form({}, { chunked: true })],
  ['ack=queued', queried('?ack=queued')],
  ['ack=memory', queried('?ack=memory'), 202],
  ['ack=stored and form=pairs', queried('?form=pairs&ack=stored')],
  ['an empty query', queried('?')],
  ['empty pieces in its query', queried('?&ack=stored&&')],
  ['an encoded parameter', queried('?%61ck=st%6Fred')],
  ['an Idempotency-Key of one character', form({ 'Idempotency-Key': '1' })],
  ['an Idempotency-Key of 255 characters', form({ 'Idempotency-Key': key255 })],
  ['an Idempotency-Key of all visible ASCII',
    form({ 'Idempotency-Key': Array.from({ length: 94 }, (_, i) => String.fromCharCode(0x21 + i)).join('') })],
  ['Expect: 100-continue', form({ Expect: '100-continue' })],
])('takes a request with %s', async (_name, request, status = 204) => {
  const reply = await send(worker, request)
  expect(reply).toMatchObject({ status, text: '' })
  expect(await countedUntilNow()).toEqual(new Map([['a', 1n]]))
})

const tooLarge = `a=${'0'.repeat(65_535)}`

test.each<[name: string, request: Request, status: number, code: string]>([
  ['another type', typed('application/json'), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['text/plain', typed('text/plain'), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['multipart/form-data', typed('multipart/form-data; boundary=x'), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['a type that only begins like ours', typed(`${formType}x`), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['two types', typed(`${formType}, text/plain`), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['no type', untyped({ body: 'a=1' }), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['no type, in chunks', untyped({ body: 'a=1', chunked: true }), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['an empty type', typed(''), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['charset=iso-8859-1', typed(`${formType}; charset=iso-8859-1`), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['charset=us-ascii', typed(`${formType}; charset=us-ascii`), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['an unknown charset', typed(`${formType}; charset=utf-9`), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['charset=utf-16', typed(`${formType}; charset="utf-16"`), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['an empty charset', typed(`${formType}; charset=`), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['two charsets', typed(`${formType}; charset=utf-8; charset=latin1`), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['gzip', form({ 'Content-Encoding': 'gzip' }), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['Content-Encoding: identity', form({ 'Content-Encoding': 'identity' }), 415, 'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['a wrong type and nothing in it',
    untyped({ headers: { 'Content-Type': 'application/json', 'Content-Length': '0' } }), 415,
    'GBX_UNSUPPORTED_MEDIA_TYPE'],
  ['nothing at all', untyped({}), 400, 'GBX_EMPTY_BODY'],
  ['an empty form', form({ 'Content-Length': '0' }, { body: '' }), 400, 'GBX_EMPTY_BODY'],
  ['an empty form in chunks', form({}, { body: '', chunked: true }), 400, 'GBX_EMPTY_BODY'],
  ['more than 64 KiB', form({}, { body: tooLarge }), 413, 'GBX_BODY_TOO_LARGE'],
  ['more than 64 KiB in chunks', form({}, { body: tooLarge, chunked: true }), 413, 'GBX_BODY_TOO_LARGE'],
  ['an unknown ack', queried('?ack=sure'), 400, 'GBX_BAD_QUERY'],
  ['an empty ack', queried('?ack='), 400, 'GBX_BAD_QUERY'],
  ['an ack in capitals', queried('?ack=STORED'), 400, 'GBX_BAD_QUERY'],
  ['two acks', queried('?ack=memory&ack=stored'), 400, 'GBX_BAD_QUERY'],
  ['the same ack twice', queried('?ack=stored&ack=stored'), 400, 'GBX_BAD_QUERY'],
  ['an ack that objects have', queried('?ack=__proto__'), 400, 'GBX_BAD_QUERY'],
  ['a parameter that nobody knows', queried('?acks=stored'), 400, 'GBX_BAD_QUERY'],
  ['a pair in its query', queried('?foo=1'), 400, 'GBX_BAD_QUERY'],
  ['a parameter that objects have', queried('?__proto__=1'), 400, 'GBX_BAD_QUERY'],
  ['a parameter in capitals', queried('?ACK=stored'), 400, 'GBX_BAD_QUERY'],
  ['a parameter without a name', queried('?=stored'), 400, 'GBX_BAD_QUERY'],
  ['an ack without a value', queried('?ack'), 400, 'GBX_BAD_QUERY'],
  ['two parameters glued by a semicolon', queried('?ack=stored;form=pairs'), 400, 'GBX_BAD_QUERY'],
  ['two question marks', queried('??ack=stored'), 400, 'GBX_BAD_QUERY'],
  ['a query that is not UTF-8', queried('?ack=%FF'), 400, 'GBX_BAD_QUERY'],
  ['an unknown form', queried('?form=json'), 400, 'GBX_BAD_QUERY'],
  ['an empty form parameter', queried('?form='), 400, 'GBX_BAD_QUERY'],
  ['two forms', queried('?form=pairs&form=pairs'), 400, 'GBX_BAD_QUERY'],
  ['an empty Idempotency-Key', form({ 'Idempotency-Key': '' }), 400, 'GBX_BAD_IDEMPOTENCY_KEY'],
  ['an Idempotency-Key of 256 characters', form({ 'Idempotency-Key': `${key255}k` }), 400, 'GBX_BAD_IDEMPOTENCY_KEY'],
  ['an Idempotency-Key with a space', form({ 'Idempotency-Key': 'a b' }), 400, 'GBX_BAD_IDEMPOTENCY_KEY'],
  ['an Idempotency-Key beyond ASCII', form({ 'Idempotency-Key': 'é' }), 400, 'GBX_BAD_IDEMPOTENCY_KEY'],
  ['an expectation that nobody can meet', form({ Expect: 'miracles' }), 417, 'GBX_EXPECTATION_FAILED'],
])('refuses a request with %s', async (_name, request, status, code) => {
  const reply = await send(worker, request)
  expect(reply.status).toBe(status)
  expect(errorOf(reply).code).toBe(code)
  expect(await countedUntilNow()).toEqual(new Map())
})

test.each([
  [typed('application/json'),
    'this takes no JSON; send foo=1&bar=-2 with Content-Type: application/x-www-form-urlencoded'],
  [typed('application/vnd.api+json'),
    'this takes no JSON; send foo=1&bar=-2 with Content-Type: application/x-www-form-urlencoded'],
  [typed('text/plain;charset=UTF-8'),
    'the Content-Type must be application/x-www-form-urlencoded, in UTF-8, not "text/plain;charset=UTF-8"'],
  [typed(`multipart/${'x'.repeat(100)}`),
    `the Content-Type must be application/x-www-form-urlencoded, in UTF-8, not "multipart/${'x'.repeat(53)}…"`],
  [untyped({ body: 'a=1' }), 'the Content-Type must be application/x-www-form-urlencoded; none was sent'],
  [form({ 'Content-Encoding': 'gzip' }), 'the body must come without Content-Encoding, not as "gzip"'],
])('a 415 shows what was sent, and says what to send (%#)', async (request, message) => {
  const reply = await send(worker, request)
  expect(errorOf(reply)).toEqual({ code: 'GBX_UNSUPPORTED_MEDIA_TYPE', message })
})

test('a body of exactly 64 KiB is counted', async () => {
  const body = `a=${'0'.repeat(65_533)}1`
  expect(body).toHaveLength(65_536)
  expect((await increment(worker, body, '?ack=stored')).status).toBe(204)
  expect((await send(worker, form({}, { body, chunked: true }))).status).toBe(204)
  expect(worker.totals()).toEqual(new Map([['a', 2n]]))
})

test('two Idempotency-Keys are none', async () => {
  const connection = new Connection(worker)
  onTestFinished(() => connection.end())
  connection.write(`POST /increment HTTP/1.1\r\nHost: x\r\nContent-Type: ${formType}\r\nContent-Length: ` +
    '3\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n\r\na=1')
  const [reply] = await until('the reply', () => connection.replies().length === 1 && connection.replies())
  expect(errorOf(reply!)).toMatchObject({ code: 'GBX_BAD_IDEMPOTENCY_KEY' })
  expect(await countedUntilNow()).toEqual(new Map())
})

test('a total that would leave 64 bits is refused by its name, and the rest of the request counts', async () => {
  expect((await increment(worker, `top=${int64Max}&bottom=${int64Min}`, '?ack=stored')).status).toBe(204)
  const reply = await increment(worker, 'top=1&fine=1&bottom=-1', '?ack=stored')
  expect(reply.status).toBe(422)
  const { code, message } = errorOf(reply)
  expect(code).toBe('GBX_TOTAL_OVERFLOW')
  expect(message).toMatch(/"top"/)
  expect(message).toMatch(/"bottom"/)
  expect(message).not.toMatch(/"fine"/)
  expect(worker.totals()).toEqual(new Map([['top', int64Max], ['bottom', int64Min], ['fine', 1n]]))
})

describe('an Idempotency-Key', () => {
  const once = async (body: string, key: string, headers: Record<string, string> = {}): Promise<number> =>
    (await increment(worker, body, '?ack=stored', { 'Idempotency-Key': key, ...headers })).status

  test('counts once, in whatever spelling of the same sums it returns', async () => {
    expect(await Promise.all(Array.from({ length: 20 }, async () => await once('a=1&b=2', 'same'))))
      .toEqual(Array.from({ length: 20 }, () => 204))
    expect(await once('a=1&b=2', 'same')).toBe(204)
    expect(worker.totals()).toEqual(new Map([['a', 1n], ['b', 2n]]))
  })

  test('with another body is refused and not counted', async () => {
    expect(await once('a=1', 'first')).toBe(204)
    const reply = await increment(worker, 'a=2', '?ack=stored', { 'Idempotency-Key': 'first' })
    expect(reply.status).toBe(422)
    expect(errorOf(reply).code).toBe('GBX_OTHER_BODY')
    expect(worker.totals()).toEqual(new Map([['a', 1n]]))
  })

  test('is not used up by a request that was refused', async () => {
    expect(await once('a=x', 'retry')).toBe(400)
    expect(await once('a=1', 'retry')).toBe(204)
    expect(worker.totals()).toEqual(new Map([['a', 1n]]))
  })

  test('applies whole or not at all', async () => {
    expect((await increment(worker, `top=${int64Max}`, '?ack=stored')).status).toBe(204)
    expect(await once('top=1&fine=1', 'whole')).toBe(422)
    expect(worker.totals()).toEqual(new Map([['top', int64Max]]))
  })

  test('belongs to the caller that sent it', async () => {
    const guarded = await startWorker({ API_KEYS: 'one,two' })
    onTestFinished(guarded.end)
    const count = async (apiKey: string): Promise<number> =>
      (await increment(guarded, 'a=1', '?ack=stored', { 'Idempotency-Key': 'mine', Authorization: apiKey })).status
    expect(await count('Bearer one')).toBe(204)
    expect(await count('bearer one')).toBe(204)
    expect(await count('Bearer two')).toBe(204)
    expect(guarded.totals()).toEqual(new Map([['a', 2n]]))
  })
})

describe('the ack level', () => {
  test('without one in the query is that of ACK', async () => {
    const quick = await startWorker({ ACK: 'memory' })
    onTestFinished(quick.end)
    expect((await increment(quick, 'a=1')).status).toBe(202)
    expect((await increment(quick, 'a=1', '?ack=stored')).status).toBe(204)
    expect(quick.totals()).toEqual(new Map([['a', 2n]]))
  })

  test('queued is answered when the queue has the batch, and not before', async () => {
    const queue = new OpenQueue()
    const held = await startWorker({}, queue)
    onTestFinished(held.end)
    queue.hold()
    let answered = false
    const reply = increment(held, 'a=1').finally(() => { answered = true })
    await until('the batch to be on its way', () => held.flusher.unstoredBatches === 1)
    expect((await increment(held, 'b=1', '?ack=memory')).status).toBe(202)
    expect(answered).toBe(false)
    queue.release()
    expect((await reply).status).toBe(204)
    await until('both', () => queue.totals().size === 2)
    expect(queue.totals()).toEqual(new Map([['a', 1n], ['b', 1n]]))
  })

  test('stored is answered also where an older report comes in behind a newer one', async () => {
    const queue = new OpenQueue()
    const told = await startWorker({ ACK_TIMEOUT_MS: '1000' }, queue)
    onTestFinished(told.end)
    queue.onPush = () => {
      for (const high of [queue.list.length, queue.list.length - 1]) {
        queue.emit('progress', told.producer, { high, gaps: [], rejected: [], omittedRejections: [] })
      }
    }
    for (let i = 0; i < 3; i++) expect((await increment(told, 'a=1', '?ack=stored')).status).toBe(204)
  })

  test.each(['queued',
    'stored'])('%s becomes a 202 when it is not reached in time, and the increment is still ' +
      'on its way', async (level) => {
    const queue = new OpenQueue()
    const slow = await startWorker({ ACK_TIMEOUT_MS: '100' }, queue)
    onTestFinished(slow.end)
    queue.hold()
    expect(await increment(slow, 'a=1', `?ack=${level}`)).toMatchObject({ status: 202, text: '' })
    expect(queue.totals()).toEqual(new Map())
    queue.release()
    await until('the increment', () => queue.totals().get('a') === 1n)
    expect(slow.flusher.pendingReplies).toBe(0)
  })
})

test('what many clients count at once adds up', async () => {
  const clients = Array.from({ length: 20 }, async (_, client) => {
    for (let i = 0; i < 25; i++) {
      const { status } = await increment(worker, `all=1&client${client}=${i}&big=9007199254740993`,
        i % 2 === 0 ? '?ack=stored' : '')
      expect(status).toBe(204)
    }
  })
  await Promise.all(clients)
  const totals = worker.totals()
  expect(totals.get('all')).toBe(500n)
  expect(totals.get('big')).toBe(500n * 9007199254740993n)
  expect(totals.get('client7')).toBe(300n)
})
