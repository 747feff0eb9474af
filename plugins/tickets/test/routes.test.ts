// The routes of tickets over HTTP, with a consumer that numbers when the test says so.
import { connect } from 'node:net'
import { expect, onTestFinished, test } from 'vitest'
import { until } from '@gearbox/test-kit/until.ts'
import { startTicketWorker, TestConsumer, type Reply, type TestWorker } from './fixtures/worker.ts'

async function start (options = {}): Promise<{ consumer: TestConsumer, worker: TestWorker }> {
  const consumer = new TestConsumer()
  return { consumer, worker: await startTicketWorker(consumer, options) }
}

/** Sends requests one after another, so that all wait in a worker in this order. */
async function hold (
  worker: TestWorker, consumer: TestConsumer, paths: readonly string[], method = 'POST'
): Promise<Array<Promise<Reply>>> {
  const replies: Array<Promise<Reply>> = []
  for (const path of paths) {
    const before = worker.held() + consumer.waiting
    replies.push(worker.send(method, path))
    await until(`${path} to wait`, () => worker.held() + consumer.waiting > before)
  }
  return replies
}

test('a ticket has a number, a receipt, and a place where it is found', async () => {
  const { worker } = await start()
  const first = await worker.send('POST', '/tickets/life%2Fboat')
  expect(first).toMatchObject({
    status: 201,
    headers: { location: '/tickets/life%2Fboat/1', 'cache-control': 'no-store' },
    json: { name: 'life/boat', number: 1, receipt: expect.stringMatching(/^[\w-]{22}$/) },
  })
  expect(Object.keys(first.json)).toEqual(['name', 'number', 'receipt'])
  expect((await worker.send('POST', '/tickets/life%2Fboat?count=5')).json).toMatchObject(
    { name: 'life/boat', first: 2, last: 6, receipt: expect.stringMatching(/^2\.6\.[\w-]{22}$/) })
  expect((await worker.send('POST', '/tickets/life%2Fboat', { accept: 'text/plain' }))).toMatchObject({
    status: 201, headers: { 'content-type': 'text/plain; charset=utf-8' }, text: 'ticket number 0000000007',
  })
  expect((await worker.send('POST', '/tickets/life%2Fboat?count=2', { accept: 'text/plain' })).text)
    .toBe('ticket numbers 0000000008 to 0000000009')
  expect((await worker.send('GET', '/tickets/life%2Fboat')).json)
    .toEqual({ name: 'life/boat', issued: 9, serving: 0, waiting: 9, limit: null })
  expect((await worker.send('GET', String(first.headers.location))).json).toEqual({
    name: 'life/boat',
    number: 1,
    at: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
    state: 'waiting',
    ahead: 0,
    wait_seconds: null,
  })
})

test('requests of one name that wait in a worker are one entry, numbered in the order in which they came', async () => {
  const { consumer, worker } = await start()
  consumer.auto = false
  const names = Array.from({ length: 9 }, (_, i) => i % 3 === 2 ? 'other' : 'boat')
  const replies = await hold(worker, consumer, names.map((name, i) => `/tickets/${name}?count=${i + 1}`))
  expect(consumer.waiting).toBe(2)
  expect(worker.held()).toBe(7)
  consumer.flush()
  const numbers = await Promise.all(replies.map(async (reply) => (await reply).json))
  expect(numbers.map(({ number, first }) => number ?? first)).toEqual([1, 2, 1, 4, 8, 4, 13, 20, 10])
  expect(worker.held()).toBe(0)
  expect(consumer.database.all('SELECT name, first, count FROM tickets_runs')).toEqual(
    [{ name: 'boat', first: 1, count: 27 }, { name: 'other', first: 1, count: 18 }])
  expect(worker.metrics.get('gearbox_tickets_issued_total')!()).toBe(45)
})

test('requests of one name are numbered in their order, with an Idempotency-Key or without', async () => {
  const { consumer, worker } = await start()
  consumer.auto = false
  const socket = connect(worker.port, '127.0.0.1')
  onTestFinished(() => { socket.destroy() })
  let text = ''
  socket.on('data', (chunk) => { text += String(chunk) })
  const post = (header = ''): string => `POST /tickets/boat HTTP/1.1\r\nHost: x\r\n${header}\r\n`
  socket.write(post() + post('Idempotency-Key: k\r\n') + post() + post())
  await until('all to wait', () => worker.held() + consumer.waiting === 4)
  expect(consumer.waiting).toBe(3)
  consumer.flush()
  const numbers = (): string[] => text.match(/(?<="number":)\d+/g) ?? []
  await until('all replies', () => numbers().length === 4)
  expect(numbers()).toEqual(['1', '2', '3', '4'])
})

test('a request behind a limit or a call is behind it, and whoever hangs up meanwhile gets no number', async () => {
  const { consumer, worker } = await start()
  consumer.auto = false
  const socket = await worker.open('/tickets/boat')
  await until('it to wait', () => consumer.waiting === 1)
  const first = await hold(worker, consumer, ['/tickets/boat'])
  const limit = await hold(worker, consumer, ['/tickets/boat?limit=1'], 'PUT')
  const second = await hold(worker, consumer, ['/tickets/boat'])
  const serve = await hold(worker, consumer, ['/tickets/boat/serve?to=9'])
  socket.destroy()
  await until('the worker to see that', async () => (await worker.send('GET', '/tickets/none')).status === 404)
  consumer.flush()
  expect((await first[0]!).json.number).toBe(1)
  expect((await limit[0]!).json).toMatchObject({ issued: 1, limit: 1 })
  expect((await second[0]!).status).toBe(409)
  expect((await serve[0]!).json).toEqual({ serving: 1, called: [1] })
})

test('holders travel with the requests that join, and an entry is closed before it gets too large', async () => {
  const { consumer, worker } = await start()
  consumer.auto = false
  const text = '"'.repeat(254)
  const paths = Array.from({ length: 120 }, (_, i) => `/tickets/boat?holder=${encodeURIComponent(text)}${i % 10}`)
  const replies = paths.map(async (path) => await worker.send('POST', path))
  await until('all to wait', () => worker.held() + consumer.waiting === 120)
  expect(consumer.waiting).toBe(2)
  consumer.flush()
  const numbers = await Promise.all(replies.map(async (reply) => (await reply).json.number))
  expect(numbers.toSorted((one, other) => Number(one) - Number(other))).toEqual(paths.map((_, i) => i + 1))
  for (const [i, number] of numbers.entries()) {
    expect((await worker.send('GET', `/tickets/boat/${String(number)}`)).json.holder).toBe(`${text}${i % 10}`)
  }
})

test('whoever hangs up before the flush gets no number, and nobody waits for it', async () => {
  const { consumer, worker } = await start()
  consumer.auto = false
  const sockets = []
  for (let i = 0; i < 4; i++) {
    sockets.push(await worker.open('/tickets/boat?count=10'))
    await until('it to wait', () => worker.held() + consumer.waiting === i + 1)
  }
  const [reply] = await hold(worker, consumer, ['/tickets/boat'])
  sockets[0]!.destroy()
  sockets[1]!.resetAndDestroy()
  // Nobody can know that this client would still read.
  sockets[2]!.end()
  let text = ''
  sockets[2]!.on('data', (chunk) => { text += String(chunk) })
  const served = worker.send('GET', '/tickets/none')
  expect((await served).status).toBe(404)
  await until('the worker to see that', async () => {
    await worker.send('GET', '/tickets/none')
    return true
  })
  consumer.flush()
  expect((await reply!).json).toMatchObject({ number: 11 })
  await until('a reply that says that there is no number', () => text.includes('GBX_HUNG_UP'))
  expect(text).toMatch(/^HTTP\/1\.1 400 /)
  expect(worker.held()).toBe(0)
  expect(worker.metrics.get('gearbox_tickets_hung_up_total')!()).toBe(3)
  sockets[3]!.destroy()
  const [late] = await hold(worker, consumer, ['/tickets/gone'])
  consumer.flush()
  await late
  expect((await worker.send('GET', '/tickets/boat')).json.issued).toBe(11)
})

test('an entry that everybody has left is not sent at all', async () => {
  const { consumer, worker } = await start()
  consumer.auto = false
  const socket = await worker.open('/tickets/boat')
  await until('it to wait', () => consumer.waiting === 1)
  socket.resetAndDestroy()
  await worker.send('GET', '/tickets/none')
  await until('the worker to see it', async () => (await worker.send('GET', '/tickets/none')).status === 404)
  consumer.flush()
  expect(consumer.database.get('SELECT 1 FROM tickets_lines')).toBeUndefined()
})

test('beyond the limit a request is refused with what is left, and a smaller one behind it may still fit', async () => {
  const { consumer, worker } = await start()
  expect((await worker.send('PUT', '/tickets/boat?limit=7')).json)
    .toEqual({ name: 'boat', issued: 0, serving: 0, waiting: 0, limit: 7 })
  consumer.auto = false
  const replies = await hold(worker, consumer, [3, 5, 2, 4, 2, 1].map((count) => `/tickets/boat?count=${count}`))
  consumer.flush()
  const got = await Promise.all(replies.map(async (reply) => (await reply).json))
  expect(got.map(({ number, first, code, left }) => number ?? first ?? [code, left])).toEqual(
    [1, ['GBX_SOLD_OUT', 4], 4, ['GBX_SOLD_OUT', 2], 6, ['GBX_SOLD_OUT', 0]])
  consumer.auto = true
  expect(await worker.send('POST', '/tickets/boat', { 'idempotency-key': 'a' }))
    .toMatchObject({ status: 409, json: { statusCode: 409, code: 'GBX_SOLD_OUT', left: 0 } })
  expect((await worker.send('PUT', '/tickets/boat', {}, 'limit=3')).json).toMatchObject({ issued: 7, limit: 3 })
  expect((await worker.send('PUT', '/tickets/boat?limit=')).json).toMatchObject({ issued: 7, limit: null })
  expect(await worker.send('POST', '/tickets/boat', { 'idempotency-key': 'a' }))
    .toMatchObject({ status: 201, json: { number: 8 } })
  expect(worker.metrics.get('gearbox_tickets_refused_total')!()).toBe(3)
})

test('a request that is not stored in time is found where the 202 says, at any worker', async () => {
  const { consumer, worker } = await start()
  const other = await startTicketWorker(consumer)
  consumer.auto = false
  const paths = ['/tickets/boat', '/tickets/boat?count=1000', '/tickets/boat']
  const replies = await hold(worker, consumer, paths)
  consumer.answerPending()
  const pending = await Promise.all(replies)
  for (const { status, json, headers } of pending) {
    expect(status).toBe(202)
    expect(json).toEqual({ request: expect.stringMatching(new RegExp(`^${worker.producer}\\.\\d+$`)) })
    expect(headers.location).toBe(`/tickets/boat/requests/${String(json.request)}`)
  }
  expect(worker.held()).toBe(0)
  const [one, many, last] = pending.map(({ headers }) => String(headers.location))
  expect(await worker.send('GET', one!)).toMatchObject({ status: 202, headers: { location: one } })
  expect((await other.send('GET', one!)).status, 'nothing of this worker is stored').toBe(404)
  consumer.flush()
  for (const at of [worker, other]) {
    await until('the number', async () => (await at.send('GET', one!)).status === 200)
    expect(await at.send('GET', one!)).toMatchObject({
      status: 200, headers: { location: '/tickets/boat/1' }, json: { name: 'boat', number: 1 },
    })
    expect((await at.send('GET', many!)).json).toMatchObject({ first: 2, last: 1001 })
    expect((await at.send('GET', last!)).json).toMatchObject({ number: 1002 })
    expect((await at.send('GET', last!, { accept: 'text/plain' })).text).toBe('ticket number 0000001002')
    expect((await at.send('GET', last!.replace('boat', 'raft'))).status).toBe(404)
  }
  const { json: { receipt } } = await other.send('GET', many!)
  expect((await worker.send('GET', `/tickets/boat/1001?receipt=${String(receipt)}`)).status).toBe(200)
})

test('the address of a request can not be guessed from another one', async () => {
  const { consumer, worker } = await start()
  const other = await startTicketWorker(consumer)
  consumer.auto = false
  const replies = await hold(worker, consumer, ['/tickets/boat', '/tickets/boat'])
  consumer.answerPending()
  consumer.flush()
  const [producer, digits] = String((await replies[0]!).json.request).split('.')
  const next = BigInt(digits!) + (1n << 75n)
  for (const wrong of [next, BigInt(digits!) + 2n, BigInt(digits!) | 1n, 0n, 1n, 10n ** 63n]) {
    for (const at of [worker, other]) {
      const { status } = await at.send('GET', `/tickets/boat/requests/${producer}.${wrong}`)
      // Another worker can't know which keys this one has.
      expect(status, String(wrong)).toBe(at === other && (wrong & 1n) === 1n && wrong < 2n ** 53n ? 202 : 404)
    }
  }
  for (const wrong of ['x', `${producer}`, `${producer}.`, `${producer}.-1`, `x.${digits}`]) {
    expect((await other.send('GET', `/tickets/boat/requests/${wrong}`)).json.code).toBe('GBX_NO_REQUEST')
  }
})

test('a request that another worker may still have is a 202 for a minute after that one was seen', async () => {
  const { consumer, worker } = await start()
  const other = await startTicketWorker(consumer)
  await worker.send('POST', '/tickets/raft')
  consumer.auto = false
  const [reply] = await hold(worker, consumer, ['/tickets/boat'])
  consumer.answerPending()
  const { location } = (await reply!).headers
  expect((await other.send('GET', location!)).status).toBe(202)
  consumer.database.run('UPDATE producers SET seen_at = seen_at - 60000')
  expect((await other.send('GET', location!)).status).toBe(404)
  expect((await worker.send('GET', location!)).status, 'its own worker knows').toBe(202)
})

test('a request that got a 202 and is sold out then is a 409 at its worker', async () => {
  const { consumer, worker } = await start()
  await worker.send('PUT', '/tickets/boat?limit=2')
  consumer.auto = false
  const replies = await hold(worker, consumer, [1, 3, 1, 1].map((count) => `/tickets/boat?count=${count}`))
  consumer.answerPending()
  const places = (await Promise.all(replies)).map(({ headers }) => String(headers.location))
  consumer.flush()
  await until('an answer', async () => (await worker.send('GET', places[0]!)).status === 200)
  const answers = await Promise.all(places.map(async (place) => (await worker.send('GET', place)).json))
  expect(answers.map(({ number, code }) => number ?? code)).toEqual([1, 'GBX_SOLD_OUT', 2, 'GBX_SOLD_OUT'])
})

test('with an Idempotency-Key the same number and receipt come again, at any worker', async () => {
  const { consumer, worker } = await start()
  const other = await startTicketWorker(consumer)
  const key = { 'idempotency-key': 'k' }
  const first = await worker.send('POST', '/tickets/boat?count=3&holder=me', key)
  expect(first).toMatchObject({ status: 201, json: { first: 1, last: 3 } })
  expect(await other.send('POST', '/tickets/boat', key, 'count=3&holder=me'))
    .toMatchObject({ status: 201, json: first.json })
  expect((await other.send('POST', '/tickets/raft', key)).json).toMatchObject({ name: 'raft', number: 1 })
  consumer.auto = false
  const reply = worker.send('POST', '/tickets/boat?count=2', { 'idempotency-key': 'late' })
  await until('it to wait', () => consumer.waiting === 1)
  consumer.answerPending()
  const { status, headers: { location } } = await reply
  expect(status).toBe(202)
  expect((await worker.send('GET', location!)).status).toBe(202)
  expect((await other.send('GET', location!)).status).toBe(202)
  consumer.flush()
  for (const at of [worker, other]) {
    await until('the number', async () => (await at.send('GET', location!)).status === 200)
    expect((await at.send('GET', location!)).json).toMatchObject({ first: 4, last: 5 })
    expect((await at.send('GET', location!.replace('boat', 'raft'))).json.code ?? 202).toSatisfy(
      (code) => code === 'GBX_NO_REQUEST' || code === 202)
  }
})

test('numbers are called in order, past those that were given up', async () => {
  const { consumer, worker } = await start()
  expect(await worker.send('POST', '/tickets/boat/serve?by=1'))
    .toMatchObject({ status: 404, json: { code: 'GBX_NO_TICKETS' } })
  await worker.send('POST', '/tickets/boat?count=20')
  expect((await worker.send('DELETE', '/tickets/boat/2')).status).toBe(204)
  expect((await worker.send('DELETE', '/tickets/boat/2')).status).toBe(204)
  expect((await worker.send('POST', '/tickets/boat/serve?by=3'))).toMatchObject(
    { status: 200, json: { serving: 4, called: [1, 3, 4] } })
  expect((await worker.send('POST', '/tickets/boat/serve', {}, 'to=6')).json).toEqual({ serving: 6, called: [5, 6] })
  expect((await worker.send('POST', '/tickets/boat/serve?to=2')).json).toEqual({ serving: 6, called: [] })
  expect((await worker.send('GET', '/tickets/boat')).json).toMatchObject({ issued: 20, serving: 6, waiting: 14 })
  const key = { 'idempotency-key': 'call' }
  for (let i = 0; i < 3; i++) {
    expect((await worker.send('POST', '/tickets/boat/serve?by=2', key)).json).toEqual({ serving: 8, called: [7, 8] })
  }
  expect((await worker.send('POST', '/tickets/boat/serve?to=99')).json).toMatchObject({ serving: 20 })
  expect((await worker.send('GET', '/tickets/boat/7')).json)
    .toMatchObject({ state: 'called', ahead: 0, wait_seconds: 0 })
  expect((await worker.send('GET', '/tickets/boat/2')).json).toMatchObject({ state: 'given_up', wait_seconds: null })
  consumer.auto = false
  const reply = worker.send('POST', '/tickets/boat/serve?by=1')
  await until('it to wait', () => consumer.waiting === 1)
  consumer.answerPending()
  expect(await reply).toMatchObject({ status: 202, text: '' })
  consumer.flush()
})

test('a reply that calls very many numbers lists the first of them', async () => {
  const { worker } = await start()
  for (let i = 0; i < 12; i++) await worker.send('POST', '/tickets/boat?count=1000')
  const { json } = await worker.send('POST', '/tickets/boat/serve?to=12000')
  expect(json).toMatchObject({ serving: 12_000, more: 2000 })
  expect(json.called).toHaveLength(10_000)
})

test('what is wrong with a request is named, and nothing is issued', async () => {
  const { worker } = await start()
  const long = 'x'.repeat(257)
  for (const [method, path, code, text] of [
    ['POST', `/tickets/${long}`, 'GBX_BAD_NAME', /257 bytes/],
    ['POST', '/tickets/', 'GBX_BAD_NAME', /at least one character/],
    ['POST', '/tickets/a%00b', 'GBX_BAD_NAME', /control character/],
    ['POST', '/tickets/boat?count=0', 'GBX_BAD_QUERY', /"count" must be a whole number from 1 to 1000, not "0"/],
    ['POST', '/tickets/boat?count=1001', 'GBX_BAD_QUERY', /from 1 to 1000/],
    ['POST', '/tickets/boat?count=1e2', 'GBX_BAD_QUERY', /not "1e2"/],
    ['POST', `/tickets/boat?holder=${long}`, 'GBX_BAD_HOLDER', /257 bytes/],
    ['POST', '/tickets/boat?holder=a%0Ab', 'GBX_BAD_HOLDER', /control character/],
    ['POST', '/tickets/boat/serve', 'GBX_BAD_QUERY', /either by=N/],
    ['POST', '/tickets/boat/serve?by=1&to=2', 'GBX_BAD_QUERY', /either by=N/],
    ['POST', '/tickets/boat/serve?by=1001', 'GBX_BAD_QUERY', /from 1 to 1000/],
    ['PUT', '/tickets/boat', 'GBX_BAD_QUERY', /limit=N/],
    ['PUT', '/tickets/boat?limit=-1', 'GBX_BAD_QUERY', /not "-1"/],
    ['GET', '/tickets/boat', 'GBX_NO_TICKETS', /"boat" was ever issued/],
    ['GET', '/tickets/boat/log', 'GBX_NO_TICKETS', /"boat" was ever issued/],
    ['GET', '/tickets/boat/1', 'GBX_NO_TICKET', /number 1 of "boat" was never issued/],
    ['GET', '/tickets/boat/01', 'GBX_NO_TICKET', /is no ticket's number/],
    ['GET', '/tickets/boat/9007199254740993', 'GBX_NO_TICKET', /is no ticket's number/],
    ['DELETE', '/tickets/boat/1', 'GBX_NO_TICKET', /never issued/],
  ] as const) {
    const { json, status } = await worker.send(method, path)
    expect(json, `${method} ${path}`).toMatchObject({ code, message: expect.stringMatching(text) })
    expect(status).toBe(json.statusCode)
  }
  expect((await worker.send('POST', '/tickets/boat?count=2', {}, 'count=3')).json.message)
    .toMatch(/in the query and in the form/)
  expect((await worker.send('POST', '/tickets/boat')).json.number).toBe(1)
})

test('only a receipt or an admin key sees a holder and gives a place up, where there are keys', async () => {
  const { worker } = await start({ hasApiKeys: true })
  const admin = { authorization: 'Bearer admin' }
  const { json: { receipt } } = await worker.send('POST', '/tickets/boat?count=2&holder=Ada')
  await worker.send('POST', '/tickets/boat?holder=Bob')
  const own = `receipt=${encodeURIComponent(String(receipt))}`
  expect((await worker.send('GET', '/tickets/boat/2')).json).not.toHaveProperty('holder')
  expect((await worker.send('GET', `/tickets/boat/2?${own}`)).json.holder).toBe('Ada')
  expect((await worker.send('GET', '/tickets/boat/3', admin)).json.holder).toBe('Bob')
  for (const [method, path, code] of [
    ['GET', `/tickets/boat/3?${own}`, 'GBX_WRONG_RECEIPT'],
    ['DELETE', `/tickets/boat/3?${own}`, 'GBX_WRONG_RECEIPT'],
    ['DELETE', '/tickets/boat/3', 'GBX_RECEIPT_NEEDED'],
  ] as const) {
    expect(await worker.send(method, path), `${method} ${path}`).toMatchObject({ status: 403, json: { code } })
  }
  expect((await worker.send('DELETE', `/tickets/boat/2?${own}`)).status).toBe(204)
  expect((await worker.send('DELETE', '/tickets/boat/3', admin)).status).toBe(204)
  expect((await worker.send('GET', '/tickets/boat')).json).toMatchObject({ issued: 3, waiting: 1 })
})

test('with TICKETS_HOLD_S a called place is kept while somebody asks with its receipt', async () => {
  const { consumer, worker } = await start()
  consumer.holdS = 100
  const { json: { receipt } } = await worker.send('POST', '/tickets/boat')
  await worker.send('POST', '/tickets/boat/serve?by=1')
  const askedAt = (): unknown => consumer.database.get('SELECT asked_at FROM tickets_places')
  expect((await worker.send('GET', '/tickets/boat/1')).json.state).toBe('called')
  expect(askedAt()).toBeUndefined()
  for (let i = 0; i < 3; i++) await worker.send('GET', `/tickets/boat/1?receipt=${String(receipt)}`)
  await until('it to be written', () => askedAt() !== undefined)
  const { asked_at: first } = askedAt() as { asked_at: number }
  await worker.send('GET', `/tickets/boat/1?receipt=${String(receipt)}`)
  await worker.send('POST', '/tickets/boat')
  expect(askedAt(), 'not for every question').toEqual({ asked_at: first })
  consumer.database.run('UPDATE tickets_calls SET at = at - 100000')
  expect((await worker.send('GET', '/tickets/boat/1')).json.state).toBe('called')
  consumer.database.run('UPDATE tickets_places SET asked_at = asked_at - 100000')
  expect((await worker.send('GET', '/tickets/boat/1')).json.state).toBe('given_up')
})

test('the log has every number in order, and a slow reader holds it up instead of filling the memory', async () => {
  const { consumer, worker } = await start()
  for (let i = 0; i < 5; i++) await worker.send('POST', '/tickets/boat?count=1000&holder=Ada')
  await worker.send('POST', '/tickets/boat?count=2')
  const { text, headers } = await worker.send('GET', '/tickets/boat/log?after=4998')
  expect(headers['content-type']).toBe('application/x-ndjson')
  const lines = text.trimEnd().split('\n').map((line) => JSON.parse(line))
  expect(lines.map(({ number, holder }) => [number, holder])).toEqual(
    [[4999, 'Ada'], [5000, 'Ada'], [5001, undefined], [5002, undefined]])
  expect(lines[0].at).toMatch(/Z$/)
  const all = (await worker.send('GET', '/tickets/boat/log')).text.trimEnd().split('\n')
  expect(all.map((line) => JSON.parse(line).number)).toEqual(Array.from({ length: 5002 }, (_, i) => i + 1))
  expect((await worker.send('GET', '/tickets/boat/log?after=5002')).text).toBe('')
  expect(await worker.send('HEAD', '/tickets/boat/log')).toMatchObject({ status: 200, text: '' })
  // Ten million numbers would be 500 MB.
  consumer.database.run('UPDATE tickets_runs SET count = 10000000 WHERE first = 5001')
  let reads = 0
  const { all: read } = consumer.database
  Object.assign(consumer.database, { all: (sql: string, ...values: []) => { reads++; return read(sql, ...values) } })
  const socket = await worker.open('/tickets/raft')
  socket.write('GET /tickets/boat/log HTTP/1.1\r\nHost: x\r\n\r\n')
  socket.pause()
  let before = -1
  await until('the log to be held up', async () => {
    const idle = reads === before
    before = reads
    for (let i = 0; i < 50; i++) await worker.send('GET', '/tickets/none')
    return idle && reads > 10
  })
  expect(reads).toBeLessThan(2 * 5000)
  socket.destroy()
})

test('a worker that may hold no more replies says so, and goes on', async () => {
  const { consumer, worker } = await start({ repliesMax: 2 })
  consumer.auto = false
  const replies = await hold(worker, consumer, ['/tickets/boat', '/tickets/boat', '/tickets/boat'])
  expect(await worker.send('POST', '/tickets/boat')).toMatchObject({ status: 503, json: { code: 'GBX_OVERLOADED' } })
  consumer.flush()
  expect((await Promise.all(replies)).map(({ json }) => json.number)).toEqual([1, 2, 3])
})

test('how long somebody was overtaken is measured', async () => {
  const { consumer, worker } = await start()
  const other = await startTicketWorker(consumer)
  await other.send('POST', '/tickets/overtaken')
  expect(other.durations).toEqual([0])
  consumer.auto = false
  const [first] = await hold(worker, consumer, ['/tickets/overtaken'])
  const entry = consumer.takeWaiting()
  await until('the clock to move', () => Date.now() % 20 === 0)
  const [second] = await hold(other, consumer, ['/tickets/overtaken'])
  consumer.flush()
  expect((await second!).json.number).toBe(2)
  entry()
  expect((await first!).json.number).toBe(3)
  expect(worker.durations[0]).toBeGreaterThan(0)
  expect(worker.durations[0]).toBeLessThan(10)
})

test('BASE_PATH is a part of every Location', async () => {
  const { worker } = await start({ basePath: '/gearbox' })
  expect((await worker.send('POST', '/gearbox/tickets/boat')).headers.location).toBe('/gearbox/tickets/boat/1')
})
